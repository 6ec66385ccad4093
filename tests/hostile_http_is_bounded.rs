//! What a slow or hostile client of the HTTP interface can do: nothing to others, and to the
//! server a few kilobytes for a bounded time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test may panic")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Http, Settings};

fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let closed = match stream.read(&mut [0; 4096]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).unwrap();
    closed
}

#[test]
fn header_bombs_are_answered_with_431_and_bodies_with_413() {
    let (server, http) = Http::start(Settings::shards(1));
    let rss = server.rss_kib();
    let long = "x".repeat(1 << 20);
    let many: String = (0..10_000).map(|n| format!("h{n}: x\r\n")).collect();
    for headers in [format!("long: {long}\r\n"), many] {
        let mut stream = http.connect();
        let _ = stream.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
        assert_eq!(Http::answer(&mut stream).status, 431);
    }
    let mut stream = http.connect();
    let _ = stream.write_all(format!("GET /{long} HTTP/1.1\r\n").as_bytes());
    // RFC 9110 has 414 for it; what counts is that it is over.
    assert!([414, 431].contains(&Http::answer(&mut stream).status));
    let body = format!(r#"{{"member": "{long}"}}"#);
    assert_eq!(http.post("/api/v1/disconnect", &body).status, 413);
    let deep = "[".repeat(10_000);
    assert!((400..500).contains(&http.post("/api/v1/disconnect", &deep).status));
    assert_eq!(http.get("/healthz").status, 200);
    assert!(server.rss_kib() < rss + 8 * 1024, "{} KiB, {rss} before", server.rss_kib());
}

#[test]
fn nonsense_is_no_request() {
    let (_server, http) = Http::start(Settings::shards(1));
    for bytes in [
        &[0xFF; 4096][..],
        b"FNFR\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nA\0b: c\r\n\r\n",
    ] {
        let mut stream = http.connect();
        stream.write_all(bytes).unwrap();
        let start = Instant::now();
        let status = Http::answer(&mut stream).status;
        assert!(status == 0 || (400..500).contains(&status), "{bytes:?}: {status}");
        assert!(start.elapsed() < Duration::from_secs(15));
    }
    assert_eq!(http.get("/healthz").status, 200);
}

#[test]
fn slow_clients_take_no_place_from_others_and_are_closed_in_time() {
    let (server, http) = Http::start(Settings::shards(1));
    let rss = server.rss_kib();
    let mut slow: Vec<_> = (0..500)
        .map(|n| {
            let mut stream = http.connect();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n").unwrap();
            if n % 100 == 0 {
                let start = Instant::now();
                assert_eq!(http.get("/healthz").status, 200);
                assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
            }
            stream
        })
        .collect();
    assert!(http.metric("fanfare_http_connections", "") <= 64.0);
    assert!(http.metric("fanfare_http_connections_evicted_total", "") >= 400.0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !slow.iter_mut().all(is_closed) {
        assert!(Instant::now() < deadline, "slow connections are still open");
        for stream in &mut slow {
            // A header now and then does not help.
            let _ = stream.write_all(b"X: y\r\n");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(server.rss_kib() < rss + 8 * 1024, "{} KiB, {rss} before", server.rss_kib());
}

#[test]
fn who_does_not_read_the_answers_keeps_nobody_waiting() {
    let (server, http) = Http::start(Settings::shards(2));
    let rss = server.rss_kib();
    let mut deaf = Vec::new();
    for _ in 0..64 {
        let mut stream = http.connect();
        stream.set_nonblocking(true).unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", http.addr);
        // Until nothing more is taken.
        for _ in 0..1_000 {
            if stream.write_all(request.as_bytes()).is_err() {
                break;
            }
        }
        deaf.push(stream);
    }
    let start = Instant::now();
    assert_eq!(http.get("/healthz").status, 200);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(server.rss_kib() < rss + 16 * 1024, "{} KiB, {rss} before", server.rss_kib());
}
