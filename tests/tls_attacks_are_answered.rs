//! What strangers do to a server with TLS, and what each of them gets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use common::tls::{self, Pki};
use common::{Client, Http, Server, Settings, wait_until};
use fanfare::wire::ErrorCode;
use rustix::process::Signal;
use rustls::version::{TLS12, TLS13};

/// What comes until the connection ends.
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(common::SOON)).unwrap();
    let mut got = Vec::new();
    // A reset may overtake the rest.
    let _ = stream.read_to_end(&mut got);
    got
}

const ALERT: u8 = 0x15;

/// The first message of a client.
fn hello(pki: &Pki) -> Vec<u8> {
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut client = rustls::ClientConnection::new(pki.client(&[&TLS13], false), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn openssl_connects_by_both_versions_and_no_other() {
    let pki = Pki::new();
    let server = Server::start(pki.settings(Settings::shards(2)));
    for (flag, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let said = pki.openssl(&server, &[flag]);
        assert!(said.contains("Verification: OK"), "{said}");
        assert!(said.contains(name), "{said}");
    }
    let said = pki.openssl(&server, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(said.contains("alert") && said.contains("Cipher is (NONE)"), "{said}");
    Client::open(&server, "native").ping();
}

#[test]
fn renegotiation_is_refused() {
    let pki = Pki::new();
    let server = Server::start(pki.settings(Settings::shards(1)));
    let mut child = std::process::Command::new("openssl")
        .args(["s_client", "-connect", &server.addr().to_string(), "-tls1_2", "-CAfile"])
        .arg(pki.path("ca.pem"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // A line that is only R asks for it.
    let mut stdin = child.stdin.take().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    stdin.write_all(b"R\n").unwrap();
    std::thread::sleep(Duration::from_millis(1_000));
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(said.contains("no renegotiation"), "{said}");
    Client::open(&server, "native").ping();
}

#[test]
fn without_a_certificate_tls_is_refused_at_once() {
    let pki = Pki::new();
    let server = Server::start(Settings::shards(1));
    let said = pki.openssl(&server, &[]);
    assert!(said.contains("handshake failure"), "{said}");
    Client::open(&server, "native").ping();
}

#[test]
fn garbage_after_the_first_byte_gets_an_alert_and_an_end() {
    let pki = Pki::new();
    let server = Server::start(pki.settings(Settings::shards(1)));
    let mut long = vec![0x16, 3, 1, 0x40, 0];
    long.resize(5 + 0x4000, 1);
    let no_version = [0x16, b'F', b'N', b'F', b'R', 0, 0, 0, 0];
    // A record of 65,535 bytes is longer than any may be.
    let too_long = [0x16, 3, 1, 0xFF, 0xFF, 1, 0, 0, 1];
    let no_hello = [0x16, 3, 1, 0, 4, 2, 0, 0, 0];
    for bytes in [&long[..], &no_version, &too_long, &no_hello] {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.write_all(bytes).unwrap();
        // What can still be waited for does not come.
        stream.shutdown(Shutdown::Write).unwrap();
        let got = rest(&stream);
        assert!(got.is_empty() || got[0] == ALERT, "{got:?}");
    }
    // TLS within TLS is no protocol of this port.
    let (mut tls, mut stream) = tls::connect(&server, &pki.client(&[&TLS13], false)).unwrap();
    tls.writer().write_all(&no_hello).unwrap();
    tls.complete_io(&mut stream).unwrap();
    let mut got = Vec::new();
    let _ = rustls::Stream::new(&mut tls, &mut stream).read_to_end(&mut got);
    assert!(String::from_utf8_lossy(&got).contains("FNFR"), "{got:?}");
    Client::open(&server, "native").ping();
}

#[test]
fn half_open_handshakes_end_by_the_deadline() {
    let pki = Pki::new();
    let settings = Settings::shards(1).set("handshake_timeout_ms", 1_000);
    let server = Server::start(pki.settings(settings));
    let started = Instant::now();
    let hello = hello(&pki);
    // One that says nothing more after its hello, one that stops within it, one that drips.
    let open = || TcpStream::connect(server.addr()).unwrap();
    let (mut silent, mut cut, mut drip) = (open(), open(), open());
    silent.write_all(&hello).unwrap();
    cut.write_all(&hello[..hello.len() / 2]).unwrap();
    let dripping = {
        let mut writer = drip.try_clone().unwrap();
        let hello = hello.clone();
        std::thread::spawn(move || {
            hello.iter().all(|byte| {
                std::thread::sleep(Duration::from_millis(100));
                writer.write_all(&[*byte]).is_ok()
            })
        })
    };
    for stream in [&mut silent, &mut cut, &mut drip] {
        rest(stream);
        assert!(started.elapsed() >= Duration::from_millis(950), "{:?}", started.elapsed());
    }
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(!dripping.join().unwrap());
    // And one that finished its handshake, but says no HELLO, is told.
    let (mut tls, mut stream) = tls::connect(&server, &pki.client(&[&TLS13], false)).unwrap();
    let mut got = Vec::new();
    let _ = rustls::Stream::new(&mut tls, &mut stream).read_to_end(&mut got);
    assert!(String::from_utf8_lossy(&got).contains("HELLO did not come in time"), "{got:?}");
}

#[test]
fn only_clients_with_a_certificate_of_the_authority_are_served() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let server = Server::start(pki.settings_for_clients(Settings::shards(1)));
    for version in [&TLS12, &TLS13] {
        let with = pki.client(&[version], true);
        tls::client(&server, &with, "known").ping();
        let refused = |config| {
            let Ok((mut tls, mut stream)) = tls::connect(&server, &config) else { return };
            // With TLS 1.3 the client is done before the server has seen its certificate.
            let mut got = Vec::new();
            let end = rustls::Stream::new(&mut tls, &mut stream).read_to_end(&mut got);
            assert!(end.is_err() && got.is_empty(), "{end:?} {got:?}");
        };
        refused(pki.client(&[version], false));
        // Its server's authority is the right one, its own is not.
        std::fs::copy(stranger.path("client.pem"), stranger.path("wrong.pem")).unwrap();
        for file in ["client.pem", "client-key.pem"] {
            std::fs::rename(pki.path(file), pki.path(&format!("kept-{file}"))).unwrap();
            std::fs::copy(stranger.path(file), pki.path(file)).unwrap();
        }
        refused(pki.client(&[version], true));
        for file in ["client.pem", "client-key.pem"] {
            std::fs::rename(pki.path(&format!("kept-{file}")), pki.path(file)).unwrap();
        }
    }
}

#[test]
fn beyond_loopback_plaintext_is_refused_where_tls_is_required() {
    let pki = Pki::new();
    let settings = pki.settings(Settings::shards(1)).set("tls_required", true);
    // On loopback alone it is not.
    let server = Server::start(settings);
    Client::open(&server, "native").ping();
    tls::client(&server, &pki.client(&[&TLS13], false), "tls").ping();
    let server = Open::start(&pki);
    let mut native = Client::over(TcpStream::connect(server.addr).unwrap());
    native.send(b"FNFR");
    assert_eq!(native.fatal().0, ErrorCode::TlsRequired);
    // What the server's own probe begins with can be guessed but for its proof.
    let mut guess = Client::over(TcpStream::connect(server.addr).unwrap());
    guess.send(&[&[0xFA; 33][..], b"FNFR"].concat());
    assert_eq!(guess.fatal().0, ErrorCode::BadMagic);
    let mut page = TcpStream::connect(server.addr).unwrap();
    page.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let got = rest(&page);
    assert!(got.starts_with(b"HTTP/1.1 403"), "{}", String::from_utf8_lossy(&got));
    let mut tls = TcpStream::connect(server.addr).unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let config = pki.client(&[&TLS13], false);
    let mut conn = rustls::ClientConnection::new(config, name).unwrap();
    conn.complete_io(&mut tls).unwrap();
    assert!(!conn.is_handshaking());
}

#[test]
fn a_server_that_requires_tls_is_ready_too() {
    let server = Open::start(&Pki::new());
    let ready = server.http.json("/readyz");
    assert_eq!(ready["ready"], true, "{ready}");
}

/// A server that listens on every address.
struct Open {
    child: std::process::Child,
    addr: std::net::SocketAddr,
    http: Http,
    _dir: tempfile::TempDir,
}

impl Open {
    fn start(pki: &Pki) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (port, http) = (free().port(), free());
        let set = |name: &str, value: &str| ["--set".into(), format!("{name}={value}")];
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args(["serve", "--insecure-no-auth", "--shards", "1", "--segment-bytes", "8388608"])
            .args(["--listen", &format!("0.0.0.0:{port}"), "--connections-max", "1000"])
            .args(["--http", &http.to_string()])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(set("tls_cert", pki.path("cert.pem").to_str().unwrap()))
            .args(set("tls_key", pki.path("cert-key.pem").to_str().unwrap()))
            .args(set("tls_required", "true"))
            .spawn()
            .unwrap();
        let addr = ([127, 0, 0, 1], port).into();
        wait_until("the server", || TcpStream::connect(addr).is_ok());
        wait_until("the HTTP interface", || TcpStream::connect(http).is_ok());
        Self { child, addr, http: Http { addr: http, token: None }, _dir: dir }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn certificates_are_read_again_and_bad_ones_are_not_taken() {
    let pki = Pki::new();
    let server = Server::start(pki.settings(Settings::shards(2)));
    let before = pki.client(&[&TLS13], false);
    let mut kept = tls::client(&server, &before, "kept");
    std::fs::write(pki.path("cert.pem"), "no certificate").unwrap();
    server.signal(Signal::HUP);
    wait_until("the complaint", || server.log().contains("goes on with the certificates it has"));
    assert!(tls::connect(&server, &before).is_ok());
    pki.renew();
    // Found without a signal.
    wait_until("the new certificate", || server.log().contains("certificates were read again"));
    let after = pki.client(&[&TLS13], false);
    wait_until("both shards", || (0..8).all(|_| tls::connect(&server, &after).is_ok()));
    assert!(tls::connect(&server, &pki.client(&[&TLS12], false)).is_ok());
    kept.ping();
}

#[test]
fn a_storm_of_handshakes_leaves_other_members_their_latency() {
    const HANDSHAKES: usize = 2_000;
    let pki = Pki::new();
    let server = Server::start(
        pki.settings(Settings::shards(1))
            .set("connections_max", 4_000)
            .set("handshake_timeout_ms", 60_000),
    );
    let mut member = Client::open(&server, "native");
    let joined = member.join("g");
    let mut follower = common::Follower::live(joined);
    let hello = hello(&pki);
    let storm: Vec<_> =
        (0..HANDSHAKES).map(|_| TcpStream::connect(server.addr()).unwrap()).collect();
    // The server finds all of them at once; each costs it a key exchange and a signature.
    server.signal(Signal::STOP);
    for mut stream in &storm {
        stream.write_all(&hello).unwrap();
    }
    let began = Instant::now();
    server.signal(Signal::CONT);
    let answers = std::thread::spawn(move || {
        for mut stream in &storm {
            let mut first = [0; 1];
            stream.set_read_timeout(Some(6 * common::SOON)).unwrap();
            stream.read_exact(&mut first).unwrap();
            assert_eq!(first[0], 0x16, "a server hello");
        }
    });
    let mut times = Vec::new();
    while !answers.is_finished() {
        let began = Instant::now();
        let seq = member.publish("g", b"x").seq.0;
        member.follow(&mut follower, seq);
        times.push(began.elapsed());
    }
    let storm = began.elapsed();
    answers.join().unwrap();
    times.sort();
    eprintln!(
        "{} messages in a storm of {storm:?}: p50 {:?}, p99 {:?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
    // If they were not bounded, the first message would wait for all of them.
    assert!(times.len() >= 20, "{times:?}");
}

#[test]
fn a_client_that_ends_by_the_book_gets_the_end_back() {
    let pki = Pki::new();
    let server = Server::start(pki.settings(Settings::shards(1)));
    for version in [&TLS12, &TLS13] {
        let (mut tls, mut stream) = tls::connect(&server, &pki.client(&[version], false)).unwrap();
        tls.send_close_notify();
        tls.complete_io(&mut stream).unwrap();
        let mut got = Vec::new();
        // Without the end of the server's direction this is an error.
        rustls::Stream::new(&mut tls, &mut stream).read_to_end(&mut got).unwrap();
        assert!(got.is_empty());
    }
}
