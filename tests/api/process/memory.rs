//! Memory under streams.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::Running;
use crate::support::PATIENCE;

/// Resident memory of a process, in KiB.
fn resident(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn readers_that_stop_and_watchers_that_never_read_hold_little_memory() {
    let (provider, written) = crate::readers::plenty(1 << 40).await;
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
            crate::readers::settled(&written).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            before = resident(&running);
        }
    }
    crate::readers::settled(&written).await;
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
    let (provider, written) = crate::readers::plenty(BYTES).await;
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
