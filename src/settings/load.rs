//! Reads the file and the environment and merges them into one tree: the only code that touches either.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Config, File, FileFormat};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::schema::{self, Key, Kind};
use super::walk::{Findings, nearest, unknown_key, walk};
use super::{Settings, SettingsError, document, plan};

/// Prefix of the variables that override keys of the document.
const PREFIX: &str = "STAGEDOOR__";

/// File used when neither `--config` nor `STAGEDOOR_CONFIG` names one.
pub const DEFAULT_FILE: &str = "settings/stagedoor.yaml";

/// The document that the default file holds, for a binary that runs away from its source tree.
const EMBEDDED: &str = include_str!("../../settings/stagedoor.yaml");

/// Loads settings from a file (or the default) and this process's environment.
///
/// # Errors
/// [`SettingsError`] with every mistake at once.
pub fn load(file: Option<&Path>) -> Result<Settings, SettingsError> {
    // A variable whose value is not Unicode cannot be meant for us.
    let environment: BTreeMap<String, String> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let (source, text) = read(file)?;
    from_text(&source, &text, &environment)
}

fn read(file: Option<&Path>) -> Result<(String, String), SettingsError> {
    let path = file.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_path_buf);
    if file.is_none() && !path.exists() {
        return Ok(("the built-in configuration".into(), EMBEDDED.into()));
    }
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(error) => Err(SettingsError::single(&path.display().to_string(), format!("the file cannot be read: {error}"))),
    }
}

/// Loads settings from a text and a given environment.
///
/// # Errors
/// [`SettingsError`] with every mistake at once.
pub fn from_text(source: &str, text: &str, environment: &BTreeMap<String, String>) -> Result<Settings, SettingsError> {
    let mut findings = Findings::default();
    let mut builder = Config::builder().add_source(File::from_str(text, FileFormat::Yaml));
    for (name, value) in environment.iter().filter(|(name, _)| name.to_uppercase().starts_with(PREFIX)) {
        match schema_path(&name[PREFIX.len()..]) {
            Ok(path) => match builder.clone().set_override(&path, value.as_str()) {
                Ok(next) => builder = next,
                Err(error) => findings.problem(name, error.to_string()),
            },
            Err(reason) => findings.problem(name, reason),
        }
    }
    let merged: Value = builder.build().and_then(Config::try_deserialize).map_err(|error| SettingsError {
        source: source.into(),
        ..SettingsError::single("", format!("this is not valid YAML: {}", plain_words(&error.to_string())))
    })?;

    let checked = walk(&merged, &schema::DOCUMENT, &|name| environment.get(name).cloned(), &mut findings);
    let document = match document::read(checked) {
        Ok(document) => document,
        // What is wrong or missing has been said.
        Err(_) if !findings.problems.is_empty() => {
            return Err(SettingsError { source: source.into(), problems: findings.problems });
        }
        Err(reason) => return Err(SettingsError::single("", reason)),
    };
    // A backend that is refused for a mistake of its own is still no unknown name.
    let entries = merged["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    let declared = entries.iter().filter_map(|entry| entry["name"].as_str()).collect();
    let mut settings = plan::plan(document, environment, &declared, &mut findings);
    if !findings.problems.is_empty() {
        return Err(SettingsError { source: source.into(), problems: findings.problems });
    }
    settings.source = source.to_owned();
    settings.fingerprint = fingerprint(merged, &findings.secrets);
    settings.notes = findings.notes;
    Ok(settings)
}

/// SHA-256 of the merged document without its secrets, so that nobody can try out what they may be. Variables stand in it by
/// name.
fn fingerprint(mut merged: Value, secrets: &[String]) -> String {
    use std::fmt::Write as _;
    blank(&mut merged, secrets);
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(merged.to_string()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

fn blank(value: &mut Value, secrets: &[String]) {
    match value {
        Value::String(text) if secrets.contains(text) => text.clear(),
        Value::Array(items) => items.iter_mut().for_each(|item| blank(item, secrets)),
        Value::Object(fields) => fields.values_mut().for_each(|field| blank(field, secrets)),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The parser's message without the notation of its own types.
fn plain_words(message: &str) -> String {
    message.replace("String(\"", "`").replace("\")", "`").replace("duplicated key in mapping", "this duplicate key is refused")
}

/// Turns `SERVER__PORT` into `server.port`: segments are matched to schema keys without regard to case.
fn schema_path(variable: &str) -> Result<String, String> {
    let mut kind = &schema::DOCUMENT;
    let mut path: Vec<String> = Vec::new();
    for segment in variable.split("__") {
        let keys: &[Key] = match kind {
            Kind::Object(keys) | Kind::WordOrObject(_, keys) => keys,
            _ => {
                return Err(format!("`{}` has no keys that a variable can set", path.join(".")));
            }
        };
        match keys.iter().find(|key| key.name.eq_ignore_ascii_case(segment)) {
            Some(key) => {
                path.push(key.name.to_owned());
                kind = &key.kind;
            }
            None => {
                let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
                let hint = nearest(segment, &known).map(|best| format!("; did you mean `{}`?", best.to_uppercase()));
                return Err(hint.map_or_else(|| unknown_key(segment, &known), |hint| format!("unknown key `{segment}`{hint}")));
            }
        }
    }
    match kind {
        Kind::List(_) | Kind::Map(_) | Kind::Object(_) => {
            Err(format!("`{}` is no single value; a variable cannot set it", path.join(".")))
        }
        _ => Ok(path.join(".")),
    }
}

/// Reads the behaviour of a simulated backend from JSON, checked like the `config` of one; `dialect` overrides its own.
///
/// # Errors
/// Every mistake, in words.
pub fn simulated_from_json(text: &str, dialect: Option<&str>) -> Result<super::Simulated, String> {
    let mut config: Value = serde_json::from_str(text).map_err(|error| format!("the behaviour is not JSON: {error}"))?;
    if let (Some(dialect), Some(keys)) = (dialect, config.as_object_mut()) {
        keys.insert("dialect".to_owned(), dialect.into());
    }
    let document = serde_json::json!({ "backends": [{ "name": "simulated", "type": "simulated", "config": config }] });
    let settings = from_text("behaviour", &document.to_string(), &BTreeMap::new()).map_err(|error| error.to_string())?;
    settings.backends[0].simulated.clone().ok_or_else(|| "the behaviour is empty".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_tells_configurations_apart_but_no_secrets() {
        let of = |token: &str, port: u16, variable: &str| {
            let text =
                format!("admin: {{ token: {token} }}\nserver: {{ port: {port} }}\nbackends: [{{ name: s, type: simulated }}]");
            let environment = BTreeMap::from([("STAGEDOOR__ADMIN__READTOKEN".to_owned(), variable.to_owned())]);
            from_text("test", &text, &environment).unwrap().fingerprint
        };
        assert_eq!(of("one", 1, "look"), of("two", 1, "peek"));
        assert_ne!(of("one", 1, "look"), of("one", 2, "look"));
    }
}
