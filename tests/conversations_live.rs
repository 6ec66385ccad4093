//! The blocking client speaks the conversations with a real server, by its own bytes, by TLS, and
//! through a tunnel by each encoding of WebSocket; see tests/conversations/README.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test may panic"
)]

mod common;
#[path = "conversations/rust/mod.rs"]
mod rust;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use common::tls::Pki;
use common::websocket::{BINARY_V1, JSON_V1, tunnel};
use common::{SOON, Server, Settings};
use fanfare::client::blocking::Client;
use fanfare::client::{Membership, Options, Publishing, Tls};
use fanfare::position::{Level, Seq};
use fanfare::wire::Expected;
use rust::event;
use rust::script::{Names, check};
use serde_json::Value;

/// A client whose events are kept by their names.
struct Actor {
    client: Client,
    events: HashMap<&'static str, VecDeque<Value>>,
}

impl Actor {
    fn start((addr, tls): (SocketAddr, Option<Tls>), member: &str) -> Self {
        let mut options = Options::new(member);
        if let Some(tls) = tls {
            options = options.tls(tls);
        }
        (options.backoff_min_ms, options.backoff_max_ms) = (100, 500);
        Self { client: Client::connect(addr, options).unwrap(), events: HashMap::new() }
    }

    fn turn(&mut self) {
        while let Some(event) = self.client.next(Duration::from_millis(2)).unwrap() {
            let (name, fields) = event::plain(&event);
            self.events.entry(name).or_default().push_back(fields);
        }
    }

    fn command(&mut self, step: &Value) {
        let text = |name: &str| step[name].as_str().unwrap_or_default();
        let number = |name: &str| step[name].as_u64().unwrap_or(0);
        let (client, group) = (&mut self.client, text("group"));
        match text("do") {
            "join" => {
                let durable = step["durable"] == true;
                let how = if durable { Membership::durable() } else { Membership::live() };
                client.join(group, how).unwrap();
            }
            "leave" => client.leave(group).unwrap(),
            "publish" => {
                let level = (text("level") == "memory").then_some(Level::Memory);
                let how = Publishing { level, receipt_percent: number("receipt") as u8 };
                client.publish_with(group, text("payload"), how).unwrap();
            }
            "fetch" => {
                let count_max = u32::try_from(number("count_max")).unwrap();
                client.fetch(group, Seq(number("from")), None, count_max).unwrap();
            }
            "set_state" => {
                let expected = match &step["expected"] {
                    Value::Number(version) => Expected::Version(version.as_u64().unwrap()),
                    Value::String(absent) if absent == "absent" => Expected::Absent,
                    _ => Expected::Any,
                };
                let data = step["data"].as_str().map(str::as_bytes);
                client.set_state(group, text("key"), expected, data).unwrap();
            }
            "sync" => drop(client.sync(group, number("known")).unwrap()),
            "roster" => drop(client.roster(group, number("known"), 0, 10).unwrap()),
            other => panic!("command {other}"),
        }
    }
}

/// How the client and the server speak.
#[derive(Clone, Copy, Debug)]
enum By {
    Native,
    Tls,
    WebSocket(&'static str),
}

fn speak(file: &Path, by: By) {
    let pki = Pki::new();
    let settings = || match by {
        By::Tls => pki.settings(Settings::shards(2)),
        _ => Settings::shards(2),
    };
    let mut server = Server::start_apart(settings());
    let way = match by {
        By::Native => (server.addr(), None),
        By::Tls => {
            (server.addr(), Some(Tls::with_ca_file("localhost", pki.path("ca.pem")).unwrap()))
        }
        By::WebSocket(protocol) => (tunnel(server.addr(), protocol), None),
    };
    let mut actors: BTreeMap<String, Actor> = BTreeMap::new();
    let mut names = Names::new();
    let table: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for (i, step) in table["steps"].as_array().unwrap().iter().enumerate() {
        eprintln!("{} by {by:?} step {} {step}", file.display(), i + 1);
        match step["server"].as_str() {
            Some("kill") => server.kill(),
            Some("stop") => {
                // A stopping server waits for its clients, which work while they are asked.
                server.signal(rustix::process::Signal::TERM);
                let deadline = Instant::now() + SOON;
                while server.has_ended().is_none() {
                    actors.values_mut().for_each(Actor::turn);
                    assert!(Instant::now() < deadline, "the server does not end");
                }
            }
            Some(_) => server.restart_at(settings()),
            None => {}
        }
        let Some(who) = step["as"].as_str() else { continue };
        if let Some(member) = step["start"]["member"].as_str() {
            actors.insert(who.to_owned(), Actor::start(way.clone(), member));
        } else if step.get("do").is_some() {
            actors.get_mut(who).unwrap().command(step);
        } else if let Some(none) = step["no"].as_str() {
            let until = Instant::now() + Duration::from_millis(200);
            while Instant::now() < until {
                actors.values_mut().for_each(Actor::turn);
            }
            let left = actors[who].events.get(none);
            assert!(left.is_none_or(VecDeque::is_empty), "{left:?}");
        } else {
            let name = step["event"].as_str().unwrap();
            let deadline = Instant::now() + SOON;
            let fields = loop {
                actors.values_mut().for_each(Actor::turn);
                let events = &mut actors.get_mut(who).unwrap().events;
                if let Some(fields) = events.get_mut(name).and_then(VecDeque::pop_front) {
                    break fields;
                }
                assert!(
                    Instant::now() < deadline,
                    "no event {name}; there are {:?}",
                    events.keys()
                );
            };
            let mut expected = step.clone();
            let wanted = expected.as_object_mut().unwrap();
            wanted.remove("as");
            wanted.remove("event");
            check(&fields, &expected, &mut names, name);
        }
    }
}

fn every_live_conversation_is_spoken(by: By) {
    let mut files: Vec<_> = std::fs::read_dir("tests/conversations/live")
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 5);
    files.iter().for_each(|file| speak(file, by));
}

#[test]
fn by_native_bytes() {
    every_live_conversation_is_spoken(By::Native);
}

#[test]
fn by_tls() {
    every_live_conversation_is_spoken(By::Tls);
}

#[test]
fn by_binary_messages() {
    every_live_conversation_is_spoken(By::WebSocket(BINARY_V1));
}

#[test]
fn by_json() {
    every_live_conversation_is_spoken(By::WebSocket(JSON_V1));
}
