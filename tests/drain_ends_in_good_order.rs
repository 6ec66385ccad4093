//! A client that does not close by itself when the server stops learns from its protocol that the
//! connection was ended, and not cut.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::io::{Read, Write};

use common::client::hello_bytes;
use common::tls::{self, Pki};
use common::websocket::{BINARY, BINARY_V1, JSON_V1, TEXT, WebSocket, frame};
use common::{Server, Settings};
use rustls::version::{TLS12, TLS13};

#[test]
fn websockets_get_a_close_after_drain() {
    let mut server = Server::start(Settings::shards(2));
    let mut binary = WebSocket::speaking(&server, BINARY_V1);
    binary.send(&frame(BINARY, &hello_bytes("binary")[4..]));
    let mut json = WebSocket::speaking(&server, JSON_V1);
    let hello =
        br#"{"type":"hello","member":"json","producer":"00000000000000000000000000000001"}"#;
    json.send(&frame(TEXT, hello));
    for ws in [&mut binary, &mut json] {
        ws.frame().expect("WELCOME");
    }
    server.stop();
    for ws in [&mut binary, &mut json] {
        let (_, drain) = ws.frame().expect("DRAIN");
        assert!(!drain.is_empty());
        assert_eq!(ws.closed(), (1001, String::new()));
    }
}

#[test]
fn tls_ends_with_close_notify() {
    let pki = Pki::new();
    let mut server = Server::start(pki.settings(Settings::shards(2)));
    let mut connections = [&TLS12, &TLS13].map(|version| {
        let (mut tls, mut stream) = tls::connect(&server, &pki.client(&[version], false)).unwrap();
        tls.writer().write_all(&hello_bytes("member")).unwrap();
        tls.complete_io(&mut stream).unwrap();
        (tls, stream)
    });
    for (tls, stream) in &mut connections {
        let mut welcome = [0; 8];
        rustls::Stream::new(tls, stream).read_exact(&mut welcome).unwrap();
    }
    server.stop();
    for (tls, stream) in &mut connections {
        // Fails with UnexpectedEof where the end is not announced.
        let mut rest = Vec::new();
        rustls::Stream::new(tls, stream).read_to_end(&mut rest).unwrap();
        assert!(!rest.is_empty(), "DRAIN");
    }
}
