#![allow(clippy::unwrap_used)]
use super::*;

const RIGHT: &str = "GET /chat?x=1 HTTP/1.1\r\nHost: 127.0.0.1:7400\r\nUpgrade: websocket\r\n\
    Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: chat, fanfare.binary.v1\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn judged(request: &str) -> Result<Upgrade, Refused> {
    assert_eq!(request_len(request.as_bytes()).unwrap(), Some(request.len()));
    judge(request.as_bytes(), Rules { origins: &Origins::default(), echo: false, deflate: true })
}

/// The status of the right request with one change.
fn status(from: &str, to: &str) -> u16 {
    let changed = RIGHT.replacen(from, to, 1);
    assert_ne!(changed, RIGHT, "{from:?} is not in the request");
    judged(&changed).err().map_or(101, |refused| refused.status)
}

#[test]
fn the_example_of_the_rfc_is_answered_as_it_says() {
    let mut out = Vec::new();
    judged(RIGHT).unwrap().respond(&mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{text}");
    assert!(text.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{text}");
    assert!(text.contains("\r\nSec-WebSocket-Protocol: fanfare.binary.v1\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\n"));
}

#[test]
fn each_thing_that_is_missing_or_wrong_has_its_status() {
    for (from, to, expected) in [
        ("Upgrade: websocket\r\n", "UPGRADE: h2c, WebSocket\r\n", 101),
        ("Connection: keep-alive, Upgrade", "connection: upgrade", 101),
        ("Version: 13\r\n", "Version: 13\r\nOrigin: http://127.0.0.1:7400\r\n", 101),
        ("Version: 13\r\n", "Version: 13\r\nContent-Length: 0\r\n", 101),
        ("chat, fanfare.binary.v1", "chat\r\nSec-WebSocket-Protocol:fanfare.binary.v1", 101),
        ("GET", "HEAD", 405),
        ("GET", "POST", 405),
        ("GET /chat?x=1 HTTP/1.1", "GET /chat?x=1 HTTP/1.0", 400),
        ("GET /chat?x=1 HTTP/1.1", "GET HTTP/1.1", 400),
        ("Host: 127.0.0.1:7400\r\n", "", 400),
        ("Host: 127.0.0.1:7400\r\n", "Host: a\r\nHost: b\r\n", 400),
        ("Host: 127.0.0.1:7400\r\n", "Host : 127.0.0.1:7400\r\n", 400),
        ("Upgrade: websocket\r\n", "", 426),
        ("Upgrade: websocket\r\n", "Upgrade: websockets\r\n", 426),
        ("Connection: keep-alive, Upgrade\r\n", "", 400),
        ("Version: 13", "Version: 8", 426),
        ("Sec-WebSocket-Version: 13\r\n", "", 426),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQAA", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25*ZQ==", 400),
        ("chat, fanfare.binary.v1", "chat, fanfare.binary.v2", 400),
        ("Sec-WebSocket-Protocol: chat, fanfare.binary.v1\r\n", "", 400),
        ("Version: 13\r\n", "Version: 13\r\nOrigin: http://evil.example\r\n", 403),
        ("Version: 13\r\n", "Version: 13\r\nOrigin: null\r\n", 403),
        ("Version: 13\r\n", "Version: 13\r\nContent-Length: 5\r\n", 400),
        ("Version: 13\r\n", "Version: 13\r\nTransfer-Encoding: chunked\r\n", 400),
    ] {
        assert_eq!(status(from, to), expected, "{from:?} -> {to:?}");
    }
}

#[test]
fn the_echo_is_granted_at_its_path_and_only_where_it_is_served() {
    let at_path = RIGHT.replacen("/chat?x=1", ECHO_PATH, 1);
    let bare = at_path.replacen("Sec-WebSocket-Protocol: chat, fanfare.binary.v1\r\n", "", 1);
    assert_eq!(judged(&bare), Err(Refused::PROTOCOL));
    assert_eq!(judged(&at_path).unwrap().protocol, Protocol::Binary);
    let origins = Origins::default();
    let rules = Rules { origins: &origins, echo: true, deflate: false };
    let echo = judge(bare.as_bytes(), rules).unwrap();
    assert_eq!(echo.protocol, Protocol::Echo);
    let mut out = Vec::new();
    echo.respond(&mut out);
    assert!(!String::from_utf8(out).unwrap().contains("Protocol:"));
    assert_eq!(judge(RIGHT.as_bytes(), rules).unwrap().protocol, Protocol::Binary);
}

#[test]
fn what_is_too_large_has_its_status() {
    // The right request has six fields, and 64 are the most.
    assert_eq!(
        status("Version: 13\r\n", &format!("Version: 13\r\n{}", "a: b\r\n".repeat(58))),
        101
    );
    assert_eq!(
        status("Version: 13\r\n", &format!("Version: 13\r\n{}", "a: b\r\n".repeat(59))),
        431
    );
    let long = RIGHT.replacen("chat?x=1", &"x".repeat(REQUEST_BYTES_MAX), 1);
    assert_eq!(request_len(long.as_bytes()), Err(Refused::TOO_LARGE));
    assert_eq!(request_len(&long.as_bytes()[..REQUEST_BYTES_MAX - 1]), Ok(None));
}

#[test]
fn every_answer_has_the_length_that_it_says() {
    for refused in [
        Refused::TIMEOUT,
        Refused::BUSY,
        Refused::TOO_LARGE,
        Refused::VERSION,
        Refused::NO_UPGRADE,
        Refused::ORIGIN,
        Refused::PROTOCOL,
        Refused::METHOD,
        Refused::bad("why"),
    ] {
        let mut out = Vec::new();
        refused.respond(&mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {} ", refused.status)));
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{text}");
        assert!(head.contains("close\r\n"));
    }
}

#[test]
fn a_request_is_told_from_the_native_magic_by_its_first_bytes() {
    for text in ["G", "GE", "GET", "GET /", "POST", "P", "HEAD", "OPTIONS"] {
        assert!(may_begin(text.as_bytes()), "{text}");
    }
    for text in ["F", "FNFR", "get ", "GETX", "\u{16}\u{3}\u{1}\u{2}", "XYZ"] {
        assert!(!may_begin(text.as_bytes()), "{text}");
    }
}
