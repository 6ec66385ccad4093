//! Frames of the server as JSON.

use std::fmt::Display;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::limits::FRAME_MAX;
use crate::wire::{
    Conflict, Deliver, ErrorCode, ErrorFrame, Fetched, Joined, Presence, Published, Receipt,
    Roster, RosterForm, ServerFrame, State, StateForm, Welcome, split,
};

/// Calls `on` with the message of each native frame. What is no frame of a server at their end is
/// left out. `text` is where messages are written.
pub fn from_native(mut frames: &[u8], text: &mut Vec<u8>, on: &mut dyn FnMut(&[u8])) {
    while let Ok(Some((frame, len))) = split(frames, FRAME_MAX.max(frames.len())) {
        frames = &frames[len..];
        if let Ok(frame) = ServerFrame::decode(frame) {
            text.clear();
            message(frame, text);
            on(text);
        }
    }
}

/// An object that is being written. Nothing is allocated for it beside what `out` grows by.
struct Object<'o> {
    out: &'o mut Vec<u8>,
    begun: bool,
}

impl<'o> Object<'o> {
    fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, begun: false }
    }

    fn end(self) {
        self.out.push(b'}');
    }

    fn name(&mut self, name: &str, suffix: &str) {
        if self.begun {
            self.out.push(b',');
        }
        self.begun = true;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(suffix.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A number that JavaScript holds exactly.
    fn number(&mut self, name: &str, number: impl Into<u32>) {
        self.name(name, "");
        decimal(self.out, number.into().into());
    }

    /// A number of 64 bits, in quotes.
    fn big(&mut self, name: &str, number: u64) {
        self.name(name, "");
        self.out.push(b'"');
        decimal(self.out, number);
        self.out.push(b'"');
    }

    /// One of a few words, none of which needs escapes.
    fn word(&mut self, name: &str, word: impl Display) {
        self.name(name, "");
        let _ = write!(self.out, "\"{word}\"");
    }

    fn flag(&mut self, name: &str, flag: bool) {
        self.name(name, "");
        self.out.extend_from_slice(if flag { b"true" } else { b"false" });
    }

    /// Bytes: as text if they are UTF-8, else in base64 under a name that says so.
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes) {
            self.name(name, "");
            // Only a writer can fail, and a vector does not.
            let _ = serde_json::to_writer(&mut *self.out, text);
            return;
        }
        self.name(name, "_base64");
        self.out.push(b'"');
        let at = self.out.len();
        self.out.resize(at + bytes.len().div_ceil(3) * 4, 0);
        let written = BASE64.encode_slice(bytes, &mut self.out[at..]);
        debug_assert_eq!(written, Ok(self.out.len() - at));
        self.out.push(b'"');
    }

    /// Bytes of a value, or that there is none.
    fn data(&mut self, data: Option<&[u8]>) {
        match data {
            Some(data) => self.bytes("data", data),
            None => self.flag("deleted", true),
        }
    }

    fn list<T>(
        &mut self,
        name: &str,
        items: impl Iterator<Item = T>,
        item: fn(&mut Object<'_>, T),
    ) {
        self.name(name, "");
        self.out.push(b'[');
        for (n, value) in items.enumerate() {
            if n > 0 {
                self.out.push(b',');
            }
            let mut object = Object::begin(self.out);
            item(&mut object, value);
            object.end();
        }
        self.out.push(b']');
    }
}

fn decimal(out: &mut Vec<u8>, number: u64) {
    let _ = serde_json::to_writer(out, &number);
}

fn message(frame: ServerFrame<'_>, out: &mut Vec<u8>) {
    let mut o = Object::begin(out);
    let o = &mut o;
    match frame {
        ServerFrame::Welcome(welcome) => self::welcome(o, &welcome),
        ServerFrame::Joined(joined) => self::joined(o, &joined),
        ServerFrame::Left(left) => {
            o.word("type", "left");
            o.number("request", left.request);
            o.big("handle", left.handle.0);
        }
        ServerFrame::Epoch(epoch) => {
            o.word("type", "epoch");
            o.big("handle", epoch.handle.0);
            o.number("epoch", epoch.epoch.0);
            o.big("first", epoch.first.0);
        }
        ServerFrame::Deliver(deliver) => {
            o.word("type", "deliver");
            o.big("handle", deliver.handle.0);
            self::deliver(o, deliver);
        }
        ServerFrame::Published(published) => self::published(o, &published),
        ServerFrame::Pong { token } => {
            o.word("type", "pong");
            o.big("token", token);
        }
        ServerFrame::Error(error) => self::error(o, &error),
        ServerFrame::Gap(gap) => {
            o.word("type", "gap");
            o.big("handle", gap.handle.0);
            o.number("epoch", gap.epoch.0);
            o.big("from", gap.from.0);
            o.big("to", gap.to.0);
            o.word("reason", gap.reason.name());
        }
        ServerFrame::Drain(drain) => {
            o.word("type", "drain");
            o.number("grace_ms", drain.grace_ms);
            o.number("reconnect_after_ms", drain.reconnect_after_ms);
        }
        ServerFrame::Receipt(receipt) => self::receipt(o, &receipt),
        ServerFrame::Fetched(fetched) => self::fetched(o, &fetched),
        ServerFrame::State(state) => self::state(o, &state),
        ServerFrame::Conflict(conflict) => self::conflict(o, &conflict),
        ServerFrame::Roster(roster) => self::roster(o, &roster),
        ServerFrame::Redeliver(redeliver) => {
            o.word("type", "redeliver");
            o.big("handle", redeliver.handle.0);
            o.number("epoch", redeliver.epoch.0);
            o.big("from", redeliver.from.0);
            o.number("attempt", redeliver.attempt);
        }
        ServerFrame::StateSet(set) => {
            o.word("type", "state_set");
            o.number("request", set.request);
            o.big("handle", set.handle.0);
            o.big("version", set.version);
            o.big("stamp", set.stamp.0);
        }
        ServerFrame::Probe { token } => {
            o.word("type", "probe");
            o.big("token", token);
        }
        ServerFrame::Authed(authed) => {
            o.word("type", "authed");
            o.number("request", authed.request);
            o.number("valid_ms", authed.valid_ms);
            o.number("renew_after_ms", authed.renew_after_ms);
        }
        // A server sends none.
        ServerFrame::Unknown { kind } => {
            o.word("type", "unknown");
            o.number("kind", kind);
        }
    }
    o.out.push(b'}');
}

fn welcome(o: &mut Object<'_>, welcome: &Welcome) {
    o.word("type", "welcome");
    o.number("version", welcome.version);
    o.number("node", welcome.node.0);
    o.number("shard", welcome.shard.0);
    o.number("heartbeat_ms", welcome.heartbeat_ms);
    o.number("heartbeat_slot_ms", welcome.heartbeat_slot_ms);
    o.number("payload_max", welcome.payload_max);
    o.number("frame_max", welcome.frame_max);
    o.number("groups_per_member_max", welcome.groups_per_member_max);
    o.number("ack_every", welcome.ack_every);
    o.number("ack_interval_ms", welcome.ack_interval_ms);
    o.number("ack_timeout_ms", welcome.ack_timeout_ms);
    o.number("publish_window", welcome.publish_window);
    o.number("producer_ttl_ms", welcome.producer_ttl_ms);
}

fn joined(o: &mut Object<'_>, joined: &Joined<'_>) {
    o.word("type", "joined");
    o.number("request", joined.request);
    o.bytes("group", joined.group);
    o.big("handle", joined.handle.0);
    o.number("epoch", joined.epoch.0);
    o.big("head", joined.head.0);
    o.big("first", joined.first.0);
    o.big("cursor", joined.cursor.0);
}

/// Everything of a message but its group.
fn deliver(o: &mut Object<'_>, deliver: Deliver<'_>) {
    o.big("seq", deliver.seq.0);
    o.big("stamp", deliver.stamp.0);
    o.number("node", deliver.node.0);
    o.number("shard", deliver.shard.0);
    o.bytes("sender", deliver.sender);
    o.bytes("payload", deliver.payload);
}

fn published(o: &mut Object<'_>, published: &Published) {
    o.word("type", "published");
    o.number("request", published.request);
    o.big("handle", published.handle.0);
    o.number("epoch", published.epoch.0);
    o.big("seq", published.seq.0);
    o.big("producer_seq", published.producer_seq);
    o.word("level", published.level.name());
}

fn error(o: &mut Object<'_>, error: &ErrorFrame<'_>) {
    o.word("type", "error");
    o.number("request", error.request);
    o.number("code", error.code);
    if let Some(code) = ErrorCode::from_number(error.code) {
        o.word("name", format_args!("{code:?}"));
    }
    o.big("limit", error.limit);
    o.bytes("field", error.field);
    o.bytes("text", error.text);
}

fn receipt(o: &mut Object<'_>, receipt: &Receipt) {
    o.word("type", "receipt");
    o.big("handle", receipt.handle.0);
    o.number("epoch", receipt.epoch.0);
    o.big("seq", receipt.seq.0);
    o.big("producer_seq", receipt.producer_seq);
    o.number("acked", receipt.acked);
    o.number("members", receipt.members);
    o.number("percent", receipt.percent);
}

fn fetched(o: &mut Object<'_>, fetched: &Fetched<'_>) {
    o.word("type", "fetched");
    o.number("request", fetched.request);
    o.big("handle", fetched.handle.0);
    o.number("epoch", fetched.epoch.0);
    o.big("first", fetched.first.0);
    o.big("last", fetched.last.0);
    o.big("head", fetched.head.0);
    if let Some((from, to, why)) = fetched.gap {
        o.big("gap_from", from.0);
        o.big("gap_to", to.0);
        o.word("gap_reason", why.name());
    }
    o.flag("more", fetched.more);
    o.list("messages", fetched.messages(), deliver);
}

fn state(o: &mut Object<'_>, state: &State<'_>) {
    o.word("type", "state");
    o.number("request", state.head.request);
    o.big("handle", state.head.handle.0);
    let form = match state.head.form {
        StateForm::UpToDate => "up_to_date",
        StateForm::Deltas => "deltas",
        StateForm::Snapshot => "snapshot",
    };
    o.word("form", form);
    o.flag("more", state.head.more);
    o.big("version", state.head.version);
    o.list("entries", state.entries(), |o, entry| {
        o.bytes("key", entry.key);
        o.big("version", entry.version);
        o.big("stamp", entry.stamp.0);
        o.data(entry.data);
    });
}

fn conflict(o: &mut Object<'_>, conflict: &Conflict<'_>) {
    o.word("type", "conflict");
    o.number("request", conflict.request);
    o.big("handle", conflict.handle.0);
    o.big("version", conflict.version);
    o.big("stamp", conflict.stamp.0);
    o.data(conflict.data);
}

fn roster(o: &mut Object<'_>, roster: &Roster<'_>) {
    o.word("type", "roster");
    o.number("request", roster.head.request);
    o.big("handle", roster.head.handle.0);
    let form = match roster.head.form {
        RosterForm::UpToDate => "up_to_date",
        RosterForm::Changes => "changes",
        RosterForm::Page => "page",
        RosterForm::Counts => "counts",
    };
    o.word("form", form);
    o.big("version", roster.head.version);
    o.number("members", roster.head.members);
    o.number("online", roster.head.online);
    o.number("next", roster.head.next);
    o.list("entries", roster.entries(), |o, entry| {
        let what = match entry.what {
            Presence::Joined => "joined",
            Presence::Left => "left",
            Presence::Online => "online",
            Presence::Offline => "offline",
        };
        o.bytes("member", entry.member);
        o.word("what", what);
    });
}
