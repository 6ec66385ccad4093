//! `fanfare bridge webhook`: what was published reaches the endpoint at least once and in order,
//! whatever the endpoint, the bridge or the server does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test may panic"
)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::tls::Pki;
use common::tokens::{Issuer, everything};
use common::{Server, Settings, replace, wait_until};
use fanfare::client::blocking::Client;
use fanfare::client::{Event, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Longest wait for all messages: retries of a bridge take up to some seconds each.
const ALL: Duration = Duration::from_secs(60);

/// What the endpoint does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Status(u16),
    /// Closes the connection without a word.
    Drop,
    /// Never answers.
    Hang,
    /// Takes the batch, and says so when the bridge has given up.
    Late,
}

/// Picks the answer to a request by its number.
type Mood = Box<dyn Fn(usize) -> Answer + Send>;

#[derive(Default)]
struct Seen {
    /// Bodies, with what was answered.
    requests: Vec<(Value, Answer)>,
    /// Lines of the heads of all requests.
    heads: Vec<String>,
}

/// An HTTP server that answers as a test says.
#[derive(Clone)]
struct Endpoint {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    mood: Arc<Mutex<Mood>>,
}

impl Endpoint {
    fn start(mood: impl Fn(usize) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mood: Arc<Mutex<Mood>> = Arc::new(Mutex::new(Box::new(mood)));
        let endpoint = Self { addr, seen: Arc::default(), mood };
        let answering = endpoint.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let endpoint = answering.clone();
                std::thread::spawn(move || endpoint.serve(stream));
            }
        });
        endpoint
    }

    /// Requests of one connection, until it ends.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut stream = stream;
        loop {
            let (mut length, mut head) = (0, Vec::new());
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
                let line = line.trim_end().to_lowercase();
                if line.is_empty() {
                    break;
                }
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push(line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            let body: Value = serde_json::from_slice(&body).unwrap();
            let answer = {
                let mut seen = self.seen.lock().unwrap();
                let answer = (self.mood.lock().unwrap())(seen.requests.len());
                seen.requests.push((body, answer));
                seen.heads.extend(head);
                answer
            };
            let status = match answer {
                Answer::Status(status) => status,
                Answer::Drop => return None,
                Answer::Hang => {
                    // Until the bridge has given up.
                    let _ = reader.read(&mut [0; 1]);
                    return None;
                }
                Answer::Late => {
                    std::thread::sleep(Duration::from_millis(800));
                    200
                }
            };
            write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nok").ok()?;
        }
    }

    fn set_mood(&self, mood: impl Fn(usize) -> Answer + Send + 'static) {
        *self.mood.lock().unwrap() = Box::new(mood);
    }

    fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests.len()
    }

    /// Ids of all messages that were taken, in the order in which they came.
    fn taken(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let taken = |(_, answer): &&(Value, Answer)| {
            matches!(answer, Answer::Late | Answer::Status(200..=299))
        };
        let events = seen.requests.iter().filter(taken).flat_map(|(body, _)| events(body));
        events.map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    }

    /// The same, each once, where it came first.
    fn distinct(&self) -> Vec<String> {
        let mut distinct: Vec<String> = Vec::new();
        for id in self.taken() {
            if !distinct.contains(&id) {
                distinct.push(id);
            }
        }
        distinct
    }
}

fn events(body: &Value) -> Vec<Value> {
    body["events"].as_array().unwrap().clone()
}

/// A bridge process, killed when dropped, and what it logs.
struct Bridge(Child, tempfile::NamedTempFile);

impl Bridge {
    fn start(server: &Server, endpoint: &Endpoint, more: &[&str]) -> Self {
        let (server, url) = (server.addr().to_string(), format!("http://{}/in", endpoint.addr));
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command.args(["bridge", "webhook", "--server", &server, "--member", "mailer"]);
        command.args(["--url", &url, "--group", "lobby", "--timeout-ms", "400"]).args(more);
        command.env_remove("http_proxy").env_remove("HTTP_PROXY").env_remove("ALL_PROXY");
        let log = tempfile::NamedTempFile::new().unwrap();
        Self(command.stderr(log.reopen().unwrap()).spawn().unwrap(), log)
    }

    /// Starts, and waits until the group has its member.
    fn join(server: &Server, endpoint: &Endpoint, more: &[&str]) -> Self {
        let bridge = Self::start(server, endpoint, more);
        let mut client = Client::connect(server.addr(), Options::new("probe")).unwrap();
        wait_until("the bridge joins", || members_online(&mut client) == Some((1, 1)));
        client.close();
        bridge
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.1.path()).unwrap()
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Durable members of the group, and how many of them are connected.
fn members_online(client: &mut Client) -> Option<(u32, u32)> {
    client.roster("lobby", 0, 0, 10).unwrap();
    loop {
        if let Event::Roster(roster) = client.next(Duration::from_secs(5)).unwrap()? {
            return Some((roster.members, roster.online));
        }
    }
}

fn publish(server: &Server, numbers: std::ops::RangeInclusive<u64>) {
    let mut client = Client::connect(server.addr(), Options::new("ann")).unwrap();
    publish_by(&mut client, numbers);
    client.close();
}

fn publish_by(client: &mut Client, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        client.publish("lobby", format!("m{number}")).unwrap();
    }
    while client.core().unanswered() > 0 {
        client.next(Duration::from_secs(5)).unwrap();
    }
}

fn ids(numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    numbers.map(|seq| format!("lobby/1/{seq}")).collect()
}

fn wait_for_all(endpoint: &Endpoint, last: u64) {
    let deadline = Instant::now() + ALL;
    let expected = ids(1..=last);
    while endpoint.distinct().len() < expected.len() {
        assert!(Instant::now() < deadline, "{:?}", endpoint.distinct());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(endpoint.distinct(), expected);
}

#[test]
fn messages_are_posted_in_batches_and_do_not_come_again_after_a_stop() {
    let server = Server::start(Settings::shards(1));
    let endpoint = Endpoint::start(|_| Answer::Status(204));
    let headers = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(headers.path(), "Authorization: Bearer s3cret\n\nX-From: fanfare\n").unwrap();
    let headers = headers.path().to_str().unwrap();
    let more = ["--batch-max", "10", "--headers-file", headers];
    let bridge = Bridge::join(&server, &endpoint, &more);
    publish(&server, 1..=35);
    wait_for_all(&endpoint, 35);
    bridge.stop();
    {
        let seen = endpoint.seen.lock().unwrap();
        let (first, _) = &seen.requests[0];
        assert_eq!(first["member"], "mailer");
        let event = &events(first)[0];
        let time_ms = event["time_ms"].as_u64().unwrap();
        assert!(time_ms > 1_600_000_000_000, "{time_ms}");
        let mut event = event.clone();
        event.as_object_mut().unwrap().remove("time_ms");
        let expected = serde_json::json!({
            "type": "message", "id": "lobby/1/1", "group": "lobby", "epoch": 1, "seq": 1,
            "sender": "ann", "payload": "m1",
        });
        assert_eq!(event, expected);
        assert!(seen.requests.iter().all(|(body, _)| events(body).len() <= 10));
        for line in ["authorization: bearer s3cret", "x-from: fanfare", "post /in http/1.1"] {
            assert!(seen.heads.iter().any(|head| head == line), "{line}: {:?}", seen.heads);
        }
    }
    // What it acknowledged does not come again.
    let bridge = Bridge::join(&server, &endpoint, &[]);
    publish(&server, 36..=36);
    wait_for_all(&endpoint, 36);
    bridge.stop();
    assert_eq!(endpoint.taken(), ids(1..=36));
}

#[test]
fn a_batch_is_posted_again_until_it_is_taken_and_nothing_overtakes_it() {
    let server = Server::start(Settings::shards(1));
    let moods = [
        Answer::Status(500),
        Answer::Drop,
        Answer::Status(200),
        Answer::Hang,
        Answer::Status(429),
        Answer::Status(302),
        Answer::Status(200),
        Answer::Late,
        Answer::Status(201),
    ];
    let endpoint = Endpoint::start(move |n| moods.get(n).copied().unwrap_or(Answer::Status(200)));
    let bridge = Bridge::join(&server, &endpoint, &["--batch-max", "5"]);
    publish(&server, 1..=20);
    wait_for_all(&endpoint, 20);
    let seen = endpoint.seen.lock().unwrap();
    for pair in seen.requests.windows(2) {
        let [(before, answer), (after, _)] = pair else { unreachable!() };
        let again = !matches!(answer, Answer::Status(200..=299));
        assert_eq!(before == after, again, "after {answer:?}");
    }
    drop(seen);
    // The one that was answered late was taken twice; that is what ids are for.
    assert!(endpoint.taken().len() > 20);
    bridge.stop();
}

#[test]
fn an_endpoint_that_is_down_costs_a_bounded_batch_and_the_rest_comes_when_it_is_back() {
    let server = Server::start(Settings::shards(1));
    let endpoint = Endpoint::start(|_| Answer::Status(503));
    let more = ["--batch-max", "7", "--batch-bytes-max", "20000"];
    let bridge = Bridge::join(&server, &endpoint, &more);
    publish(&server, 1..=400);
    wait_until("it is asked again", || endpoint.requests() > 2);
    for (body, _) in &endpoint.seen.lock().unwrap().requests {
        assert!(events(body).len() <= 7);
    }
    endpoint.set_mood(|_| Answer::Status(200));
    wait_for_all(&endpoint, 400);
    bridge.stop();
}

#[test]
fn messages_come_at_least_once_and_in_order_over_kills_of_the_bridge_and_of_the_server() {
    let mut server = Server::start_apart(Settings::shards(1));
    let endpoint = Endpoint::start(|n| match n % 5 {
        0 => Answer::Drop,
        1 => Answer::Status(500),
        _ => Answer::Status(200),
    });
    let more = ["--batch-max", "3"];
    let mut bridge = Bridge::join(&server, &endpoint, &more);
    for round in 0..6 {
        publish(&server, round * 20 + 1..=round * 20 + 20);
        let before = endpoint.requests();
        wait_until("it is at work", || endpoint.requests() > before + 1);
        if round == 3 {
            server.kill();
            server.restart_at(Settings::shards(1));
        } else {
            bridge.kill();
            bridge = Bridge::start(&server, &endpoint, &more);
        }
    }
    wait_for_all(&endpoint, 120);
    bridge.stop();
}

#[test]
fn a_gap_and_bytes_that_are_no_text_are_told() {
    let settings = Settings::shards(1)
        .set("segment_bytes", 8 << 20)
        .set("retention_bytes", 16 << 20)
        .set("tail_bytes_max", 1 << 20);
    let server = Server::start(settings);
    let endpoint = Endpoint::start(|_| Answer::Status(200));
    Bridge::join(&server, &endpoint, &[]).stop();
    // More than is kept, while nobody posts.
    let mut client = Client::connect(server.addr(), Options::new([0xFF, 0xFE])).unwrap();
    for _ in 0..800 {
        while client.core().unanswered() > 100 {
            client.next(Duration::from_secs(5)).unwrap();
        }
        client.publish("lobby", vec![0xFF; 60_000]).unwrap();
    }
    while client.core().unanswered() > 0 {
        client.next(Duration::from_secs(5)).unwrap();
    }
    client.close();
    let bridge = Bridge::start(&server, &endpoint, &[]);
    let last = |seen: &Seen| {
        let (body, _) = seen.requests.last()?;
        events(body).last()?["seq"].as_u64()
    };
    let deadline = Instant::now() + ALL;
    while last(&endpoint.seen.lock().unwrap()) != Some(800) {
        assert!(Instant::now() < deadline, "the last message does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
    bridge.stop();
    let seen = endpoint.seen.lock().unwrap();
    let all: Vec<_> = seen.requests.iter().flat_map(|(body, _)| events(body)).collect();
    assert_eq!((&all[0]["type"], &all[0]["from"]), (&"gap".into(), &1.into()));
    assert_eq!(all[0]["reason"], "retention");
    let next = all[0]["to"].as_u64().unwrap() + 1;
    assert_eq!((all[1]["seq"].as_u64(), &all[1]["sender_base64"]), (Some(next), &"//4=".into()));
    assert!(all[1]["payload_base64"].as_str().unwrap().starts_with("////"));
}

/// The bridge has its rights from the token in a file: it joins, goes on with the newest one when
/// the first has expired, and works again when the file has a good one after a bad one.
#[test]
fn a_bridge_shows_the_token_in_its_file() {
    let issuer = Issuer::eddsa("a");
    let server = Server::with_keys(Settings::shards(1), &issuer.key_file());
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("token");
    let write = |token: String| replace(&file, &(token + "\n"));
    let lobby = json!({ "join": ["lobby"] });
    write(issuer.token("mailer", 6, lobby.clone()));
    let endpoint = Endpoint::start(|_| Answer::Status(204));
    let bridge = Bridge::start(&server, &endpoint, &["--token-file", file.to_str().unwrap()]);
    let options = Options::new("ann").token(issuer.token("ann", 600, everything()));
    let mut ann = Client::connect(server.addr(), options).unwrap();
    wait_until("the bridge joins", || members_online(&mut ann) == Some((1, 1)));
    publish_by(&mut ann, 1..=1);
    wait_for_all(&endpoint, 1);
    // The first token ends, and the new one is of no use.
    write(issuer.token("another", 600, lobby.clone()));
    wait_until("the token ends", || members_online(&mut ann) == Some((1, 0)));
    publish_by(&mut ann, 2..=2);
    assert_eq!(endpoint.distinct(), ids(1..=1));
    write(issuer.token("mailer", 600, lobby));
    wait_for_all(&endpoint, 2);
    bridge.stop();
}

#[test]
fn a_bridge_whose_newest_token_does_not_allow_its_group_says_so_and_ends() {
    let issuer = Issuer::eddsa("a");
    let server = Server::with_keys(Settings::shards(1), &issuer.key_file());
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("token");
    replace(&file, &issuer.token("mailer", 6, json!({ "join": ["lobby"] })));
    let endpoint = Endpoint::start(|_| Answer::Status(204));
    let mut bridge = Bridge::start(&server, &endpoint, &["--token-file", file.to_str().unwrap()]);
    wait_until("the bridge joins", || bridge.log().contains("joined"));
    replace(&file, &issuer.token("mailer", 600, json!({ "join": ["hall"] })));
    assert_eq!(bridge.0.wait().unwrap().code(), Some(1));
    assert!(bridge.log().contains("put the bridge out of lobby"), "{}", bridge.log());
}

/// The server knows bridges by their certificates, and a bridge knows its server.
#[test]
fn a_bridge_speaks_tls_and_shows_its_certificate() {
    let (ours, theirs) = (Pki::new(), Pki::new());
    let server = Server::start(ours.settings_for_clients(Settings::shards(1)));
    let endpoint = Endpoint::start(|_| Answer::Status(204));
    let path = |pki: &Pki, name| pki.path(name).display().to_string();
    let (cert, key) = (path(&ours, "client.pem"), path(&ours, "client-key.pem"));
    let flags = ["--tls-name", "localhost", "--tls-cert", &cert, "--tls-key", &key, "--tls-ca"];
    let misled =
        Bridge::start(&server, &endpoint, &[&flags[..], &[&path(&theirs, "ca.pem")]].concat());
    let refuses = || misled.log().contains("invalid peer certificate");
    wait_until("the bridge refuses the server", refuses);
    misled.kill();
    let bridge =
        Bridge::join(&server, &endpoint, &[&flags[..], &[&path(&ours, "ca.pem")]].concat());
    publish(&server, 1..=3);
    wait_for_all(&endpoint, 3);
    bridge.stop();
}

#[test]
fn a_bridge_that_cannot_work_says_why() {
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
        command.args(["bridge", "webhook", "--member", "mailer", "--group", "lobby"]).args(more);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&["--url", "ftp://here"]);
    assert!(code == Some(2) && said.contains("`ftp://here` is not a URL to post to"), "{said}");
    let (code, said) = run(&["--url", "http://here", "--headers-file", "/nowhere"]);
    assert!(code == Some(2) && said.contains("cannot read the headers in /nowhere"), "{said}");
    let (code, said) = run(&["--url", "http://here", "--token-file", "/nowhere"]);
    assert!(code == Some(2) && said.contains("cannot read the token in /nowhere"), "{said}");
    let (code, said) = run(&["--url", "http://here", "--token-file", "/dev/null"]);
    assert!(code == Some(2) && said.contains("/dev/null holds no token"), "{said}");
    let (code, said) = run(&["--url", "http://here", "--tls-ca", "/nowhere"]);
    assert!(code == Some(2) && said.contains("cannot use TLS"), "{said}");
    let (code, said) = run(&["--url", "http://here", "--tls", "--tls-cert", "/nowhere"]);
    assert!(code == Some(2) && said.contains("--tls-key"), "{said}");
    // Nobody who names a certificate means to connect without one.
    let (code, said) = run(&["--url", "http://here", "--tls-name", "localhost"]);
    assert!(code == Some(2) && said.contains("--tls"), "{said}");
    let (code, said) = run(&["--url", "http://here", "--batch-max", "0"]);
    assert!(code == Some(2) && said.contains("--batch-max"), "{said}");
}
