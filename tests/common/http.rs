use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::{Server, Settings};

/// The HTTP interface of a server, and a client of it that does what it is told.
#[derive(Clone)]
pub struct Http {
    pub addr: SocketAddr,
    pub token: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Http {
    /// A server with the interface, without a token.
    pub fn start(settings: Settings) -> (Server, Self) {
        // Below the ports that the kernel gives to those who ask for any, such as the servers of other
        // tests: one of these would get it between here and the server's start.
        let mut random = super::Random::new();
        let addr = (0..100)
            .map(|_| SocketAddr::from(([127, 0, 0, 1], 20_000 + random.below(12_000) as u16)))
            .find(|addr| TcpListener::bind(addr).is_ok())
            .unwrap();
        let server = Server::start(settings.set("http", format!("\"{addr}\"")));
        let http = Self { addr, token: None };
        super::wait_until("the HTTP interface", || TcpStream::connect(addr).is_ok());
        (server, http)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends a request with these headers; the connection is closed after the answer.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request += &format!("Host: {}\r\n", self.addr);
        }
        if let Some(token) = &self.token {
            request += &format!("Authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            request += &format!("Content-Length: {}\r\n", body.len());
        }
        let mut stream = self.connect();
        // A server that has seen enough may answer and close before all was sent.
        let _ = stream.write_all(format!("{request}\r\n{body}").as_bytes());
        Self::answer(&mut stream)
    }

    /// Reads an answer up to the end of the connection.
    pub fn answer(stream: &mut TcpStream) -> Answer {
        let mut bytes = Vec::new();
        // What was read before a reset counts.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    /// The JSON of an answer that must be 200.
    pub fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, &[("Content-Type", "application/json")], body)
    }

    /// The sum of a figure over all its labels that contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let page = self.get("/metrics").body;
        let values = page.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let of = series.split('{').next() == Some(name) && series.contains(label);
            of.then(|| value.parse::<f64>().unwrap())
        });
        let values: Vec<_> = values.collect();
        assert!(!values.is_empty(), "there is no {name} with {label:?} in\n{page}");
        values.iter().sum()
    }
}
