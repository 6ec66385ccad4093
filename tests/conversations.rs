//! The client's core speaks the conversations that every client speaks; see
//! tests/conversations/README.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed test may panic"
)]

#[path = "conversations/rust/mod.rs"]
mod rust;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use fanfare::client::{AckMode, ClientError, Core, Link, Membership, Options, Publishing};
use fanfare::position::{Epoch, Level, Nanos, ProducerId, Seq};
use fanfare::wire::{Expected, MAGIC};
use rust::event;
use rust::frames::{Frames, bytes_of};
use rust::script::{Names, check, resolve};
use serde_json::Value;

/// What a step may be.
const VERBS: [&str; 12] = [
    "do", "wait", "connect", "refuse", "server", "bytes", "client", "event", "break", "closes",
    "over", "restart",
];

/// A client and the server that the table plays.
struct Play<'a> {
    frames: &'a Frames,
    options: Options,
    core: Core,
    now: Nanos,
    names: Names,
    /// The newest token, for a client that asks for it.
    token: Arc<Mutex<String>>,
    sent: Vec<u8>,
}

impl<'a> Play<'a> {
    fn new(frames: &'a Frames, table: &Value) -> Self {
        let told = &table["options"];
        let renews = table["steps"].as_array().unwrap().iter().any(|step| step["do"] == "token");
        let mut options = Options::new(told["member"].as_str().unwrap());
        if let Some(hex) = told["producer"].as_str() {
            let id = bytes_of(&serde_json::json!({ "hex": hex }));
            options = options.producer(ProducerId::try_from(&id[..]).unwrap());
        }
        if told["acks"] == "explicit" {
            options = options.acks(AckMode::Explicit);
        }
        let set = |field: &mut u64, name: &str| {
            *field = told[name].as_u64().unwrap_or(*field);
        };
        set(&mut options.backoff_min_ms, "backoff_min_ms");
        set(&mut options.backoff_max_ms, "backoff_max_ms");
        set(&mut options.answer_timeout_ms, "answer_timeout_ms");
        let token = Arc::new(Mutex::new(String::new()));
        if let Some(only) = told["token"].as_str() {
            options = options.token(only);
        } else if renews {
            let newest = Arc::clone(&token);
            options = options.token_from(move || newest.lock().unwrap().clone());
        }
        let core = Core::new(options.clone()).unwrap();
        let (now, names) = (Nanos(0), Names::new());
        Self { frames, options, core, now, names, token, sent: Vec::new() }
    }

    /// The next frame that the client wants to send.
    fn frame(&mut self) -> Option<(String, Value)> {
        self.core.advance(self.now);
        self.sent.extend(self.core.take_output());
        if self.sent.starts_with(&MAGIC) {
            self.sent.drain(..MAGIC.len());
        }
        let len = 4 + u32::from_le_bytes(*self.sent.first_chunk()?) as usize;
        let frame: Vec<u8> = self.sent.drain(..len).collect();
        Some(self.frames.decode(&frame))
    }

    fn command(&mut self, step: &Value) -> Result<Option<u64>, ClientError> {
        let step = resolve(step, &self.names);
        let text = |name: &str| step[name].as_str().unwrap_or_default().as_bytes().to_vec();
        let number = |name: &str| step[name].as_u64().unwrap_or(0);
        let small = |name: &str| u32::try_from(number(name)).unwrap();
        let (core, group) = (&mut self.core, text("group"));
        match step["do"].as_str().unwrap() {
            "join" => {
                let durable = step["durable"] == true;
                let how = if durable { Membership::durable() } else { Membership::live() };
                let how = step["from"].as_u64().map_or(how, |from| how.from(Seq(from)));
                let how = if step["roster"] == true { how.with_roster() } else { how };
                core.join(&group, how).map(|()| None)
            }
            "leave" => core.leave(&group).map(|()| None),
            "publish" => {
                let level = match step["level"].as_str() {
                    Some("durable") => Some(Level::Durable),
                    Some("memory") => Some(Level::Memory),
                    _ => None,
                };
                let how = Publishing { level, receipt_percent: number("receipt") as u8 };
                core.publish(&group, &bytes_of(&step["payload"]), how).map(|id| Some(id.0))
            }
            "ack" => core
                .ack_up_to(&group, Epoch(small("epoch")), Seq(number("seq")), self.now)
                .map(|()| None),
            "fetch" => {
                let to = Some(Seq(number("to"))).filter(|to| to.0 > 0);
                core.fetch(&group, Seq(number("from")), to, small("count_max")).map(|id| Some(id.0))
            }
            "set_state" => {
                let expected = match &step["expected"] {
                    Value::Number(version) => Expected::Version(version.as_u64().unwrap()),
                    Value::String(absent) if absent == "absent" => Expected::Absent,
                    _ => Expected::Any,
                };
                let data = step["data"].as_str().map(str::as_bytes);
                core.set_state(&group, &text("key"), expected, data).map(|id| Some(id.0))
            }
            "sync" => core.sync(&group, number("known")).map(|id| Some(id.0)),
            "roster" => core
                .roster(&group, number("known"), small("after"), small("limit"))
                .map(|id| Some(id.0)),
            "token" => {
                *self.token.lock().unwrap() = step["token"].as_str().unwrap().to_owned();
                Ok(None)
            }
            "close" => {
                core.close(self.now);
                Ok(None)
            }
            other => panic!("command {other}"),
        }
    }

    /// Waits until the client wants to connect.
    fn due(&mut self, range: &Value) {
        let Link::Connect { at } = self.core.link() else { panic!("{:?}", self.core.link()) };
        let wait_ms = at.since(self.now) / 1_000_000;
        let (low, high) = (range[0].as_u64().unwrap(), range[1].as_u64().unwrap());
        assert!((low..=high).contains(&wait_ms), "connects after {wait_ms} ms");
        self.now = self.now.max(at);
    }

    fn step(&mut self, step: &Value) {
        let verb = VERBS.into_iter().find(|verb| step.get(*verb).is_some()).expect("a verb");
        let arg = &step[verb];
        let expected = |step: &Value| {
            let mut fields = step.as_object().unwrap().clone();
            fields.remove(verb);
            Value::Object(fields)
        };
        match verb {
            "do" => match (self.command(step), step["fails"].as_str()) {
                (Ok(id), None) => {
                    if let (Some(name), Some(id)) = (step["as"].as_str(), id) {
                        self.names.insert(name.to_owned(), id.into());
                    }
                }
                (Err(error), Some(kind)) => assert_eq!(error_kind(&error), kind, "{error}"),
                (result, fails) => panic!("{result:?}, not {fails:?}"),
            },
            "wait" => self.now = self.now.plus_ms(arg.as_u64().unwrap()),
            "connect" => {
                self.due(arg);
                self.core.connected(self.now);
            }
            "refuse" => {
                self.due(arg);
                self.core.disconnected(self.now);
            }
            "server" => {
                let frame = resolve(step, &self.names);
                self.core.receive(&self.frames.encode(arg.as_str().unwrap(), &frame));
            }
            "bytes" => self.core.receive(&bytes_of(&serde_json::json!({ "hex": arg }))),
            "client" => match (self.frame(), arg.as_str().unwrap()) {
                (None, "nothing") => {}
                (Some((name, fields)), wanted) if name == wanted => {
                    check(&fields, &expected(step), &mut self.names, wanted);
                }
                (frame, wanted) => panic!("{frame:?}, not {wanted}"),
            },
            "event" => match (self.core.next_event(self.now), arg.as_str().unwrap()) {
                (None, "nothing") => {}
                (Some(event), wanted) => {
                    let (name, fields) = event::plain(&event);
                    assert_eq!(name, wanted, "{event:?}");
                    check(&fields, &expected(step), &mut self.names, wanted);
                }
                (None, wanted) => panic!("no event {wanted}"),
            },
            "break" => self.core.disconnected(self.now),
            "closes" => {
                // Its last words are sent first.
                while self.core.link() == Link::Up {
                    assert!(self.frame().is_some(), "the client does not close");
                }
                self.sent.clear();
                assert_eq!(self.core.link(), Link::Close);
                self.core.disconnected(self.now);
            }
            "over" => assert_eq!(self.core.link(), Link::Over),
            "restart" => {
                self.core = Core::resume(self.options.clone(), &self.core.to_resume()).unwrap();
                (self.now, self.sent) = (Nanos(0), Vec::new());
            }
            other => panic!("step {other}"),
        }
    }
}

fn error_kind(error: &ClientError) -> &'static str {
    match error {
        ClientError::MemberLength(_)
        | ClientError::GroupLength(_)
        | ClientError::KeyLength(_)
        | ClientError::PayloadTooLong { .. } => "length",
        ClientError::Percent(_) => "range",
        ClientError::Full { .. } | ClientError::TooManyGroups(_) => "full",
        ClientError::NotJoined => "not_joined",
        ClientError::Over(_) => "over",
        _ => "other",
    }
}

#[test]
fn the_tables_of_frames_write_and_read_the_golden_bytes() {
    let frames = Frames::read();
    let text = std::fs::read_to_string("PROTOCOL.md").unwrap();
    let mut seen = 0;
    for block in text.split("```golden ").skip(1) {
        let (name, body) = block.split("```").next().unwrap().split_once('\n').unwrap();
        let lines = body.split_once("\n\n").unwrap().1.lines();
        let hex: String = lines.filter_map(|line| line.split(';').next()).collect();
        let bytes = bytes_of(&serde_json::json!({ "hex": hex.replace(' ', "") }));
        let (kind, fields) = frames.decode(&bytes);
        assert_eq!(kind, name.split('-').next().unwrap());
        assert_eq!(frames.encode(&kind, &fields), bytes, "{name}");
        seen += 1;
    }
    assert!(seen > 30, "{seen}");
}

#[test]
fn every_conversation_is_spoken() {
    let frames = Frames::read();
    let mut files: Vec<_> = std::fs::read_dir("tests/conversations/scripted")
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    let mut failed = Vec::new();
    for file in &files {
        let table: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let mut play = Play::new(&frames, &table);
        for (i, step) in table["steps"].as_array().unwrap().iter().enumerate() {
            if catch_unwind(AssertUnwindSafe(|| play.step(step))).is_err() {
                failed.push(format!("{}: step {} {step}", file.display(), i + 1));
                break;
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(files.len() >= 15, "{}", files.len());
}
