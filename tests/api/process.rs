//! The binary as a process: its command line, its environment, what it prints, and how it ends.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::restarts::{drain_body, simulated_answer};
use crate::support::{PATIENCE, Provider, Reply, chat_body, events, eventually, read_body, read_chunk, read_head, word_event};

/// Every variable that the user's files name.
const VARIABLES: &[(&str, &str)] = &[
    ("OPENAI_API_KEY", "sk-openai"),
    ("OPENAI_ORG_ID", "org-1"),
    ("ANTHROPIC_API_KEY", "sk-anthropic"),
    ("AZURE_OPENAI_API_KEY", "azure-key"),
    ("AZURE_OPENAI_ENDPOINT", "https://myresource.openai.azure.com"),
    ("GOOGLE_AI_API_KEY", "google-key"),
    ("GCP_PROJECT_ID", "project-1"),
    ("LLAMA_ENDPOINT_URL", "https://llama.example"),
    ("LLAMA_API_KEY", "llama-key"),
    ("MISTRAL_API_KEY", "mistral-key"),
];

fn stagedoor(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stagedoor"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

/// What a command printed, and how it ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let output = stagedoor(arguments, environment).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn check(file: &Path, environment: &[(&str, &str)]) -> Ended {
    run(&["check", "--config", file.to_str().unwrap()], environment)
}

fn check_text(yaml: &str, environment: &[(&str, &str)]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    check(&written(&folder, yaml), environment)
}

fn written(folder: &tempfile::TempDir, yaml: &str) -> PathBuf {
    let file = folder.path().join("stagedoor.yaml");
    std::fs::write(&file, yaml).unwrap();
    file
}

fn user_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/user-config").join(name)
}

fn without<'a>(variable: &str) -> Vec<(&'a str, &'a str)> {
    VARIABLES.iter().copied().filter(|(name, _)| *name != variable).collect()
}

#[test]
fn every_file_of_the_users_is_valid_when_its_variables_are_set() {
    let mut files = 0;
    for entry in std::fs::read_dir(user_file("")).unwrap() {
        let file = entry.unwrap().path();
        let ended = check(&file, VARIABLES);
        assert_eq!(ended.code, Some(0), "{}: {}", file.display(), ended.err);
        assert!(ended.out.contains("valid"), "{}", ended.out);
        files += 1;
    }
    assert_eq!(files, 9);
}

#[test]
fn a_missing_variable_behind_a_required_key_is_named_with_its_backend_and_key() {
    for (file, variable, backend, key) in [
        ("openai.yaml", "OPENAI_API_KEY", "openai-backend", "apiKey"),
        ("anthropic.yaml", "ANTHROPIC_API_KEY", "anthropic-backend", "apiKey"),
        ("azure-openai.yaml", "AZURE_OPENAI_API_KEY", "azure-backend", "apiKey"),
        ("azure-openai.yaml", "AZURE_OPENAI_ENDPOINT", "azure-backend", "endpoint"),
        ("google.yaml", "GOOGLE_AI_API_KEY", "gemini-backend", "apiKey"),
        ("meta.yaml", "LLAMA_ENDPOINT_URL", "llama-backend", "endpoint"),
        ("mistral.yaml", "MISTRAL_API_KEY", "mistral-backend", "apiKey"),
        ("pool.yaml", "ANTHROPIC_API_KEY", "anthropic-backend", "apiKey"),
        ("all.yaml", "LLAMA_ENDPOINT_URL", "llama-backend", "endpoint"),
    ] {
        let ended = check(&user_file(file), &without(variable));
        assert_eq!(ended.code, Some(1), "{file} without {variable}: {}", ended.out);
        let told = ended.err.lines().any(|line| [variable, backend, key].iter().all(|word| line.contains(word)));
        assert!(told, "{file} without {variable}: {}", ended.err);
    }
}

#[test]
fn a_missing_variable_behind_the_only_credential_is_named_although_another_key_could_stand_there() {
    let ended = check(&user_file("google-vertex.yaml"), &without("GCP_PROJECT_ID"));
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    let told = ended.err.lines().any(|line| ["GCP_PROJECT_ID", "gemini-backend"].iter().all(|word| line.contains(word)));
    assert!(told, "{}", ended.err);
}

#[test]
fn all_missing_variables_are_named_at_once() {
    let ended = check(&user_file("all.yaml"), &[]);
    assert_eq!(ended.code, Some(1));
    for variable in [
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "AZURE_OPENAI_API_KEY",
        "AZURE_OPENAI_ENDPOINT",
        "GOOGLE_AI_API_KEY",
        "LLAMA_ENDPOINT_URL",
        "MISTRAL_API_KEY",
    ] {
        assert!(ended.err.contains(variable), "{variable}: {}", ended.err);
    }
}

#[test]
fn a_missing_variable_behind_an_optional_key_only_drops_the_key() {
    for (file, variable, key) in [("openai.yaml", "OPENAI_ORG_ID", "orgId"), ("meta.yaml", "LLAMA_API_KEY", "apiKey")] {
        let ended = check(&user_file(file), &without(variable));
        assert_eq!(ended.code, Some(0), "{file}: {}", ended.err);
        assert!(ended.out.contains(variable) && ended.out.contains(key), "{}", ended.out);
    }
}

#[test]
fn an_optional_backend_without_its_variable_is_left_out_whether_unset_or_empty() {
    for environment in [&[][..], &[("OPENAI_API_KEY", "")], &[("OPENAI_API_KEY", ""), ("LLAMA_ENDPOINT_URL", "")]] {
        let ended = run(&["check"], environment);
        assert_eq!(ended.code, Some(0), "{environment:?}: {}", ended.err);
        let about: Vec<&str> = ended.out.lines().filter(|line| line.contains("openai-backend")).collect();
        assert!(matches!(about[..], [line] if line.contains("is left out")), "{environment:?}: {}", ended.out);
    }
}

const TWO: &str = "backends:\n  - { name: one, type: simulated }\n  - { name: two, type: simulated }\n";

#[test]
fn each_mistake_is_reported_with_its_path_its_reason_and_the_nearest_valid_word() {
    for (yaml, words) in [
        (format!("{TWO}server: {{ prot: 1 }}\n"), &["server.prot", "`port`"][..]),
        (format!("{TWO}server: {{ drainTimeout: soon }}\n"), &["server.drainTimeout", "`soon`", "30s"]),
        (format!("{TWO}server: {{ port: many }}\n"), &["server.port", "`many`", "65535"]),
        (format!("{TWO}server: {{ port: [1] }}\n"), &["server.port", "single value", "list"]),
        (format!("{TWO}server: {{ maxBody: 3 parsecs }}\n"), &["server.maxBody", "3 parsecs"]),
        (format!("{TWO}server: {{ host: 0.0.0.0 }}\n"), &["auth", "0.0.0.0", "auth: none"]),
        (format!("{TWO}telemetry: {{ accessLog: perhaps }}\n"), &["telemetry.accessLog", "`perhaps`"]),
        (format!("{TWO}telemetry: {{ logs: {{ level: inof }} }}\n"), &["telemetry.logs.level", "`inof`", "`info`"]),
        (format!("{TWO}telemetry: {{ logs: {{ level: 'warn,stagedoor=lots' }} }}\n"), &["telemetry.logs.level", "target=level"]),
        (format!("{TWO}catalogue: {{ opnai/x: {{}} }}\n"), &["catalogue.opnai/x", "did you mean `openai/x`?"]),
        (format!("{TWO}catalogue: {{ azure-openai/x: {{}} }}\n"), &["catalogue.azure-openai/x", "`openai/x`"]),
        (format!("{TWO}catalogue: {{ gpt-5: {{}} }}\n"), &["catalogue.gpt-5", "`type/id`"]),
        (format!("{TWO}catalogue: {{ google/x: {{ like: gemni }} }}\n"), &["catalogue.google/x.like", "`google/gemni`"]),
        (format!("{TWO}auth: {{ keys: [{{ name: a, key: 00123456 }}] }}\n"), &["auth.keys[a].key", "in quotes"]),
        (format!("{TWO}admin: {{ token: 1234567890123456 }}\n"), &["admin.token", "in quotes"]),
        (
            format!("{TWO}auth: {{ keys: [{{ name: a, key: one-key-for-two }}, {{ name: b, key: one-key-for-two }}] }}\n"),
            &["auth.keys[b]", "that of `a` too"],
        ),
        (
            format!("{TWO}auth: {{ keys: [{{ name: a, key: the-first-one }}, {{ name: a, key: the-second-one }}] }}\n"),
            &["auth.keys[a].name", "used twice"],
        ),
        (
            format!("{TWO}  - {{ name: p, type: pool, deadline: 0s, backends: [{{ name: one }}] }}\n"),
            &["backends[p].deadline", "zero"],
        ),
        (
            format!("{TWO}  - {{ name: o, type: openai, config: {{ apiKey: k, defaultModel: 4.10 }} }}\n"),
            &["backends[o].config.defaultModel", "in quotes"],
        ),
        (format!("{TWO}admin: {{ token: '${{A' }}\n"), &["admin.token", "`}`"]),
        (format!("{TWO}telemetry: {{ otlp: {{}} }}\n"), &["telemetry.otlp.endpoint", "required"]),
        (format!("{TWO}telemetry: {{ otlp: {{ endpoint: localhost:4318 }} }}\n"), &["telemetry.otlp.endpoint", "http://"]),
        (
            format!("{TWO}telemetry: {{ otlp: {{ endpoint: 'http://c', interval: 1ms }} }}\n"),
            &["telemetry.otlp.interval", "100ms"],
        ),
        (
            format!("{TWO}telemetry: {{ otlp: {{ endpoint: 'http://c', sampleRatio: 2 }} }}\n"),
            &["telemetry.otlp.sampleRatio", "`2`"],
        ),
        (
            format!("{TWO}telemetry: {{ otlp: {{ endpoint: 'http://c', headers: {{ 'a b': c }} }} }}\n"),
            &["telemetry.otlp.headers.a b", "header"],
        ),
        (format!("{TWO}routes: [{{ name: r, path: /x, backend: twoo }}]\n"), &["routes[r].backend", "`twoo`", "`two`"]),
        (format!("{TWO}routes: [{{ name: r, path: x, backend: one }}]\n"), &["routes[r].path"]),
        (format!("{TWO}routes: [{{ name: r, path: /x }}]\n"), &["routes[r].backend", "required"]),
        (format!("{TWO}  - {{ name: one, type: simulated }}\n"), &["backends[one].name", "twice"]),
        (format!("{TWO}  - {{ name: three, type: simulatd }}\n"), &["backends[three].type", "`simulated`"]),
        (format!("{TWO}  - {{ name: three }}\n"), &["backends[three].type", "required"]),
        (format!("{TWO}  - {{ type: simulated }}\n"), &["backends[2].name", "required"]),
        (
            format!("{TWO}  - {{ name: three, type: openai, config: {{ apiKey: k, tiemout: 3s }} }}\n"),
            &["backends[three].config.tiemout", "`timeout`"],
        ),
        (format!("{TWO}  - {{ name: three, type: openai }}\n"), &["backends[three].config.apiKey", "required"]),
        (
            format!("{TWO}  - {{ name: three, type: openai, config: {{ apiKey: k, endpoint: example.com }} }}\n"),
            &["backends[three].config.endpoint", "https://"],
        ),
        (
            format!("{TWO}  - {{ name: three, type: pool, backends: [{{ name: twoo }}] }}\n"),
            &["backends[three].backends[twoo]", "`two`"],
        ),
        (
            format!(
                "{TWO}  - {{ name: p, type: pool, backends: [{{ name: q }}] }}\n  - {{ name: q, type: pool, backends: [{{ name: p }}] }}\n"
            ),
            &["contains itself", "p -> q -> p"],
        ),
        (format!("{TWO}backends:\n  - {{ name: other, type: simulated }}\n"), &["backends", "duplicate"]),
        ("server: {}\n".to_owned(), &["backends", "required"]),
        ("backends: [\n".to_owned(), &["YAML"]),
        (format!("{TWO}backend: []\n"), &["backend:", "`backends`"]),
    ] {
        let ended = check_text(&yaml, &[]);
        assert_eq!(ended.code, Some(1), "{yaml}{}", ended.out);
        assert!(ended.err.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in {}", ended.err);
        assert!(!ended.err.contains("String(") && !ended.err.contains("panicked"), "{}", ended.err);
    }
    assert_eq!(check_text(&format!("{TWO}server: {{ host: 0.0.0.0 }}\nauth: none\n"), &[]).code, Some(0));
}

#[test]
fn every_mistake_of_a_document_is_reported_at_once() {
    let yaml = "server: { prot: 1, drainTimeout: soon }\n\
                backends:\n  - { name: 'x y', type: simulated }\n  - { type: pool, backends: [] }\n  - { name: one, type: simulated }\n  - { name: one, type: simulated }\n\
                \x20 - { name: p, type: pool, backends: [{ name: p }] }\n\
                \x20 - { name: three, type: openai, config: { apiKey: \"${NOT_SET}\" } }\n\
                routes: [{ name: r, path: /x, backend: nowhere }, { path: /y, backend: one }]\n";
    let ended = check_text(yaml, &[]);
    assert_eq!(ended.code, Some(1));
    for words in [
        &["backends[x y].name", "letters, digits"][..],
        &["backends[1].name", "required"],
        &["no member"],
        &["routes[1].name", "required"],
        &["server.prot", "port"],
        &["server.drainTimeout", "soon"],
        &["backends[three].config.apiKey", "NOT_SET"],
        &["backends[one].name", "twice"],
        &["contains itself"],
        &["routes[r].backend", "nowhere"],
    ] {
        assert!(ended.err.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in {}", ended.err);
    }
}

#[test]
fn a_file_that_is_not_there_and_a_variable_that_is_no_key_are_refused() {
    let ended = run(&["check", "--config", "/nowhere/stagedoor.yaml"], &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("/nowhere/stagedoor.yaml"), "{}", ended.err);
    let ended = run(&["check"], &[("STAGEDOOR__SERVER__PROT", "1")]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("STAGEDOOR__SERVER__PROT") && ended.err.contains("PORT"), "{}", ended.err);
    let ended = run(&["check"], &[("STAGEDOOR__SERVER__PORT", "many")]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("many"), "{}", ended.err);
}

/// Whether a JSON Schema, as far as ours goes, accepts a value; else where it does not.
fn accepts(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("{path}: {why}: {value}"));
    for (word, least) in [("anyOf", 1), ("oneOf", 1)] {
        if let Some(options) = schema[word].as_array() {
            let results: Vec<_> = options.iter().map(|option| accepts(option, value, path)).collect();
            let fitting = results.iter().filter(|result| result.is_ok()).count();
            if fitting < least || (word == "oneOf" && fitting > 1) {
                return Err(format!("{path}: {fitting} of {word} fit {value}: {results:?}"));
            }
        }
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return refuse("not the constant");
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return refuse("not one of the words");
    }
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        other => panic!("unknown type {other}"),
    };
    match &schema["type"] {
        Value::Null => {}
        Value::Array(kinds) if kinds.iter().any(is) => {}
        kind @ Value::String(_) if is(kind) => {}
        kind => return refuse(&format!("not of type {kind}")),
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        if let Some(items) = schema.get("items") {
            accepts(items, item, &format!("{path}[{index}]"))?;
        }
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        if value.get(required.as_str().unwrap()).is_none() {
            return refuse(&format!("lacks {required}"));
        }
    }
    if schema["type"] == "object" {
        for (name, inner) in value.as_object().into_iter().flatten() {
            let inner_path = format!("{path}.{name}");
            match schema["properties"].get(name).or_else(|| schema.get("additionalProperties").filter(|more| more.is_object())) {
                Some(known) => accepts(known, inner, &inner_path)?,
                None if schema["additionalProperties"] == false => return Err(format!("{inner_path}: unknown")),
                None => {}
            }
        }
    }
    Ok(())
}

fn document(file: &Path) -> Value {
    let source = config::File::from(file).format(config::FileFormat::Yaml);
    config::Config::builder().add_source(source).build().unwrap().try_deserialize().unwrap()
}

#[test]
fn the_schema_accepts_the_default_and_the_users_files_and_refuses_a_wrong_key() {
    let ended = run(&["schema"], &[]);
    assert_eq!(ended.code, Some(0));
    let schema: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("settings/stagedoor.yaml");
    let users = std::fs::read_dir(user_file("")).unwrap().map(|entry| entry.unwrap().path());
    for file in users.chain([default]) {
        assert_eq!(accepts(&schema, &document(&file), &file.display().to_string()), Ok(()));
    }
    for wrong in [
        json!({ "server": { "prot": 1 }, "backends": [] }),
        json!({ "server": {} }),
        json!({ "backends": [{ "name": "a", "type": "unheard-of" }] }),
        json!({ "backends": [{ "name": "a", "type": "openai", "config": { "tiemout": "3s", "apiKey": "k" } }] }),
    ] {
        assert!(accepts(&schema, &wrong, "").is_err(), "{wrong}");
    }
}

/// A running gateway.
struct Running {
    child: Child,
    address: SocketAddr,
    printed: Arc<Mutex<String>>,
}

impl Running {
    /// Starts with a configuration, and waits until it says where it listens.
    fn start(yaml: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = written(&folder, yaml);
        Self::spawn(stagedoor(&["--config", file.to_str().unwrap()], environment))
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let printed = Arc::new(Mutex::new(String::new()));
        let (tell, told) = std::sync::mpsc::channel();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for output in outputs {
            let (printed, tell) = (Arc::clone(&printed), tell.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let address =
                        serde_json::from_str::<Value>(&line).ok().and_then(|line| line["address"].as_str()?.parse().ok());
                    if let Some(address) = address {
                        let _ = tell.send(address);
                    }
                    printed.lock().unwrap().push_str(&format!("{line}\n"));
                }
            });
        }
        drop(tell);
        match told.recv_timeout(PATIENCE) {
            Ok(address) => Self { child, address, printed },
            Err(_) => panic!("it does not listen: {}", printed.lock().unwrap()),
        }
    }

    /// Starts one that does not say where it listens, and waits until it does.
    async fn start_quiet(yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = written(&folder, yaml);
        let port: u16 = yaml.split("port: ").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = stagedoor(&["--config", file.to_str().unwrap()], &[]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
        let printed = Arc::new(Mutex::new(String::new()));
        let (out, all) = (child.stdout.take().expect("piped"), Arc::clone(&printed));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                all.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        eventually("it listens", || async { TcpStream::connect(address).await.is_ok() }).await;
        Self { child, address, printed }
    }

    async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("it accepts");
        stream.write_all(request(method, path, headers, body).as_bytes()).await.unwrap();
        stream
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        reply(&mut self.open(method, path, headers, body).await).await
    }

    async fn chat(&self, model: &str, text: &str) -> Reply {
        self.send(
            "POST",
            "/v1/chat/completions",
            &[("content-type", "application/json")],
            &chat_body(model, text, false).to_string(),
        )
        .await
    }

    async fn open_stream(&self, model: &str, text: &str) -> TcpStream {
        let body = chat_body(model, text, true).to_string();
        self.open("POST", "/v1/chat/completions", &[("content-type", "application/json")], &body).await
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for the process to end; returns how, and when that was.
    async fn ended(&mut self) -> (ExitStatus, Instant) {
        let looking = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return (status, Instant::now());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("the process ends")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

async fn reply(stream: &mut TcpStream) -> Reply {
    let head = read_head(stream).await;
    let body = read_body(stream, &head).await;
    Reply { status: head.status, headers: head.headers, body }
}

#[tokio::test]
async fn the_default_configuration_answers_without_any_key() {
    // Within the source tree its file is read; anywhere else the copy within the binary is.
    let elsewhere = tempfile::tempdir().unwrap();
    for folder in [Path::new(env!("CARGO_MANIFEST_DIR")), elsewhere.path()] {
        let mut command = stagedoor(&[], &[("STAGEDOOR__SERVER__PORT", "0")]);
        let running = Running::spawn({
            command.current_dir(folder);
            command
        });
        let reply = running.chat("gpt-4o", "hello there").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("x-stagedoor-simulated"), Some("true"));
        let mut stream = running.open_stream("gpt-4o", "hello there").await;
        assert_eq!(read_head(&mut stream).await.status, 200);
        let (body, in_order) = drain_body(&mut stream).await;
        assert!(in_order);
        assert_eq!(events(&body).last().unwrap(), "[DONE]");
        assert_eq!(running.send("GET", "/health", &[], "").await.status, 200);
        assert_eq!(running.send("GET", "/ready", &[], "").await.status, 200);
    }
}

#[tokio::test]
async fn variables_override_the_file_without_regard_to_case() {
    let yaml = "server: { port: 1, drainGrace: 10s }\nbackends:\n  - { name: up, type: simulated }\n";
    let environment = [
        ("STAGEDOOR__SERVER__PORT", "0"),
        ("STAGEDOOR__server__drainGrace", "50ms"),
        ("STAGEDOOR__SERVER__MAXBODY", "1KiB"),
        ("STAGEDOOR__ADMIN__TOKEN", "operators-only"),
    ];
    let mut running = Running::start(yaml, &environment);
    assert_ne!(running.address.port(), 1);
    assert_eq!(running.send("GET", "/admin/api/state", &[], "").await.status, 401);
    let token = [("authorization", "Bearer operators-only")];
    assert_eq!(running.send("GET", "/admin/api/state", &token, "").await.status, 200);
    assert_eq!(running.chat("up", &"long ".repeat(1_000)).await.status, 413);
    let start = Instant::now();
    running.signal("TERM");
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(at - start < Duration::from_secs(5));
}

#[tokio::test]
async fn the_variable_stagedoor_config_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(&folder, "server: { port: 0 }\nbackends:\n  - { name: only-here, type: simulated }\n");
    let running = Running::spawn(stagedoor(&[], &[("STAGEDOOR_CONFIG", file.to_str().unwrap())]));
    let models = running.send("GET", "/v1/models", &[], "").await;
    assert!(models.text().contains("only-here"), "{}", models.text());
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let ended = run(&[], &[("STAGEDOOR__SERVER__PORT", &port)]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("server.port") && ended.err.contains(&port), "{}", ended.err);
}

#[tokio::test]
async fn the_stand_alone_simulator_answers_in_each_dialect_and_stops_in_order() {
    let chat = chat_body("any", "one two", false);
    let mut limited = chat.clone();
    limited["max_tokens"] = json!(100);
    let contents = json!({ "contents": [{ "role": "user", "parts": [{ "text": "one two" }] }] });
    for (dialect, path, body, place) in [
        ("openai", "/v1/chat/completions", &chat, "/choices/0/message/content"),
        ("anthropic", "/v1/messages", &limited, "/content/0/text"),
        ("google", "/v1beta/models/any:generateContent", &contents, "/candidates/0/content/parts/0/text"),
    ] {
        let behaviour = r#"{"firstToken":"1ms","tokens":5}"#;
        let mut command = stagedoor(&["simulate", "--dialect", dialect, "--port", "0", "--behaviour", behaviour], &[]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address: SocketAddr = line.trim().trim_start_matches("listening on http://").trim_end_matches("/v1").parse().unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let sent = request("POST", path, &[("content-type", "application/json")], &body.to_string());
        stream.write_all(sent.as_bytes()).await.unwrap();
        let reply = reply(&mut stream).await;
        assert_eq!(reply.json().pointer(place), Some(&json!(simulated_answer("one two", 5))), "{dialect}");
        let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[tokio::test]
async fn secrets_are_printed_nowhere() {
    const SECRETS: [&str; 5] =
        ["sk-secret-upstream", "secret-header-value", "secret-client-key", "secret-admin-token", "secret-question"];
    let provider = Provider::start(|request, mut wire| async move {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        if text.contains("refuse") {
            let key = request.head.header("authorization").unwrap_or_default().to_owned();
            let error = json!({ "error": { "message": format!("Incorrect API key provided: {key}"), "type": "invalid_request_error", "code": "invalid_api_key" } });
            wire.json(401, &error).await;
        } else if text.contains("blame") {
            let key = request.head.header("authorization").unwrap_or_default().to_owned();
            wire.json(400, &json!({ "error": { "message": format!("bad, {key}"), "type": "invalid_request_error" } })).await;
        } else if text.contains("break") {
            wire.begin_stream().await;
            wire.chunk(&word_event("one")).await;
            return None;
        } else {
            wire.json(200, &crate::support::completion("fine")).await;
        }
        Some(wire)
    })
    .await;
    let yaml = format!(
        "server: {{ port: 0, workers: 1, drainGrace: 50ms }}\nadmin: {{ token: \"${{ADMIN}}\" }}\n\
         auth: {{ keys: [{{ name: app, key: \"${{CLIENT}}\" }}] }}\n\
         telemetry: {{ logs: {{ level: trace }} }}\n\
         backends:\n  - {{ name: up, type: openai, config: {{ apiKey: \"${{UPSTREAM}}\", endpoint: \"{}\", defaultModel: m, \
         headers: {{ x-extra: \"${{HEADER}}\" }} }} }}\n",
        provider.endpoint()
    );
    let environment = [("UPSTREAM", SECRETS[0]), ("HEADER", SECRETS[1]), ("CLIENT", SECRETS[2]), ("ADMIN", SECRETS[3])];
    let mut running = Running::start(&yaml, &environment);
    let client = [("content-type", "application/json"), ("authorization", "Bearer secret-client-key")];
    let operator = [("authorization", "Bearer secret-admin-token")];
    let mut seen = String::new();
    for (text, stream) in [("fine", false), ("refuse", false), ("blame", false), ("break", true)] {
        let body = chat_body("up", &format!("{text} secret-question"), stream).to_string();
        let reply = running.send("POST", "/v1/chat/completions", &client, &body).await;
        seen.push_str(&format!("{:?}{}", reply.headers, reply.text()));
    }
    let wrong = [("content-type", "application/json"), ("authorization", "Bearer secret-client-keyX")];
    let refused = running.send("POST", "/v1/chat/completions", &wrong, "{}").await;
    assert_eq!(refused.status, 401);
    seen.push_str(&refused.text());
    for path in ["/admin/api/state", "/admin/api/requests", "/v1/models"] {
        let headers = if path.starts_with("/v1") { &client[1..] } else { &operator };
        let reply = running.send("GET", path, headers, "").await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        seen.push_str(&reply.text());
    }
    let sent = provider.requests();
    assert_eq!(sent[0].head.header("authorization"), Some("Bearer sk-secret-upstream"));
    assert_eq!(sent[0].head.header("x-extra"), Some("secret-header-value"));
    running.signal("TERM");
    running.ended().await;
    seen.push_str(&running.printed.lock().unwrap());

    let bad = format!("{yaml}servr: 1\n");
    for environment in [&environment[..], &environment[1..], &[("UPSTREAM", "sk-secret-upstream with-space")]] {
        let ended = check_text(&bad, environment);
        assert_eq!(ended.code, Some(1));
        seen.push_str(&format!("{}{}", ended.out, ended.err));
    }
    for secret in SECRETS {
        let place = seen.find(secret).map(|at| seen[at.saturating_sub(300)..at + 40].to_owned());
        assert_eq!(place, None, "{secret}");
    }
}

#[tokio::test]
async fn the_access_line_is_whole_whatever_else_is_logged() {
    for level in ["warn", "off", "warn,access=info"] {
        let mut running = Running::start_quiet(&format!(
            "server: {{ port: {}, workers: 1, drainGrace: 50ms }}\ntelemetry: {{ logs: {{ level: '{level}' }} }}\n\
             backends:\n  - {{ name: up, type: simulated }}\n",
            free_port()
        ))
        .await;
        assert_eq!(running.chat("up", "hi").await.status, 200);
        running.signal("TERM");
        running.ended().await;
        let printed = running.printed.lock().unwrap().clone();
        let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let access = lines.iter().find(|line| line["target"] == "access" && line["request"]["path"] == "/v1/chat/completions");
        let request = &access.unwrap_or_else(|| panic!("{level}: {printed}"))["request"];
        assert_eq!((&request["status"], &request["outcome"]), (&json!(200), &json!("served")), "{level}: {printed}");
        assert!(request["request_id"].is_string() && request["backend"] == "up", "{level}: {printed}");
    }
}

#[tokio::test]
async fn every_request_has_one_access_line_unless_it_is_switched_off() {
    for (setting, expected) in [("", 1), (", accessLog: false", 0)] {
        let mut running = Running::start_quiet(&format!(
            "server: {{ port: {}, workers: 1, drainGrace: 50ms }}\ntelemetry: {{ logs: {{ format: json }}{setting} }}\n\
             auth: {{ keys: [ {{ name: app, key: sk-a-long-enough-key }} ] }}\nbackends:\n  - {{ name: up, type: simulated }}\n",
            free_port()
        ))
        .await;
        for (method, path) in
            [("GET", "/v1/models"), ("GET", "/v1/models/up"), ("POST", "/v1/chat/completions"), ("GET", "/v1/none")]
        {
            assert_eq!(running.send(method, path, &[], "").await.status, 401, "{path}");
        }
        running.signal("TERM");
        running.ended().await;
        let printed = running.printed.lock().unwrap().clone();
        let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for path in ["/v1/models", "/v1/models/up", "/v1/chat/completions", "/v1/none"] {
            let own = lines.iter().filter(|line| line["target"] == "access" && line["request"]["path"] == path);
            assert_eq!(own.count(), expected, "{path}: {printed}");
        }
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_no_request_and_its_losses_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let yaml = format!(
        "server: {{ port: {port}, workers: 1 }}\ntelemetry: {{ logs: {{ format: json }} }}\nbackends:\n  - {{ name: up, type: simulated }}\n"
    );
    let file = written(&folder, &yaml);
    let mut command = stagedoor(&["--config", file.to_str().unwrap()], &[]);
    // Nobody reads what it prints.
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("it listens", || async { TcpStream::connect(address).await.is_ok() }).await;
    let running = Running { child, address, printed: Arc::default() };
    // More lines than wait to be written and than the pipe takes.
    let hundred = "HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut seen, mut answers) = (Vec::new(), 0);
    for _ in 0..120 {
        stream.write_all(hundred.as_bytes()).await.unwrap();
        while seen.windows(4).filter(|end| end == b"\r\n\r\n").count() < 100 {
            let read = timeout(PATIENCE, stream.read_buf(&mut seen)).await.expect("it answers").unwrap();
            assert!(read > 0, "it closed after {answers} answers");
        }
        answers += 100;
        assert_eq!(seen.windows(12).filter(|begin| begin == b"HTTP/1.1 200").count(), 100);
        seen.clear();
    }
    assert_eq!(running.chat("up", "hi").await.status, 200);
    let lost = async || {
        let metrics = running.send("GET", "/metrics", &[], "").await.text();
        let line = metrics.lines().find(|line| line.starts_with("stagedoor_log_lines_lost_total ")).map(str::to_owned);
        line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    eventually("losses are counted", || async { lost().await >= 1_000.0 }).await;
    let is_told = async || running.send("GET", "/admin/api/state", &[], "").await.text().contains("\"kind\":\"log-lost\"");
    eventually("the timeline tells of it", is_told).await;
}

/// Resident memory of a process, in KiB.
fn resident(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn readers_that_stop_and_watchers_that_never_read_hold_little_memory() {
    let (provider, written) = crate::streams::plenty(1 << 40).await;
    // Large states for those who watch.
    let many: String = (0..200).map(|n| format!("  - {{ name: idle-{n}, type: simulated }}\n")).collect();
    let running = Running::start(
        &format!(
            "server: {{ port: 0, workers: 1 }}\ntelemetry: {{ accessLog: false, logs: {{ format: json }} }}\nbackends:\n{}{many}",
            crate::support::backend("up", &provider.endpoint(), "clientStall: 10m")
        ),
        &[],
    );
    let mut held = Vec::new();
    let mut before = 0;
    for number in 0..21 {
        held.push(running.open_stream("up", "hi").await);
        held.push(running.open("GET", "/admin/api/events", &[], "").await);
        if number == 0 {
            // What the first of each kind sets up is not theirs.
            crate::streams::settled(&written).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            before = resident(&running);
        }
    }
    crate::streams::settled(&written).await;
    // States go on being made for watchers.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let more = resident(&running).saturating_sub(before);
    // What lies in the kernel's buffers is not counted here.
    assert!(more < 40 * 500, "{more} KiB more than {before} KiB");
    assert_eq!(running.chat("idle-1", "hi").await.status, 200);
}

#[tokio::test]
async fn a_gigabyte_of_stream_comes_through_whole_and_holds_little_memory() {
    const BYTES: usize = 1 << 30;
    let (provider, written) = crate::streams::plenty(BYTES).await;
    let running = Running::start(
        &format!("server: {{ port: 0, workers: 1 }}\nbackends:\n{}", crate::support::backend("up", &provider.endpoint(), "")),
        &[],
    );
    let mut client = running.open_stream("up", "hi").await;
    let (mut read, mut tail, mut buffer) = (0, Vec::new(), vec![0; 1 << 20]);
    let (mut least, mut most) = (u64::MAX, 0);
    while !tail.ends_with(b"\r\n0\r\n\r\n") {
        let got = timeout(PATIENCE, client.read(&mut buffer)).await.expect("more comes").unwrap();
        assert!(got > 0, "the stream is cut after {read} bytes");
        // Looked at every 16 MiB or so, once it runs.
        if (read >> 24) != ((read + got) >> 24) {
            let held = resident(&running);
            (least, most) = (least.min(held), most.max(held));
        }
        read += got;
        tail.extend_from_slice(&buffer[..got]);
        tail.drain(..tail.len().saturating_sub(64));
    }
    assert!(read > BYTES && written.load(Ordering::SeqCst) >= BYTES, "{read}");
    assert!(String::from_utf8_lossy(&tail).contains("[DONE]"));
    assert!(most - least < 16 << 10, "{least} to {most} KiB");
}

#[tokio::test]
async fn providers_are_trusted_by_the_systems_certificates() {
    let provider = crate::network::TlsProvider::start("localhost", &["h2", "http/1.1"]).await;
    let yaml = format!(
        "server: {{ port: 0, workers: 1 }}\ntelemetry: {{ logs: {{ format: json }} }}\nbackends:\n{}",
        crate::support::backend("up", &provider.endpoint(), "")
    );
    let trusted = Running::start(&yaml, &[("SSL_CERT_FILE", provider.ca.path().to_str().unwrap())]);
    let reply = trusted.chat("up", "hi").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let reply = Running::start(&yaml, &[]).chat("up", "hi").await;
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains("its issuer is not trusted; name it in caFile"), "{}", reply.text());
}

#[tokio::test]
async fn the_log_for_people_is_plain_text_where_it_goes_to_a_file() {
    let port = free_port();
    let mut running = Running::start_quiet(&format!(
        "server: {{ port: {port}, workers: 1, drainGrace: 50ms }}\ntelemetry: {{ logs: {{ format: pretty }} }}\n\
         backends:\n  - {{ name: up, type: simulated }}\n",
    ))
    .await;
    assert_eq!(running.chat("up", "hi").await.status, 200);
    running.signal("TERM");
    running.ended().await;
    let printed = running.printed.lock().unwrap().clone();
    assert!(printed.contains("INFO") && printed.contains("outcome=\"served\""), "{printed}");
    assert!(!printed.contains('\u{1b}'), "{printed}");
}

#[tokio::test]
async fn each_act_of_an_operator_is_logged_with_who_and_what_came_of_it() {
    let mut running = Running::start(
        "server: { port: 0, workers: 1, drainGrace: 50ms }\nadmin: { token: the-admin-token, readToken: the-read-token }\n\
         backends:\n  - { name: up, type: simulated }\n  - { name: p, type: pool, backends: [{ name: up, weight: 2 }] }\n",
        &[],
    );
    let operator = ("authorization", "Bearer the-admin-token");
    let json = ("content-type", "application/json");
    let mut expected = Vec::new();
    for (method, path, body, status, act) in [
        ("POST", "backends/up/restart?wait=1", "", 200, "restart"),
        ("POST", "backends/up/drain?wait=1", "", 200, "drain"),
        // What is done already is done again, and told as well.
        ("POST", "backends/up/drain?wait=1", "", 200, "drain"),
        ("POST", "backends/up/resume", "", 200, "resume"),
        ("POST", "backends/up/reset", "", 200, "reset"),
        ("POST", "backends/up/weight?weight=3", "", 200, "weight"),
        ("DELETE", "requests/nobodys", "", 404, "cancel"),
        ("POST", "session", r#"{"token":"the-admin-token"}"#, 200, "login"),
    ] {
        let reply = running.send(method, &format!("/admin/api/{path}"), &[operator, json], body).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
        if path.ends_with("wait=1") {
            // Written where it ends, whether somebody still waits for it or not.
            expected.push(format!("{act}-completed"));
        }
        expected.push(act.to_owned());
    }
    let reader = [("authorization", "Bearer the-read-token")];
    assert_eq!(running.send("POST", "/admin/api/backends/up/reset", &reader, "").await.status, 403);
    let guess = [("authorization", "Bearer a-guess")];
    assert_eq!(running.send("POST", "/admin/api/backends/up/reset", &guess, "").await.status, 401);
    running.signal("TERM");
    running.ended().await;
    let printed = running.printed.lock().unwrap().clone();
    let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let audit: Vec<&Value> = lines.iter().filter(|line| line["target"] == "audit").collect();
    let acts: Vec<_> = audit.iter().filter_map(|line| line["act"].as_str()).filter(|act| !act.ends_with("-requested")).collect();
    assert_eq!(acts, expected, "{printed}");
    for line in audit.iter().filter(|line| line["backend"] == "up") {
        assert!(line["by"].as_str().is_some_and(|by| by.contains("127.0.0.1")), "{line}");
        assert!(line["time"].is_string(), "{line}");
        let is_end = line["act"].as_str().is_some_and(|act| act.ends_with("-completed"));
        assert!(line["result"].as_str().is_some_and(|result| result.starts_with('{') || is_end), "{line}");
    }
    let refused: Vec<&&Value> = audit.iter().filter(|line| line["message"] == "an act was refused").collect();
    assert!(
        matches!(refused[..], [line] if line["path"] == "/admin/api/backends/up/reset" && line["by"].is_string()),
        "{refused:?}"
    );
    assert_eq!(audit.last().unwrap()["message"], "a wrong admin token was refused");
    assert!(
        !printed.contains("the-admin-token") && !printed.contains("the-read-token") && !printed.contains("a-guess"),
        "{printed}"
    );
}

const SLOW: &str =
    "backends:\n  - { name: up, type: simulated, config: { firstToken: 10ms, tokensPerSecond: 10, tokens: 25 } }\n";

#[tokio::test]
async fn on_sigterm_a_stream_finishes_while_nothing_new_is_taken() {
    let mut running = Running::start(&format!("{SLOW}server: {{ port: 0, workers: 2, drainGrace: 600ms }}\n"), &[]);
    let mut kept = running.open("GET", "/ready", &[], "").await;
    assert_eq!(reply(&mut kept).await.status, 200);
    let mut stream = running.open_stream("up", "to the end").await;
    assert_eq!(read_head(&mut stream).await.status, 200);
    read_chunk(&mut stream).await.unwrap();

    running.signal("TERM");
    eventually("it is not ready", || async { running.send("GET", "/ready", &[], "").await.status == 503 }).await;
    assert_eq!(running.send("GET", "/health", &[], "").await.status, 200, "it lives");
    let taken = running.chat("up", "within the grace").await;
    assert_eq!(taken.status, 200, "within the grace new requests are served: {}", taken.text());
    assert_eq!(taken.header("connection"), Some("close"));
    eventually("new connections are refused", || async { TcpStream::connect(running.address).await.is_err() }).await;
    assert!(running.child.try_wait().unwrap().is_none(), "the stream keeps it running");

    let (body, in_order) = drain_body(&mut stream).await;
    let finished = Instant::now();
    assert!(in_order);
    assert_eq!(events(&body).last().unwrap(), "[DONE]");
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(at - finished < Duration::from_millis(500), "it does not linger: {:?}", at - finished);
}

#[tokio::test]
async fn an_idle_process_ends_as_soon_as_the_grace_is_over() {
    let mut running = Running::start(&format!("{SLOW}server: {{ port: 0, drainGrace: 200ms }}\n"), &[]);
    let mut kept = running.open("GET", "/ready", &[], "").await;
    assert_eq!(reply(&mut kept).await.status, 200);
    let start = Instant::now();
    running.signal("TERM");
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    let took = at - start;
    assert!(
        (Duration::from_millis(200)..Duration::from_millis(900)).contains(&took),
        "an idle connection does not hold it: {took:?}"
    );
}

#[tokio::test]
async fn the_drain_timeout_ends_what_is_left_with_the_error_event() {
    let yaml = format!("{SLOW}server: {{ port: 0, workers: 1, drainGrace: 50ms, drainTimeout: 400ms }}\n");
    let mut running = Running::start(&yaml, &[]);
    let mut stream = running.open_stream("up", "cut").await;
    assert_eq!(read_head(&mut stream).await.status, 200);
    let start = Instant::now();
    running.signal("TERM");
    let (body, in_order) = drain_body(&mut stream).await;
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    let took = at - start;
    assert!((Duration::from_millis(400)..Duration::from_millis(1_500)).contains(&took), "{took:?}");
    assert!(in_order, "the body ends in order, so that the event is delivered");
    let last: Value = serde_json::from_str(events(&body).last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_hold_the_process_beyond_the_drain_timeout() {
    let yaml = "backends:\n  - { name: up, type: simulated, config: { firstToken: 1ms, tokensPerSecond: 1000000, tokens: 40000 } }\n\
                server: { port: 0, workers: 1, drainGrace: 50ms, drainTimeout: 400ms }\n";
    let mut running = Running::start(yaml, &[]);
    let _stream = running.open_stream("up", "never read").await;
    eventually("it is in flight", || async {
        running.send("GET", "/admin/api/requests", &[], "").await.json()["in_flight"][0]["phase"] == "streaming"
    })
    .await;
    let start = Instant::now();
    running.signal("TERM");
    let (status, at) = running.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(at - start < Duration::from_secs(2), "{:?}", at - start);
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM"), ("TERM", "INT"), ("HUP", "QUIT"), ("QUIT", "TERM")] {
        let mut running = Running::start(&format!("{SLOW}server: {{ port: 0, workers: 1 }}\n"), &[]);
        let mut stream = running.open_stream("up", "cut").await;
        assert_eq!(read_head(&mut stream).await.status, 200);
        running.signal(first);
        eventually("it drains", || async { running.send("GET", "/ready", &[], "").await.status == 503 }).await;
        let start = Instant::now();
        running.signal(second);
        let (body, in_order) = drain_body(&mut stream).await;
        let (status, at) = running.ended().await;
        assert_ne!(status.code(), Some(0));
        assert!(at - start < Duration::from_millis(800), "{:?}", at - start);
        assert!(in_order, "the client is told");
        assert!(events(&body).last().unwrap().contains("shutdown"), "{body:?}");
        let printed = running.printed.lock().unwrap().clone();
        let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let outcomes: Vec<_> = lines.iter().filter_map(|line| line["request"]["outcome"].as_str()).collect();
        assert_eq!(outcomes, ["cut"], "{printed}");
    }
}

#[tokio::test]
async fn top_prints_the_state_once_where_there_is_no_terminal() {
    let yaml = "server: { port: 0 }\nadmin: { token: the-admin-token, readToken: the-read-token }\nbackends:\n  - { name: up, type: simulated }\n";
    let running = Running::start(yaml, &[]);
    assert_eq!(running.chat("up", "hi").await.status, 200);
    let url = format!("http://{}", running.address);
    for token in ["the-admin-token", "the-read-token"] {
        let ended = run(&["top", "--url", &url, "--once"], &[("STAGEDOOR_ADMIN_TOKEN", token)]);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        for part in ["SERVING", "1 backend, 0 down", "up ", "well", "in flight"] {
            assert!(ended.out.contains(part), "{part}: {}", ended.out);
        }
        assert!(!ended.out.contains('\u{1b}') && !ended.out.contains(token), "{}", ended.out);
    }
    let refused = run(&["top", "--url", &url, "--token", "wrong"], &[]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("401: the admin token is wrong"), "{}", refused.err);
    let nobody = run(&["top", "--url", "http://127.0.0.1:1"], &[]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.contains("no answer"), "{}", nobody.err);
}

#[tokio::test]
async fn top_follows_a_gateway_in_a_terminal_and_leaves_it_as_it_was() {
    let mut running = Running::start("server: { port: 0 }\nbackends:\n  - { name: up, type: simulated }\n", &[]);
    let shell = format!("stty cols 140 rows 40; exec {} top --url http://{}", env!("CARGO_BIN_EXE_stagedoor"), running.address);
    let mut command = Command::new("script");
    command.args(["-qfec", &shell, "/dev/null"]).env("TERM", "xterm-256color");
    let mut top = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a terminal");
    let screen = Arc::new(Mutex::new(String::new()));
    let (mut out, seen) = (top.stdout.take().unwrap(), Arc::clone(&screen));
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = out.read(&mut piece) {
            seen.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    });
    let shows = |text: &'static str| {
        let screen = Arc::clone(&screen);
        eventually(text, move || {
            let shown = screen.lock().unwrap().contains(text);
            async move { shown }
        })
    };
    shows("UNKNOWN").await;
    assert_eq!(running.chat("up", "hi").await.status, 200);
    shows("SERVING").await;
    running.child.kill().unwrap();
    shows("NOT LIVE").await;
    std::io::Write::write_all(top.stdin.as_mut().unwrap(), b"q").unwrap();
    assert_eq!(top.wait().unwrap().code(), Some(0));
    assert!(screen.lock().unwrap().contains("\u{1b}[?1049l"), "the screen is given back");
}
