//! The binary as a process of its own: started with a configuration, asked for its state, killed when dropped.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::books::State;
use crate::client::{Connection, Reply};

/// Longest wait for anything that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Printed lines that are kept to explain a failure.
const KEPT_LINES: usize = 40;

/// A running gateway.
pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
    printed: Arc<Mutex<VecDeque<String>>>,
}

impl Gateway {
    /// Starts with a configuration and waits until it says where it listens.
    pub fn start(yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("stagedoor.yaml");
        std::fs::write(&file, yaml).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_stagedoor"));
        command.arg("--config").arg(&file).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let printed = Arc::new(Mutex::new(VecDeque::new()));
        let (tell, told) = std::sync::mpsc::channel();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for output in outputs {
            let (printed, tell) = (Arc::clone(&printed), tell.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if line.contains("\"address\"") {
                        let address =
                            serde_json::from_str::<Value>(&line).ok().and_then(|line| line["address"].as_str()?.parse().ok());
                        if let Some(address) = address {
                            let _ = tell.send(address);
                        }
                    }
                    let mut printed = printed.lock().unwrap();
                    printed.push_back(line);
                    if printed.len() > KEPT_LINES {
                        printed.pop_front();
                    }
                }
            });
        }
        drop(tell);
        match told.recv_timeout(PATIENCE) {
            Ok(address) => Self { child, address, printed },
            Err(_) => panic!("it does not listen: {:#?}", printed.lock().unwrap()),
        }
    }

    /// Memory it holds, in KiB.
    pub fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs, on Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a running process has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    }

    /// How it ended, if it has, and what it said last.
    pub fn ended(&mut self) -> Option<(ExitStatus, Vec<String>)> {
        let status = self.child.try_wait().unwrap()?;
        Some((status, self.printed.lock().unwrap().iter().cloned().collect()))
    }

    /// Sends a request without a body over a connection of its own.
    pub async fn send(&self, method: &str, path: &str) -> Reply {
        let exchange = async {
            let mut connection = Connection::open(self.address).await?;
            connection.send(method, path, "").await?;
            connection.reply().await
        };
        timeout(PATIENCE, exchange).await.expect("an answer comes in time").expect("an answer is whole")
    }

    /// What the operator sees.
    pub async fn state(&self) -> State {
        let reply = self.send("GET", "/admin/api/state").await;
        serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
    }

    /// What the operator sees once nothing is found amiss with it, or in the end what still is.
    pub async fn settled_state(&self, amiss: impl Fn(&State) -> Vec<String>) -> (State, Vec<String>) {
        let start = Instant::now();
        loop {
            let state = self.state().await;
            let left = amiss(&state);
            if left.is_empty() || start.elapsed() > PATIENCE {
                return (state, left);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
