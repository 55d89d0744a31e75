//! One walk of the merged document against the schema: substitutes variables, coerces scalars, and collects every
//! mistake with its path. What it returns deserializes without surprises.

use std::fmt;

use serde_json::{Map, Number, Value, json};

use super::schema::{Key, Kind, TYPES, backend_keys};
use super::units::{parse_duration, parse_size};

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `backends[openai-backend].config.timeout`.
    pub path: String,
    /// What is wrong and what to do.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "document" } else { &self.path };
        write!(f, "{path}: {}", self.reason)
    }
}

/// What a walk found beside the value.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Mistakes; any of them refuses the configuration.
    pub problems: Vec<Problem>,
    /// Things left out on purpose, one line each.
    pub notes: Vec<String>,
    /// What stands in the document itself where a secret is expected.
    pub secrets: Vec<String>,
}

impl Findings {
    pub(super) fn problem(&mut self, path: &str, reason: impl Into<String>) {
        let problem = Problem { path: path.to_owned(), reason: reason.into() };
        // A variable that two backends read is wrong once.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// Looks a variable up; `None` when it is not set.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Checks and coerces a document.
pub(super) fn walk(document: &Value, kind: &Kind, lookup: Lookup<'_>, findings: &mut Findings) -> Value {
    let mut walker = Walker { lookup, findings, missing: None };
    walker.value(document, kind, "").unwrap_or(Value::Null)
}

struct Walker<'a> {
    lookup: Lookup<'a>,
    findings: &'a mut Findings,
    /// Set while a scalar is read: the variable that it needs and does not find.
    missing: Option<String>,
}

impl Walker<'_> {
    /// The coerced value, or `None` when there is none: a mistake was noted or a variable is missing.
    fn value(&mut self, value: &Value, kind: &Kind, path: &str) -> Option<Value> {
        match kind {
            Kind::Object(keys) => self.object(value, &keys.iter().collect::<Vec<_>>(), path),
            Kind::Backend => self.backend(value, path),
            Kind::List(item) => self.list(value, item, path),
            Kind::Map(item) => self.map(value, item, path),
            Kind::Names => match value {
                Value::Array(_) => self.list(value, &Kind::Text, path),
                _ => self.map(value, &Kind::Text, path),
            },
            Kind::WordOrObject(word, keys) => match value {
                Value::String(text) if text == word => Some(value.clone()),
                Value::Object(_) => self.object(value, &keys.iter().collect::<Vec<_>>(), path),
                _ => self.wrong(path, &format!("write `{word}` or an object"), value),
            },
            Kind::WordOr(word, inner) => match self.text(value) {
                Ok(Some(text)) if text == *word => Some(zero(inner)),
                Ok(_) => {
                    let before = self.findings.problems.len();
                    let checked = self.scalar(value, inner, path);
                    for problem in &mut self.findings.problems[before..] {
                        problem.reason.push_str(&format!("; or write `{word}`"));
                    }
                    checked
                }
                Err(variable) => self.without(variable),
            },
            _ => self.scalar(value, kind, path),
        }
    }

    fn list(&mut self, value: &Value, item: &Kind, path: &str) -> Option<Value> {
        let Value::Array(items) = value else {
            return self.wrong(path, "a list is expected", value);
        };
        let mut out = Vec::with_capacity(items.len());
        for (index, entry) in items.iter().enumerate() {
            let label = entry.get("name").and_then(Value::as_str).map_or_else(|| index.to_string(), str::to_owned);
            let inner = format!("{path}[{label}]");
            match self.value(entry, item, &inner) {
                // What it lacks has been said. Without it the rest of the document can still be looked through.
                Some(checked) if lacks(&checked, item) => {}
                Some(checked) => out.push(checked),
                None => self.require(&inner),
            }
        }
        Some(Value::Array(out))
    }

    fn map(&mut self, value: &Value, item: &Kind, path: &str) -> Option<Value> {
        let Value::Object(entries) = value else {
            return self.wrong(path, "a map is expected", value);
        };
        let mut out = Map::new();
        for (name, entry) in entries {
            let inner = join(path, name);
            match self.value(entry, item, &inner) {
                Some(checked) => drop(out.insert(name.clone(), checked)),
                None => self.omit(&inner),
            }
        }
        Some(Value::Object(out))
    }

    fn object(&mut self, value: &Value, keys: &[&Key], path: &str) -> Option<Value> {
        let empty = Map::new();
        let entries = match value {
            Value::Object(entries) => entries,
            // `config:` with every key commented out.
            Value::Null => &empty,
            // Not what stands there, which may be a key.
            Value::String(_) if keys.iter().any(|key| key.name == "name") => {
                return self.wrong(path, "a map is expected, as `{ name: ... }`", value);
            }
            _ => return self.wrong(path, "a map is expected", value),
        };
        for name in entries.keys().filter(|name| !keys.iter().any(|key| key.name == *name)) {
            let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
            self.findings.problem(&join(path, name), unknown_key(name, &known));
        }
        let mut out = Map::new();
        let mut unset: Vec<(&str, String)> = Vec::new();
        for key in keys {
            let inner = join(path, key.name);
            let required = key.required && key.unless.is_none();
            let checked = match entries.get(key.name) {
                None | Some(Value::Null) => {
                    if required {
                        self.findings.problem(&inner, "this key is required");
                    }
                    continue;
                }
                Some(entry) => self.value(entry, &key.kind, &inner),
            };
            match checked {
                Some(Value::String(text)) if text.is_empty() && required => {
                    self.findings.problem(&inner, "this key is required and must not be empty");
                }
                // An empty default means the same as an absent key.
                Some(Value::String(text)) if text.is_empty() => {}
                Some(checked) => drop(out.insert(key.name.to_owned(), checked)),
                None if required => self.require(&inner),
                None => {
                    unset.extend(self.missing.clone().map(|variable| (key.name, variable)));
                    self.omit(&inner);
                }
            }
        }
        for key in keys.iter().filter(|key| key.required) {
            if let Some(other) = key.unless.filter(|other| !out.contains_key(key.name) && !out.contains_key(*other)) {
                let variable = unset.iter().find(|(name, _)| *name == key.name || *name == other).map(|(_, variable)| variable);
                let cause = variable.map(|variable| format!("{UNSET} `{variable}` is not set, and ")).unwrap_or_default();
                self.findings.problem(&join(path, key.name), format!("{cause}this key is required, or `{other}` in its place"));
            }
        }
        Some(Value::Object(out))
    }

    /// A backend's keys depend on its `type`; an optional one is left out when a required variable is missing.
    fn backend(&mut self, value: &Value, path: &str) -> Option<Value> {
        if !value.is_object() {
            return self.wrong(path, "a map with name and type is expected", value);
        }
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
        if !TYPES.contains(&kind) {
            let reason = if kind.is_empty() { "this key is required".to_owned() } else { unknown_word(kind, TYPES) };
            self.findings.problem(&join(path, "type"), reason);
            return Some(Value::Null);
        }
        let (own, config) = backend_keys(kind);
        let mut entry = value.clone();
        let raw = entry.as_object_mut().and_then(|entry| entry.shift_remove("config")).unwrap_or(Value::Null);
        if config.is_empty() && !raw.is_null() {
            self.findings.problem(&join(path, "config"), "a pool has no config; its keys stand beside its name");
        }

        let before = self.findings.problems.len();
        let noted = self.findings.notes.len();
        let mut checked = self.object(&entry, &own.iter().collect::<Vec<_>>(), path)?;
        if checked.get("name").is_none() {
            // A wrong name has been told; with it the rest of the entry can still be looked through.
            checked["name"] = value.get("name").filter(|name| name.is_string()).cloned().unwrap_or_else(|| path.into());
        }
        let missing_before = self.missing_count();
        let config = self.object(&raw, &config, &join(path, "config"))?;
        let lacks_variable = self.missing_count() > missing_before;
        if lacks_variable && checked.get("optional") == Some(&Value::Bool(true)) {
            let (unset, other): (Vec<Problem>, Vec<Problem>) =
                self.findings.problems.drain(before..).partition(|problem| problem.reason.starts_with(UNSET));
            self.findings.problems.extend(other);
            let reasons: Vec<String> = unset.into_iter().map(|problem| problem.reason).collect();
            let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
            // What else it would lack is of no interest.
            self.findings.notes.truncate(noted);
            self.findings.notes.push(format!("backend `{name}` is left out: {}", reasons.join("; ")));
            return Some(Value::Null);
        }
        checked["config"] = config;
        Some(checked)
    }

    fn missing_count(&self) -> usize {
        self.findings.problems.iter().filter(|problem| problem.reason.starts_with(UNSET)).count()
    }

    /// Notes that a required value is missing for want of a variable.
    fn require(&mut self, path: &str) {
        if let Some(variable) = self.missing.take() {
            self.findings.problem(path, format!("{UNSET} `{variable}` is not set, and this key is required"));
        }
    }

    /// Notes that an optional value is dropped for want of a variable.
    fn omit(&mut self, path: &str) {
        if let Some(variable) = self.missing.take() {
            self.findings.notes.push(format!("{path} is dropped: variable `{variable}` is not set"));
        }
    }

    fn without(&mut self, variable: String) -> Option<Value> {
        self.missing = Some(variable);
        None
    }

    fn wrong(&mut self, path: &str, expected: &str, found: &Value) -> Option<Value> {
        let found = match found {
            Value::Null => "nothing",
            Value::Bool(_) => "a truth value",
            Value::Number(_) => "a number",
            Value::String(_) => "text",
            Value::Array(_) => "a list",
            Value::Object(_) => "a map",
        };
        self.findings.problem(path, format!("{expected}, but {found} is given"));
        None
    }

    /// A scalar as text with its variables replaced; `Ok(None)` for lists and maps, `Err` with a missing variable.
    fn text(&self, value: &Value) -> Result<Option<String>, String> {
        match value {
            Value::String(text) => substitute(text, self.lookup).map(Some),
            Value::Bool(flag) => Ok(Some(flag.to_string())),
            Value::Number(number) => Ok(Some(number.to_string())),
            Value::Null | Value::Array(_) | Value::Object(_) => Ok(None),
        }
    }

    fn scalar(&mut self, value: &Value, kind: &Kind, path: &str) -> Option<Value> {
        if matches!(kind, Kind::Secret) {
            self.findings.secrets.extend(value.as_str().map(str::to_owned));
        }
        if value.as_str().is_some_and(is_open) {
            self.findings.problem(path, "the end of a `${...}` is missing: `}`");
            return None;
        }
        let text = match self.text(value) {
            Ok(Some(text)) => text,
            Ok(None) => return self.wrong(path, "a single value is expected", value),
            Err(variable) => return self.without(variable),
        };
        match coerce(&text, kind, value) {
            Ok(coerced) => Some(coerced),
            Err(reason) => {
                self.findings.problem(path, reason);
                None
            }
        }
    }
}

/// How the reason of a missing variable begins; the walk counts by it which mistakes an optional backend forgives.
const UNSET: &str = "variable";

fn zero(kind: &Kind) -> Value {
    match kind {
        Kind::Duration => duration_value(std::time::Duration::ZERO),
        _ => json!(0),
    }
}

fn duration_value(duration: std::time::Duration) -> Value {
    json!({ "secs": duration.as_secs(), "nanos": duration.subsec_nanos() })
}

fn coerce(text: &str, kind: &Kind, raw: &Value) -> Result<Value, String> {
    match kind {
        Kind::Text | Kind::Secret => match raw {
            Value::Bool(_) => Err("text is expected; put the value in quotes".to_owned()),
            // What was written is lost: 00123 and 123 are one number.
            Value::Number(number) if matches!(kind, Kind::Secret) || !number.is_u64() => {
                Err("this reads as a number, which changes it; put the value in quotes".to_owned())
            }
            _ if text.contains(['\r', '\n', '\0']) => Err("line breaks are not allowed here".to_owned()),
            _ => Ok(json!(text)),
        },
        Kind::Name => {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if !text.is_empty() && text.len() <= 64 && text.chars().all(plain) {
                Ok(json!(text))
            } else {
                Err(format!("`{text}` is not a name; use letters, digits, `.`, `_` and `-`, at most 64"))
            }
        }
        Kind::Url => {
            let url = url::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            match url {
                Some(url) if url.query().is_none() && url.fragment().is_none() => Ok(json!(text)),
                Some(_) => Err("the address must have neither a query nor a fragment".to_owned()),
                // The value may hold credentials, so it is not repeated.
                None => Err("this is not an http:// or https:// address".to_owned()),
            }
        }
        Kind::Bool => match text {
            "true" => Ok(json!(true)),
            "false" => Ok(json!(false)),
            _ => Err(format!("`{text}` is neither true nor false")),
        },
        Kind::Integer(min, max) => match text.parse::<u64>() {
            Ok(number) if (*min..=*max).contains(&number) => Ok(json!(number)),
            _ => Err(format!("`{text}` is not a whole number from {min} to {max}")),
        },
        Kind::Number(min, max) => match text.parse::<f64>().ok().filter(|n| (*min..=*max).contains(n)).and_then(Number::from_f64)
        {
            Some(number) => Ok(Value::Number(number)),
            None => Err(format!("`{text}` is not a number from {min} to {max}")),
        },
        Kind::Duration => parse_duration(text).map(duration_value),
        Kind::Size => parse_size(text).map(|bytes| json!(bytes)),
        Kind::Price => match crate::catalogue::per_token(text) {
            Some(_) => Ok(json!(text)),
            None => Err(format!("`{text}` is not a price such as 0.25, with at most six decimals")),
        },
        Kind::Choice(words) => {
            if words.contains(&text) {
                Ok(json!(text))
            } else {
                Err(unknown_word(text, words))
            }
        }
        Kind::List(_)
        | Kind::Map(_)
        | Kind::Names
        | Kind::Object(_)
        | Kind::WordOr(..)
        | Kind::WordOrObject(..)
        | Kind::Backend => Err("a single value is not expected here".to_owned()),
    }
}

/// Whether the last `${` has no end.
fn is_open(text: &str) -> bool {
    text.rfind("${").is_some_and(|start| !text[start..].contains('}'))
}

/// Whether an item has not all that one of its kind must have.
fn lacks(item: &Value, kind: &Kind) -> bool {
    let Kind::Object(keys) = kind else { return false };
    keys.iter().any(|key| key.required && key.unless.is_none() && item.get(key.name).is_none())
}

/// Replaces `${VAR}` and `${VAR:-default}`.
///
/// # Errors
/// The name of the first variable that is neither set nor has a default.
pub(super) fn substitute(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(end) = rest[start..].find('}') else {
            break;
        };
        out.push_str(&rest[..start]);
        let inside = &rest[start + 2..start + end];
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        // An empty variable means the same as an absent one.
        match lookup(name).filter(|value| !value.is_empty()) {
            Some(value) => out.push_str(&value),
            None => out.push_str(default.ok_or_else(|| name.to_owned())?),
        }
        rest = &rest[start + end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Says that a key is unknown and which valid one is nearest.
pub(super) fn unknown_key(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(best) => format!("unknown key; did you mean `{best}`?"),
        None => format!("unknown key; valid keys are {}", known.join(", ")),
    }
}

fn unknown_word(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(best) => format!("`{word}` is not valid; did you mean `{best}`?"),
        None => format!("`{word}` is not valid; use one of {}", known.join(", ")),
    }
}

/// The nearest of the known words, if any is near.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_lowercase()), *candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
