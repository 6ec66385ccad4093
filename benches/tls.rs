//! What TLS costs beside the sockets: a write, a handshake step by step, and the memory of a
//! connection. `cargo bench --bench tls`; needs `openssl` for a key of RSA.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a measurement")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare::tls::Tls;
use fanfare::tls::files::TlsFiles;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

/// Rounds of which the median is told.
const ROUNDS: usize = 9;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let keys: [(&str, &[&str]); 2] = [
        ("ECDSA P-256", &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]),
        ("RSA 2048", &["rsa:2048"]),
    ];
    for (n, (name, newkey)) in keys.into_iter().enumerate() {
        let (cert, key) =
            (dir.path().join(format!("{n}.pem")), dir.path().join(format!("{n}.key")));
        make(&cert, &key, newkey);
        let server = TlsFiles { cert: cert.clone(), key, client_ca: None }.load().unwrap();
        for (version, named) in [(&TLS12, "1.2"), (&TLS13, "1.3")] {
            let full = client(&cert, version, Resumption::disabled());
            handshakes(&format!("{name}, TLS {named}, full"), &server, &full);
        }
        let resumed = client(&cert, &TLS13, Resumption::in_memory_sessions(8));
        open(&server, &resumed);
        handshakes(&format!("{name}, TLS 1.3, resumed"), &server, &resumed);
        if n == 0 {
            let config = client(&cert, &TLS13, Resumption::disabled());
            writes(&server, &config);
            memory(&server, &config);
        }
    }
}

fn make(cert: &Path, key: &Path, newkey: &[&str]) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-newkey"])
        .args(newkey)
        .arg("-keyout")
        .arg(key)
        .arg("-out")
        .arg(cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn client(
    cert: &Path,
    version: &'static rustls::SupportedProtocolVersion,
    resumption: Resumption,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = resumption;
    Arc::new(config)
}

/// A handshake, and how long each step of the server's side took.
fn open(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> (Tls, ClientConnection, Vec<Duration>) {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let began = Instant::now();
    let mut tls = Tls::new(server.clone()).unwrap();
    let mut new = began.elapsed();
    let mut steps = Vec::new();
    while client.wants_write() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let began = Instant::now();
        if tls.is_handshake() && tls.keep(&flight) {
            tls.step(&mut Vec::new()).unwrap();
        }
        let output = tls.take_output();
        steps.push(began.elapsed() + std::mem::take(&mut new));
        let mut output = &output[..];
        while !output.is_empty() {
            client.read_tls(&mut output).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert!(!tls.is_handshake() && !client.is_handshaking());
    (tls, client, steps)
}

fn handshakes(name: &str, server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) {
    let mut all: Vec<Vec<Duration>> = (0..301).map(|_| open(server, client).2).collect();
    let step = |all: &mut Vec<Vec<Duration>>, n: usize| {
        all.sort_by_key(|steps| steps.get(n).copied());
        all[all.len() / 2].get(n).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    println!("{name}: {:.0} us, then {:.0} us", step(&mut all, 0), step(&mut all, 1));
}

fn writes(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) {
    let (mut tls, mut client, _) = open(server, client);
    let mut out = Vec::new();
    // A message of 128 bytes is a frame of 160.
    for messages in [1_usize, 8, 64, 100, 400] {
        let plain = vec![7; messages * 160];
        let times = 2_000;
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    out.clear();
                    let began = Instant::now();
                    tls.encrypt(&plain, &mut out).unwrap();
                    spent += began.elapsed();
                    // The client's counter of records has to keep up.
                    let mut bytes = &out[..];
                    while !bytes.is_empty() {
                        client.read_tls(&mut bytes).unwrap();
                        client.process_new_packets().unwrap();
                        let mut sink = [0; 16 * 1024];
                        while client.reader().read(&mut sink).is_ok_and(|len| len > 0) {}
                    }
                }
                spent.as_secs_f64() * 1e6 / f64::from(times)
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        println!(
            "a write of {messages} messages, {} bytes: {:.2} us ({:.2} to {:.2}), {} bytes more",
            plain.len(),
            rounds[ROUNDS / 2],
            rounds[0],
            rounds[ROUNDS - 1],
            out.len() - plain.len(),
        );
    }
    let mut record = Vec::new();
    client.writer().write_all(&[7; 160]).unwrap();
    client.write_tls(&mut record).unwrap();
    let (mut scratch, mut plain) = (Vec::new(), Vec::new());
    let began = Instant::now();
    tls.receive(&record, &mut scratch, &mut plain).unwrap();
    println!("one record of 160 bytes that came: {:.2} us", began.elapsed().as_secs_f64() * 1e6);
}

fn memory(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) {
    let mut kept = Vec::new();
    let mut bytes = Vec::new();
    for _ in 0..100 {
        let mut tls = None;
        let used =
            allocation_counter::measure(|| tls = Some(Box::new(server_side(server, client))));
        bytes.push(used.bytes_current);
        kept.push(tls);
    }
    bytes.sort_unstable();
    println!("memory of an open connection: {} bytes", bytes[bytes.len() / 2]);
}

/// The server's side alone of an open connection.
fn server_side(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Tls {
    open(server, client).0
}
