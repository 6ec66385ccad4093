//! What waits to be posted, and what may be acknowledged after it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::WebhookArgs;
use crate::client::{Event, GroupName};
use crate::position::{Epoch, Seq};

/// Messages, gaps and changes of epochs in the order in which they came.
pub(super) struct Batch {
    member: String,
    count_max: usize,
    bytes_max: usize,
    wait: Duration,
    events: Vec<Value>,
    bytes: usize,
    begun: Option<Instant>,
    /// The last place of each group.
    places: HashMap<GroupName, (Epoch, Seq)>,
}

impl Batch {
    pub fn new(args: &WebhookArgs) -> Self {
        Self {
            member: args.upstream.member.clone(),
            count_max: args.batch_max as usize,
            bytes_max: args.batch_bytes_max as usize,
            wait: Duration::from_millis(args.batch_wait_ms.into()),
            events: Vec::new(),
            bytes: 0,
            begun: None,
            places: HashMap::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// When the batch is to be posted, although it is not full; `None` while it is empty.
    pub fn due_in(&self) -> Option<Duration> {
        Some((self.begun? + self.wait).saturating_duration_since(Instant::now()))
    }

    pub fn is_due(&self) -> bool {
        self.events.len() >= self.count_max
            || self.bytes >= self.bytes_max
            || self.due_in().is_some_and(|due| due.is_zero())
    }

    /// Adds a message, a gap or a change of the epoch.
    pub fn push(&mut self, event: &Event) {
        let mut out = Map::new();
        match event {
            Event::Message(m) => {
                out.insert("type".to_owned(), "message".into());
                out.insert("id".to_owned(), id(&m.group, m.epoch, m.seq).into());
                put(&mut out, "group", &m.group);
                out.insert("epoch".to_owned(), m.epoch.0.into());
                out.insert("seq".to_owned(), m.seq.0.into());
                out.insert("time_ms".to_owned(), (m.stamp.0 >> 16).into());
                put(&mut out, "sender", m.sender());
                put(&mut out, "payload", m.payload());
                self.bytes += m.payload().len();
                self.places.insert(m.group.clone(), (m.epoch, m.seq));
            }
            Event::Gap { group, from, to, epoch, reason } => {
                let reason = reason.name();
                out.insert("type".to_owned(), "gap".into());
                put(&mut out, "group", group);
                let fields = [("epoch", json!(epoch.0)), ("from", json!(from.0))];
                out.extend(fields.map(|(name, value)| (name.to_owned(), value)));
                out.extend([("to".to_owned(), to.0.into()), ("reason".to_owned(), reason.into())]);
                self.places.insert(group.clone(), (*epoch, *to));
            }
            Event::EpochChanged { group, before, last, epoch, first } => {
                out.insert("type".to_owned(), "epoch_changed".into());
                put(&mut out, "group", group);
                out.extend([
                    ("before".to_owned(), before.0.into()),
                    ("last".to_owned(), last.0.into()),
                    ("epoch".to_owned(), epoch.0.into()),
                    ("first".to_owned(), first.0.into()),
                ]);
            }
            _ => return,
        }
        self.begun.get_or_insert_with(Instant::now);
        self.events.push(Value::Object(out));
    }

    /// The batch as it is posted.
    pub fn body(&self) -> Vec<u8> {
        json!({ "member": self.member, "events": self.events }).to_string().into_bytes()
    }

    /// Empties the batch. Returns what may be acknowledged.
    pub fn clear(&mut self) -> HashMap<GroupName, (Epoch, Seq)> {
        self.events.clear();
        self.bytes = 0;
        self.begun = None;
        std::mem::take(&mut self.places)
    }
}

/// Names a message for all time.
fn id(group: &[u8], epoch: Epoch, seq: Seq) -> String {
    match std::str::from_utf8(group) {
        Ok(name) => format!("{name}/{}/{}", epoch.0, seq.0),
        Err(_) => format!("base64:{}/{}/{}", STANDARD.encode(group), epoch.0, seq.0),
    }
}

/// Bytes as text if they are UTF-8, otherwise in base64 under a name that says so.
fn put(out: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => out.insert(name.to_owned(), text.into()),
        Err(_) => out.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}
