//! Members and publishers speak TLS to a real server, alone and beside those that do not, and a
//! server that is not who it should be is not spoken to.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use common::loadgen;
use fanfare::config::{Layers, load};
use fanfare::serve::{Shards, ShardsConfig, start};

/// A server of two shards with TLS. It ends with the process.
struct Server {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    _shards: Shards,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let flags = [
            ("listen", addr.to_string()),
            ("data_dir", path("data")),
            ("segment_bytes", (8 << 20).to_string()),
            ("connections_max", "1000".to_owned()),
            ("recv_buffers", "256".to_owned()),
            ("tls_cert", path("cert.pem")),
            ("tls_key", path("key.pem")),
        ];
        let flags = flags.map(|(key, value)| (key.to_owned(), value)).to_vec();
        let config = load(&Layers { flags, ..Layers::default() }).unwrap().config;
        let mut shard = config.shard;
        shard.tls = Some(config.tls.unwrap().load().unwrap());
        let config =
            ShardsConfig { listen: addr, data_dir: config.data_dir, cores: vec![0, 0], shard };
        Self { addr, _shards: start(&config).unwrap(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// An authority, a certificate of it for `localhost`, and another authority.
fn certificates(dir: &Path) {
    for ca_file in ["other.pem", "ca.pem"] {
        let mut ca = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(dir.join(ca_file), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    }
}

#[test]
fn members_that_speak_tls_are_verified_alone_and_among_others() {
    let server = Server::start();
    let ca = server.path("ca.pem");
    let passes = |line: &str| {
        let run = loadgen(server.addr, &format!("{line} --tls-ca {}", ca.display()));
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        let number = |key: &str| run.report[key].as_u64().unwrap();
        assert!(number("published") > 0);
        let members_of_each = number("members") / number("groups");
        assert_eq!(number("verified_deliveries"), members_of_each * number("published"));
        run.report
    };
    for encoding in ["tls", "wss-binary", "wss-json"] {
        let report =
            passes(&format!("fanout --members 20 --publishers 2 --window 8 --encoding {encoding}"));
        assert_eq!(report["encodings"], serde_json::json!([encoding]));
    }
    let all = "native,ws-binary,ws-json,tls,wss-binary,wss-json";
    passes(&format!("fanout --members 60 --publishers 6 --window 16 --threads 2 --encoding {all}"));
    // More than one record, and more than one read of the socket.
    passes("fanout --members 6 --window 4 --payload 65536 --encoding tls");
    passes("groups --groups 3 --members 12 --publishers 3 --durable --receipts 100 --encoding tls");
}

#[test]
fn a_server_that_is_not_who_it_should_be_is_refused() {
    let server = Server::start();
    let (ca, other) = (server.path("ca.pem"), server.path("other.pem"));
    let refused = |flags: &str, why: &str| {
        let run = loadgen(server.addr, &format!("fanout --members 3 {flags}"));
        assert_eq!(run.code, 2, "{flags}: {}", run.stderr);
        assert!(run.stderr.contains(why), "{flags}: {}", run.stderr);
    };
    let (ca, other) = (ca.display(), other.display());
    refused(&format!("--encoding tls --tls-ca {other}"), "invalid peer certificate");
    refused(&format!("--encoding tls --tls-ca {ca} --tls-name elsewhere"), "not valid for name");
    refused("--encoding wss-json", "need --tls-ca");
    refused(&format!("--tls-ca {ca}"), "is for --encoding tls");
    let key = server.path("key.pem");
    let key = key.display();
    refused(&format!("--encoding tls --tls-ca {key}"), "it holds no certificate");
}
