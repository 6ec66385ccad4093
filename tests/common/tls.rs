//! Certificates, and clients that speak to a server by TLS.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::{Client, SOON, Server, Settings};

/// An authority and what it has signed, as PEM files.
pub struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    pub fn new() -> Self {
        let pki = Self { dir: tempfile::tempdir().unwrap() };
        pki.renew();
        pki
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new authority, and certificates and keys of it, in the same files.
    pub fn renew(&self) {
        let mut ca = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate().unwrap();
        self.file("ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
        let issuer = rcgen::Issuer::new(ca, ca_key);
        for (name, host) in [("cert", "localhost"), ("client", "a-client")] {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
            self.file(&format!("{name}-key.pem"), &key.serialize_pem());
            self.file(&format!("{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
        }
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Settings of a server with the certificate.
    pub fn settings(&self, settings: Settings) -> Settings {
        settings
            .set("log", "\"info,fanfare::shard=debug\"")
            .set("tls_cert", quoted(&self.path("cert.pem")))
            .set("tls_key", quoted(&self.path("cert-key.pem")))
    }

    /// The same, for clients with a certificate only.
    pub fn settings_for_clients(&self, settings: Settings) -> Settings {
        self.settings(settings).set("tls_client_ca", quoted(&self.path("ca.pem")))
    }

    /// What a client of the server needs; with a certificate of its own or without.
    pub fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        certificate: bool,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = if certificate {
            let cert = CertificateDer::from_pem_file(self.path("client.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(self.path("client-key.pem")).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        Arc::new(config)
    }

    /// What `openssl s_client` says of a connection on which nothing is sent.
    pub fn openssl(&self, server: &Server, more: &[&str]) -> String {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &server.addr().to_string(), "-servername", "localhost"])
            .args(["-verify_hostname", "localhost", "-verify_return_error", "-CAfile"])
            .arg(self.path("ca.pem"))
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed");
        drop(child.stdin.take());
        let out = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    }
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_str().unwrap())
}

/// A connection whose handshake is finished.
pub fn connect(
    server: &Server,
    config: &Arc<ClientConfig>,
) -> std::io::Result<(ClientConnection, TcpStream)> {
    let mut stream = TcpStream::connect(server.addr())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = ClientConnection::new(config.clone(), name).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    Ok((tls, stream))
}

/// A client whose native bytes go through TLS.
pub fn client(server: &Server, config: &Arc<ClientConfig>, member: &str) -> Client {
    let mut client = Client::over(through(server, config));
    client.hello(member);
    client
}

/// A socket whose bytes go through TLS to the server: two threads put them into records and take
/// them out.
pub fn through(server: &Server, config: &Arc<ClientConfig>) -> TcpStream {
    let (tls, stream) = connect(server, config).unwrap();
    stream.set_read_timeout(None).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let inner = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    near.set_nodelay(true).unwrap();
    let tls = Arc::new(Mutex::new(tls));
    let (from_client, far) = (near.try_clone().unwrap(), stream.try_clone().unwrap());
    let writer = tls.clone();
    std::thread::spawn(move || encrypt(&writer, from_client, far));
    std::thread::spawn(move || decrypt(&tls, stream, near));
    inner
}

fn read(from: &mut TcpStream, chunk: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match from.read(chunk) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn encrypt(tls: &Mutex<ClientConnection>, mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(len @ 1..) = read(&mut from, &mut chunk) {
        let mut tls = tls.lock().unwrap();
        tls.writer().write_all(&chunk[..len]).unwrap();
        while tls.wants_write() {
            if tls.write_tls(&mut to).is_err() {
                return;
            }
        }
    }
    let mut tls = tls.lock().unwrap();
    tls.send_close_notify();
    while tls.wants_write() && tls.write_tls(&mut to).is_ok() {}
    let _ = to.shutdown(Shutdown::Write);
}

fn decrypt(tls: &Mutex<ClientConnection>, mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(len @ 1..) = read(&mut from, &mut chunk) {
        let mut bytes = &chunk[..len];
        while !bytes.is_empty() {
            let mut tls = tls.lock().unwrap();
            tls.read_tls(&mut bytes).unwrap();
            tls.process_new_packets().unwrap();
            let mut plain = [0; 16 * 1024];
            loop {
                match tls.reader().read(&mut plain) {
                    Ok(len @ 1..) if to.write_all(&plain[..len]).is_ok() => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    _ => {
                        let _ = to.shutdown(Shutdown::Both);
                        return;
                    }
                }
            }
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
