//! The page in a terminal.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::{Running, run};
use crate::support::eventually;

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
