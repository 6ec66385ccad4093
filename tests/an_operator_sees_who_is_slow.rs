//! `fanfare top` and the admin socket of a running server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test may panic")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Client, Server, Settings, wait_until};
use serde_json::Value;

fn top(server: &Server, flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["top", "--data-dir"])
        .arg(server.data_dir())
        .args(flags)
        .output()
        .unwrap()
}

fn json(server: &Server) -> Value {
    let out = top(server, &["--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn a_member_that_does_not_read_is_named_with_its_state() {
    let settings = Settings::shards(2).set("stall_timeout_ms", 30_000);
    let settings = settings.set("socket_send_buffer", 4096).set("retention_bytes", 64 << 20);
    let server = Server::start(settings);
    let mut sleeper = Client::on_shard(&server, 0, "sleeper");
    let handle = sleeper.join("chat").handle;
    let mut publisher = Client::open(&server, "publisher");
    let payload = vec![b'x'; 50_000];
    // More than the kernel takes for somebody who does not read.
    for _ in 0..200 {
        publisher.publish("chat", &payload);
    }
    wait_until("being called stalled", || json(&server)["total"]["members_stalled"] == 1);
    let answer = json(&server);
    let shards = answer["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 2);
    assert_eq!(answer["silent_shards"], Value::Array(vec![]));
    assert_eq!(answer["total"]["messages"], 200);
    let slowest = shards[0]["slowest"].as_array().unwrap();
    assert_eq!(slowest[0]["member"], "sleeper");
    assert_eq!((&slowest[0]["state"], &slowest[0]["tripped"]), (&"stalled".into(), &true.into()));
    assert!(slowest[0]["lag_messages"].as_u64().unwrap() > 0);
    let text = String::from_utf8(top(&server, &[]).stdout).unwrap();
    assert!(text.contains("stalled  last") && text.contains("sleeper"), "{text}");
    drop(sleeper);
    wait_until("its going", || json(&server)["total"]["members_tripped"] == 0);
    let _ = handle;
}

#[test]
fn the_socket_is_the_owners_alone_and_goes_with_the_server() {
    let mut server = Server::start(Settings::shards(1));
    let path = server.data_dir().join("admin.sock");
    wait_until("the socket", || path.exists());
    let meta = fs::metadata(&path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    server.stop();
    assert!(!path.exists());
    let out = top(&server, &[]);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains("admin.sock") && text.contains("running"));
    // A crash leaves the file behind; the next start takes its place.
    server.restart();
    wait_until("the socket", || path.exists());
    server.kill();
    assert!(path.exists());
    server.restart();
    // The file of the crashed one is there until the new one has its own.
    wait_until("an answer", || top(&server, &["--json"]).status.success());
    assert_eq!(json(&server)["total"]["messages"], 0);
}

#[test]
fn who_says_nothing_or_nonsense_does_not_keep_others_from_an_answer() {
    let server = Server::start(Settings::shards(1));
    let path = server.data_dir().join("admin.sock");
    wait_until("the socket", || path.exists());
    let silent = UnixStream::connect(&path).unwrap();
    let mut nonsense = UnixStream::connect(&path).unwrap();
    nonsense.write_all(&[0xFF; 4096]).unwrap();
    let mut other = UnixStream::connect(&path).unwrap();
    other.write_all(b"colour\n").unwrap();
    let start = Instant::now();
    assert_eq!(json(&server)["shards"].as_array().unwrap().len(), 1);
    assert!(start.elapsed() < Duration::from_secs(5));
    let mut said = String::new();
    other.read_to_string(&mut said).unwrap();
    assert!(said.contains("error") && said.contains("colour"), "{said}");
    drop(silent);
}

#[test]
fn with_an_interval_it_goes_on_and_shows_rates() {
    let server = Server::start(Settings::shards(1));
    wait_until("the socket", || server.data_dir().join("admin.sock").exists());
    let mut child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["top", "--interval", "50ms", "--data-dir"])
        .arg(server.data_dir())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    let mut out = child.stdout.take().unwrap();
    while !String::from_utf8_lossy(&seen).contains("messages/s") {
        let mut buf = [0; 4096];
        let n = out.read(&mut buf).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buf[..n]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let wrong = top(&server, &["--interval", "soon"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("500ms"));
}
