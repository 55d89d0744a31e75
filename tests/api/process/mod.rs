//! The binary as a process: its command line, its environment, what it prints, and how it ends.

mod check;
mod logs;
mod memory;
mod serve;
mod signals;
mod top;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Reply, chat_body, eventually, read_body, read_head};

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
