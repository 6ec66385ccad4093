//! A run that cannot be made ends with exit code 2 and says what to do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::TcpListener;

use common::{Fault, broadcaster, command, loadgen};

fn fails(line: &str) -> String {
    let output = command(line);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    text
}

#[test]
fn nobody_listens() {
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = fails(&format!("fanout --members 2 --addr {addr}"));
    assert!(text.contains(&addr.to_string()) && text.contains("--spawn"), "{text}");
}

#[test]
fn server_refuses() {
    let run = loadgen(broadcaster(Fault::RefuseHello, 0), "fanout --members 2");
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("no room for more than 7 connections"), "{}", run.stderr);
}

#[test]
fn server_binary_is_missing() {
    let text = fails("fanout --spawn --server-bin /nowhere/fanfare");
    assert!(text.contains("cargo build"), "{text}");
}

#[test]
fn server_ends_at_its_start() {
    let text = fails("fanout --spawn --server-bin /bin/false");
    assert!(text.contains("exit status: 1"), "{text}");
}

#[test]
fn too_few_open_files() {
    let text = fails("fanout --members 5000000");
    assert!(text.contains("RLIMIT_NOFILE") && text.contains("ulimit -n"), "{text}");
}

#[test]
fn flags_that_do_not_fit() {
    assert!(fails("groups --groups 10 --members 5").contains("--members"));
    assert!(fails("fanout --rate 10 --window 5").contains("--window"));
    assert!(fails("fanout --rate 0").contains("--rate"));
    assert!(fails("fanout --cores 4000").contains("4000"));
    assert!(fails("fanout --payload-file /nowhere/lines").contains("/nowhere/lines"));
}
