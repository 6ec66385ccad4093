//! The server's side against a client of rustls.

#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, ServerConfig, SupportedProtocolVersion};

use super::files::{TlsFileError, TlsFiles};
use super::*;

/// An authority with a server's and a client's certificate, as PEM files.
struct Pki {
    dir: tempfile::TempDir,
    roots: rustls::RootCertStore,
    client: (CertificateDer<'static>, Vec<u8>),
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let leaf = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = leaf("localhost");
        let (client, client_key) = leaf("a-client");
        let file = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        file("ca.pem", ca_cert.pem());
        file("cert.pem", server.pem());
        file("key.pem", server_key.serialize_pem());
        file("other-key.pem", client_key.serialize_pem());
        let roots = files::authorities(&dir.path().join("ca.pem")).unwrap();
        Self { dir, roots, client: (client.der().clone(), client_key.serialize_der()) }
    }

    fn files(&self) -> TlsFiles {
        let path = |name: &str| self.dir.path().join(name);
        TlsFiles { cert: path("cert.pem"), key: path("key.pem"), client_ca: None }
    }

    fn server(&self) -> Arc<ServerConfig> {
        self.files().load().unwrap()
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        self.client_with(version, false)
    }

    fn client_with(
        &self,
        version: &'static SupportedProtocolVersion,
        certificate: bool,
    ) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let (cert, key) = self.client.clone();
        match certificate {
            true => builder
                .with_client_auth_cert(vec![cert], PrivateKeyDer::try_from(key).unwrap())
                .unwrap(),
            false => builder.with_no_client_auth(),
        }
    }
}

fn connect(config: &Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(config.clone(), ServerName::try_from("localhost").unwrap()).unwrap()
}

/// What a shard does with a connection.
struct Server {
    tls: Tls,
    scratch: Vec<u8>,
    plain: Vec<u8>,
    error: Option<TlsError>,
}

impl Server {
    fn new(config: &Arc<ServerConfig>) -> Self {
        let tls = Tls::new(config.clone()).unwrap();
        Self { tls, scratch: Vec::new(), plain: Vec::new(), error: None }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.error.is_some() {
            return;
        }
        let result = if self.tls.is_handshake() {
            if !self.tls.keep(bytes) {
                return;
            }
            self.tls.step(&mut self.plain)
        } else {
            self.tls.receive(bytes, &mut self.scratch, &mut self.plain)
        };
        self.error = result.err();
    }

    /// Moves bytes both ways, those to the server in pieces of `piece`, until nobody has any.
    fn talk(&mut self, client: &mut ClientConnection, piece: usize) -> Result<(), rustls::Error> {
        loop {
            let mut to_server = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut to_server).unwrap();
            }
            to_server.chunks(piece).for_each(|bytes| self.take(bytes));
            let to_client = self.tls.take_output();
            if to_server.is_empty() && to_client.is_empty() {
                return Ok(());
            }
            give(client, &to_client)?;
        }
    }
}

/// Gives bytes to the client; returns the plaintext in them.
fn give(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut got = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets()?;
        let mut piece = [0; 4096];
        while let Ok(len @ 1..) = client.reader().read(&mut piece) {
            got.extend_from_slice(&piece[..len]);
        }
    }
    Ok(got)
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

#[test]
fn both_versions_carry_bytes_both_ways_in_any_pieces() {
    let pki = Pki::new();
    let config = pki.server();
    for version in VERSIONS {
        let client_config = Arc::new(pki.client(version));
        for piece in [1, 2, 5, 6, 100, 100_000] {
            let mut client = connect(&client_config);
            let mut server = Server::new(&config);
            // Before the handshake is over, as clients do.
            client.writer().write_all(b"FNFR").unwrap();
            server.talk(&mut client, piece).unwrap();
            assert!(!server.tls.is_handshake());
            let sent: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
            client.writer().write_all(&sent).unwrap();
            server.talk(&mut client, piece).unwrap();
            assert_eq!(server.plain, [b"FNFR", &sent[..]].concat());
            assert_eq!(server.tls.kept(), 0);
            for len in [1, 100, 16 * 1024, 16 * 1024 + 1, 50_000] {
                let mut out = b"before".to_vec();
                server.tls.encrypt(&sent[..len], &mut out).unwrap();
                let records = len.div_ceil(RECORD_PLAINTEXT_MAX);
                assert!(out.len() <= b"before".len() + len + records * RECORD_EXTRA);
                let got = give(&mut client, &out[b"before".len()..]).unwrap();
                assert_eq!(got, &sent[..len]);
            }
        }
    }
}

#[test]
fn an_end_is_told_from_a_cut_both_ways() {
    let pki = Pki::new();
    let config = pki.server();
    for version in VERSIONS {
        let mut client = connect(&Arc::new(pki.client(version)));
        let mut server = Server::new(&config);
        server.talk(&mut client, 1000).unwrap();
        client.send_close_notify();
        server.talk(&mut client, 1).unwrap();
        assert!(server.tls.is_peer_closed());
        let mut out = Vec::new();
        server.tls.encrypt(b"last", &mut out).unwrap();
        server.tls.close(&mut out).unwrap();
        assert_eq!(give(&mut client, &out).unwrap(), b"last");
        assert_eq!(client.reader().read(&mut [0; 8]).unwrap(), 0);
    }
}

#[test]
fn garbage_gets_an_alert_and_never_a_panic() {
    let pki = Pki::new();
    let config = pki.server();
    let mut random = 1_u64;
    let mut next = move || {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize
    };
    let mut broken = 0;
    for round in 0..2_000 {
        let mut server = Server::new(&config);
        let mut bytes: Vec<u8> = (0..next() % 300).map(|_| next() as u8).collect();
        // Most begin as a record does, so that more than the first bytes are looked at.
        if round % 4 > 0 && bytes.len() > RECORD_HEADER {
            let len = (bytes.len() - RECORD_HEADER) as u16;
            bytes[..3].copy_from_slice(&[HANDSHAKE_RECORD, 3, 1]);
            bytes[3..RECORD_HEADER].copy_from_slice(&len.to_be_bytes());
        }
        let piece = next() % 40 + 1;
        bytes.chunks(piece).for_each(|bytes| server.take(bytes));
        assert!(server.tls.is_handshake() || server.error.is_some());
        assert!(server.plain.is_empty());
        // One in some hundreds only begins a message that could be long.
        assert_eq!(server.error.is_some(), server.tls.has_output(), "{bytes:?}");
        broken += u32::from(server.error.is_some());
        assert!(server.tls.encrypt(b"x", &mut Vec::new()).is_err());
    }
    assert!(broken > 1_000, "{broken}");
}

#[test]
fn a_changed_or_cut_handshake_ends_without_a_panic() {
    let pki = Pki::new();
    let config = pki.server();
    for version in VERSIONS {
        let client_config = Arc::new(pki.client(version));
        let mut hello = Vec::new();
        connect(&client_config).write_tls(&mut hello).unwrap();
        for at in 0..hello.len() {
            let mut server = Server::new(&config);
            server.take(&hello[..at]);
            assert!(server.tls.is_handshake() && !server.tls.has_output(), "cut at {at}");
            let mut changed = hello.clone();
            changed[at] ^= 0x81;
            Server::new(&config).take(&changed);
        }
        // Whatever comes in place of the second flight.
        for at in 0..60 {
            let mut client = connect(&client_config);
            let mut server = Server::new(&config);
            server.take(&hello_of(&mut client));
            give(&mut client, &server.tls.take_output()).unwrap();
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).unwrap();
            }
            if let Some(byte) = flight.get_mut(at) {
                *byte ^= 0x40;
                server.take(&flight);
                assert!(server.plain.is_empty());
            }
        }
    }
}

fn hello_of(client: &mut ClientConnection) -> Vec<u8> {
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello).unwrap();
    }
    hello
}

#[test]
fn a_changed_record_ends_the_connection_with_an_alert() {
    let pki = Pki::new();
    let config = pki.server();
    for version in VERSIONS {
        let mut client = connect(&Arc::new(pki.client(version)));
        let mut server = Server::new(&config);
        server.talk(&mut client, 1000).unwrap();
        client.writer().write_all(b"good").unwrap();
        server.talk(&mut client, 1000).unwrap();
        client.writer().write_all(b"changed").unwrap();
        let mut record = hello_of(&mut client);
        record[8] ^= 1;
        server.take(&record);
        assert!(server.error.is_some());
        assert_eq!(server.plain, b"good");
        let alert = server.tls.take_output();
        assert!(give(&mut client, &alert).is_err(), "the client sees why");
        assert!(server.tls.encrypt(b"x", &mut Vec::new()).is_err());
    }
}

#[test]
fn a_handshake_without_end_is_bounded() {
    let pki = Pki::new();
    let mut server = Server::new(&pki.server());
    // One message of nearly 64 KiB in records of 1,000 bytes, then more of the same.
    let mut message = vec![1, 0, 0xFF, 0xFF];
    message.resize(200_000, 0);
    for piece in message.chunks(1_000) {
        let mut record = vec![HANDSHAKE_RECORD, 3, 1];
        record.extend_from_slice(&(piece.len() as u16).to_be_bytes());
        record.extend_from_slice(piece);
        server.take(&record);
        assert!(server.tls.kept() <= TLS_HANDSHAKE_BYTES_MAX + 2_000);
    }
    assert!(server.error.is_some());
    assert_eq!(server.tls.kept(), 0);
}

#[test]
fn sessions_are_taken_up_again_by_any_shard_until_the_files_are_read_again() {
    use rustls::HandshakeKind::{Full, Resumed};
    let pki = Pki::new();
    let config = pki.server();
    let client_config = Arc::new(pki.client(&TLS13));
    let kind = |config: &Arc<ServerConfig>| {
        let mut client = connect(&client_config);
        Server::new(config).talk(&mut client, 1000).unwrap();
        client.handshake_kind().unwrap()
    };
    assert_eq!((kind(&config), kind(&config)), (Full, Resumed));
    let again = pki.server();
    assert_eq!((kind(&again), kind(&again)), (Full, Resumed));
}

#[test]
fn with_an_authority_for_clients_only_its_clients_are_served() {
    let pki = Pki::new();
    let stranger = Pki::new();
    let client_ca = Some(pki.dir.path().join("ca.pem"));
    let config = TlsFiles { client_ca, ..pki.files() }.load().unwrap();
    for version in VERSIONS {
        let talk = |client_config: ClientConfig| {
            let mut client = connect(&Arc::new(client_config));
            let mut server = Server::new(&config);
            let told = server.talk(&mut client, 1000);
            (server.error.is_none() && !server.tls.is_handshake(), told.is_ok())
        };
        assert_eq!(talk(pki.client_with(version, true)), (true, true));
        assert_eq!(talk(pki.client_with(version, false)), (false, false));
        let mut wrong = stranger.client_with(version, true);
        // It trusts this server, but has a certificate of another authority.
        wrong.dangerous().set_certificate_verifier(
            rustls::client::WebPkiServerVerifier::builder_with_provider(
                Arc::new(pki.roots.clone()),
                Arc::new(rustls::crypto::ring::default_provider()),
            )
            .build()
            .unwrap(),
        );
        assert_eq!(talk(wrong), (false, false));
    }
}

#[test]
fn wrong_files_are_named_with_what_is_wrong() {
    let pki = Pki::new();
    let files = pki.files();
    let path = |name: &str| pki.dir.path().join(name);
    let load = |files: TlsFiles| files.load().unwrap_err();
    let missing = load(TlsFiles { cert: path("none"), ..files.clone() });
    assert!(matches!(missing, TlsFileError::Read { .. }), "{missing}");
    let swapped = load(TlsFiles { cert: files.key.clone(), ..files.clone() });
    assert!(matches!(swapped, TlsFileError::Holds { what: "certificate", .. }), "{swapped}");
    let no_key = load(TlsFiles { key: files.cert.clone(), ..files.clone() });
    assert!(matches!(no_key, TlsFileError::Holds { what: "private key", .. }), "{no_key}");
    let pair = load(TlsFiles { key: path("other-key.pem"), ..files.clone() });
    assert!(matches!(pair, TlsFileError::Pair { .. }), "{pair}");
    let ca = load(TlsFiles { client_ca: Some(files.key.clone()), ..files.clone() });
    assert!(matches!(ca, TlsFileError::Holds { .. }), "{ca}");
    for error in [missing, swapped, no_key, pair, ca] {
        assert!(error.to_string().contains(&*pki.dir.path().to_string_lossy()), "{error}");
    }
    let before = files.stamp();
    assert_eq!(before, files.stamp());
    std::fs::write(&files.cert, "something else").unwrap();
    assert_ne!(before, files.stamp());
}

#[test]
fn a_handshake_that_is_given_up_ends_with_an_alert_only_while_the_peer_can_read_it() {
    let pki = Pki::new();
    let config = pki.server();
    let mut fresh = Server::new(&config);
    fresh.tls.refuse();
    assert_eq!(fresh.tls.take_output(), REFUSED);
    for version in VERSIONS {
        let mut client = connect(&Arc::new(pki.client(version)));
        let mut server = Server::new(&config);
        server.take(&hello_of(&mut client));
        assert!(server.tls.is_handshake() && !server.tls.take_output().is_empty());
        server.tls.refuse();
        assert!(server.tls.take_output().is_empty(), "{version:?}");
    }
}
