//! The other side of `fanfare.json.v1`: frames of a client as JSON, and native frames from the JSON
//! of a server. Written from PROTOCOL.md, apart from the server's own translation.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use fanfare::position::{Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use fanfare::wire::{
    Authed, ClientFrame, Conflict, Deliver, Drain, EpochStart, ErrorFrame, Expected, Fetched, Gap,
    GapReason, Joined, Left, Mode, Presence, Published, Receipt, Redeliver, Roster, RosterEntry,
    RosterForm, RosterHead, ServerFrame, Start, State, StateEntry, StateForm, StateHead, StateSet,
    Welcome,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// What most messages of a server are.
#[derive(Deserialize)]
struct DeliverFields<'a> {
    r#type: &'a str,
    handle: &'a str,
    seq: &'a str,
    stamp: &'a str,
    node: u16,
    shard: u16,
    #[serde(borrow)]
    sender: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    payload: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    payload_base64: Option<&'a str>,
}

/// Appends the native frame of a server that a message stands for; `None` if it is none that is
/// known here.
pub fn to_native(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if let Ok(deliver) = serde_json::from_slice::<DeliverFields<'_>>(text)
        && deliver.r#type == "deliver"
    {
        return deliver_to_native(&deliver, out);
    }
    let value: Value = serde_json::from_slice(text).ok()?;
    let v = Fields(&value);
    match v.text("type")? {
        "welcome" => Welcome {
            version: v.small("version")?,
            node: NodeId(v.small("node")?),
            shard: ShardId(v.small("shard")?),
            heartbeat_ms: v.number("heartbeat_ms")?,
            payload_max: v.number("payload_max")?,
            frame_max: v.number("frame_max")?,
            groups_per_member_max: v.number("groups_per_member_max")?,
            ack_every: v.number("ack_every")?,
            ack_interval_ms: v.number("ack_interval_ms")?,
            ack_timeout_ms: v.number("ack_timeout_ms")?,
            publish_window: v.number("publish_window")?,
            heartbeat_slot_ms: v.number("heartbeat_slot_ms")?,
            producer_ttl_ms: v.number("producer_ttl_ms")?,
        }
        .encode(out),
        "joined" => Joined {
            request: v.number("request")?,
            epoch: Epoch(v.number("epoch")?),
            handle: v.handle()?,
            head: Seq(v.big("head")?),
            group: v.text("group")?.as_bytes(),
            first: Seq(v.big("first")?),
            cursor: Seq(v.big("cursor")?),
        }
        .encode(out),
        "left" => Left { request: v.number("request")?, handle: v.handle()? }.encode(out),
        "epoch" => EpochStart {
            epoch: Epoch(v.number("epoch")?),
            handle: v.handle()?,
            first: Seq(v.big("first")?),
        }
        .encode(out),
        "published" => Published {
            request: v.number("request")?,
            epoch: Epoch(v.number("epoch")?),
            handle: v.handle()?,
            producer_seq: v.big("producer_seq")?,
            seq: Seq(v.big("seq")?),
            level: match v.text("level")? {
                "memory" => Level::Memory,
                _ => Level::Durable,
            },
        }
        .encode(out),
        "pong" => ServerFrame::encode_pong(out, v.big("token")?),
        "probe" => ServerFrame::encode_probe(out, v.big("token")?),
        "error" => ErrorFrame {
            request: v.number("request")?,
            code: v.small("code")?,
            limit: v.big("limit")?,
            field: v.text("field")?.as_bytes(),
            text: v.text("text")?.as_bytes(),
        }
        .encode(out),
        "gap" => Gap {
            handle: v.handle()?,
            from: Seq(v.big("from")?),
            to: Seq(v.big("to")?),
            epoch: Epoch(v.number("epoch")?),
            reason: v.gap_reason("reason")?,
        }
        .encode(out),
        "drain" => Drain {
            grace_ms: v.number("grace_ms")?,
            reconnect_after_ms: v.number("reconnect_after_ms")?,
        }
        .encode(out),
        "receipt" => Receipt {
            handle: v.handle()?,
            seq: Seq(v.big("seq")?),
            producer_seq: v.big("producer_seq")?,
            epoch: Epoch(v.number("epoch")?),
            acked: v.number("acked")?,
            members: v.number("members")?,
            percent: v.number("percent")? as u8,
        }
        .encode(out),
        "redeliver" => Redeliver {
            handle: v.handle()?,
            from: Seq(v.big("from")?),
            epoch: Epoch(v.number("epoch")?),
            attempt: v.number("attempt")?,
        }
        .encode(out),
        "authed" => Authed {
            request: v.number("request")?,
            valid_ms: v.number("valid_ms")?,
            renew_after_ms: v.number("renew_after_ms")?,
        }
        .encode(out),
        "fetched" => fetched(&v, out)?,
        "state" => state(&v, out)?,
        "state_set" => StateSet {
            request: v.number("request")?,
            handle: v.handle()?,
            version: v.big("version")?,
            stamp: Stamp(v.big("stamp")?),
        }
        .encode(out),
        "conflict" => Conflict {
            request: v.number("request")?,
            handle: v.handle()?,
            version: v.big("version")?,
            stamp: Stamp(v.big("stamp")?),
            data: v.data()?.as_deref(),
        }
        .encode(out),
        "roster" => roster(&v, out)?,
        _ => return None,
    }
    Some(())
}

fn fetched(v: &Fields<'_>, out: &mut Vec<u8>) -> Option<()> {
    let mut frames = Vec::new();
    for message in v.list("messages")? {
        let m = Fields(message);
        Deliver {
            handle: v.handle()?,
            seq: Seq(m.big("seq")?),
            stamp: Stamp(m.big("stamp")?),
            node: NodeId(m.small("node")?),
            shard: ShardId(m.small("shard")?),
            sender: &m.bytes("sender")?,
            payload: &m.bytes("payload")?,
        }
        .encode(&mut frames);
    }
    let gap = match v.big("gap_from") {
        Some(from) => Some((Seq(from), Seq(v.big("gap_to")?), v.gap_reason("gap_reason")?)),
        None => None,
    };
    Fetched {
        request: v.number("request")?,
        epoch: Epoch(v.number("epoch")?),
        handle: v.handle()?,
        first: Seq(v.big("first")?),
        last: Seq(v.big("last")?),
        head: Seq(v.big("head")?),
        gap,
        more: v.flag("more")?,
        frames: &frames,
    }
    .encode(out);
    Some(())
}

fn state(v: &Fields<'_>, out: &mut Vec<u8>) -> Option<()> {
    let mut entries = Vec::new();
    for entry in v.list("entries")? {
        let e = Fields(entry);
        entries.push((e.big("version")?, e.big("stamp")?, e.bytes("key")?, e.data()?));
    }
    let head = StateHead {
        request: v.number("request")?,
        form: match v.text("form")? {
            "up_to_date" => StateForm::UpToDate,
            "deltas" => StateForm::Deltas,
            "snapshot" => StateForm::Snapshot,
            _ => return None,
        },
        more: v.flag("more")?,
        handle: v.handle()?,
        version: v.big("version")?,
    };
    let entries = entries.iter().map(|(version, stamp, key, data)| StateEntry {
        version: *version,
        stamp: Stamp(*stamp),
        key,
        data: data.as_deref(),
    });
    State::encode(out, &head, entries);
    Some(())
}

fn roster(v: &Fields<'_>, out: &mut Vec<u8>) -> Option<()> {
    let mut entries = Vec::new();
    for entry in v.list("entries")? {
        let e = Fields(entry);
        let what = match e.text("what")? {
            "joined" => Presence::Joined,
            "left" => Presence::Left,
            "online" => Presence::Online,
            "offline" => Presence::Offline,
            _ => return None,
        };
        entries.push((what, e.bytes("member")?));
    }
    let head = RosterHead {
        request: v.number("request")?,
        form: match v.text("form")? {
            "up_to_date" => RosterForm::UpToDate,
            "changes" => RosterForm::Changes,
            "page" => RosterForm::Page,
            "counts" => RosterForm::Counts,
            _ => return None,
        },
        handle: v.handle()?,
        version: v.big("version")?,
        members: v.number("members")?,
        online: v.number("online")?,
        next: v.number("next")?,
    };
    let entries = entries.iter().map(|(what, member)| RosterEntry { what: *what, member });
    Roster::encode(out, &head, entries);
    Some(())
}

fn deliver_to_native(fields: &DeliverFields<'_>, out: &mut Vec<u8>) -> Option<()> {
    let decoded;
    let payload = match (&fields.payload, fields.payload_base64) {
        (Some(text), None) => text.as_bytes(),
        (None, Some(base64)) => {
            decoded = BASE64.decode(base64).ok()?;
            &decoded
        }
        _ => return None,
    };
    let deliver = Deliver {
        handle: Handle(fields.handle.parse().ok()?),
        seq: Seq(fields.seq.parse().ok()?),
        stamp: Stamp(fields.stamp.parse().ok()?),
        node: NodeId(fields.node),
        shard: ShardId(fields.shard),
        sender: fields.sender.as_bytes(),
        payload,
    };
    deliver.encode(out);
    Some(())
}

struct Fields<'v>(&'v Value);

impl<'v> Fields<'v> {
    fn text(&self, name: &str) -> Option<&'v str> {
        self.0.get(name)?.as_str()
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.0.get(name)?.as_u64()?.try_into().ok()
    }

    fn small(&self, name: &str) -> Option<u16> {
        self.number(name)?.try_into().ok()
    }

    /// A number of 64 bits must be in quotes.
    fn big(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    fn handle(&self) -> Option<Handle> {
        self.big("handle").map(Handle)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.0.get(name)?.as_bool()
    }

    fn list(&self, name: &str) -> Option<&'v [Value]> {
        self.0.get(name)?.as_array().map(Vec::as_slice)
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        match self.text(name) {
            Some(text) => Some(text.as_bytes().to_vec()),
            None => BASE64.decode(self.text(&format!("{name}_base64"))?).ok(),
        }
    }

    /// The value of a key; `Some(None)` if the key is deleted.
    fn data(&self) -> Option<Option<Vec<u8>>> {
        if self.flag("deleted") == Some(true) { Some(None) } else { self.bytes("data").map(Some) }
    }

    fn gap_reason(&self, name: &str) -> Option<GapReason> {
        match self.text(name)? {
            "damaged" => Some(GapReason::Damaged),
            "retention" => Some(GapReason::Retention),
            _ => None,
        }
    }
}

/// Puts bytes into an object: as text if they are, else in base64.
fn put(object: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = text.into(),
        Err(_) => object[format!("{name}_base64")] = BASE64.encode(bytes).into(),
    }
}

/// The message that stands for a frame of a client; `None` for those that are not needed here.
pub fn from_native(frame: &ClientFrame<'_>) -> Option<String> {
    let message = match frame {
        ClientFrame::Hello(hello) => {
            let producer = hello.producer.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            let mut o = json!({ "type": "hello", "producer": producer, "flags": hello.flags });
            put(&mut o, "member", hello.member);
            o
        }
        ClientFrame::Join(join) => {
            let groups: Vec<_> = join
                .entries()
                .map(|entry| {
                    let mut o = json!({ "roster": entry.roster });
                    put(&mut o, "group", entry.group);
                    if entry.mode == Mode::Durable {
                        o["mode"] = "durable".into();
                    }
                    match entry.start {
                        Start::Tail => o["start"] = "tail".into(),
                        Start::Seq(from) => o["from"] = from.0.to_string().into(),
                        Start::Cursor => o["start"] = "cursor".into(),
                    }
                    o
                })
                .collect();
            json!({ "type": "join", "request": join.request, "groups": groups })
        }
        ClientFrame::Leave(leave) => {
            let groups: Vec<_> = leave
                .entries()
                .map(|group| {
                    let mut o = json!({});
                    put(&mut o, "group", group);
                    o
                })
                .collect();
            json!({ "type": "leave", "request": leave.request, "groups": groups })
        }
        ClientFrame::Publish(publish) => {
            let mut o = json!({
                "type": "publish",
                "request": publish.request,
                "producer_seq": publish.producer_seq.to_string(),
                "receipt": publish.receipt,
            });
            match publish.level {
                None => {}
                Some(Level::Durable) => o["level"] = "durable".into(),
                Some(Level::Memory) => o["level"] = "memory".into(),
            }
            put(&mut o, "group", publish.group);
            put(&mut o, "payload", publish.payload);
            o
        }
        ClientFrame::Ack(acks) => {
            let acks: Vec<_> = acks
                .entries()
                .map(|ack| {
                    json!({
                        "handle": ack.handle.0.to_string(),
                        "seq": ack.seq.0.to_string(),
                        "epoch": ack.epoch.0,
                    })
                })
                .collect();
            json!({ "type": "ack", "acks": acks })
        }
        ClientFrame::Ping { token } => json!({ "type": "ping", "token": token.to_string() }),
        ClientFrame::QuietPing { token } => {
            json!({ "type": "ping", "token": token.to_string(), "quiet": true })
        }
        ClientFrame::Probed { token } => json!({ "type": "probed", "token": token.to_string() }),
        ClientFrame::Auth(auth) => {
            let token = std::str::from_utf8(auth.token).ok()?;
            json!({ "type": "auth", "request": auth.request, "token": token })
        }
        ClientFrame::Fetch(fetch) => {
            let mut o = json!({
                "type": "fetch",
                "request": fetch.request,
                "from": fetch.from.0.to_string(),
                "count_max": fetch.count_max,
                "bytes_max": fetch.bytes_max,
            });
            if let Some(to) = fetch.to {
                o["to"] = to.0.to_string().into();
            }
            put(&mut o, "group", fetch.group);
            o
        }
        ClientFrame::SetState(set) => {
            let mut o = json!({ "type": "set_state", "request": set.request });
            match set.expected {
                Expected::Any => {}
                Expected::Absent => o["expected"] = "0".into(),
                Expected::Version(version) => o["expected"] = version.to_string().into(),
            }
            put(&mut o, "group", set.group);
            put(&mut o, "key", set.key);
            match set.data {
                Some(data) => put(&mut o, "data", data),
                None => o["delete"] = true.into(),
            }
            o
        }
        ClientFrame::Sync(sync) => {
            let known = sync.known.to_string();
            let mut o = json!({ "type": "sync", "request": sync.request, "known": known });
            put(&mut o, "group", sync.group);
            o
        }
        ClientFrame::RosterQuery(query) => {
            let mut o = json!({
                "type": "roster_query",
                "request": query.request,
                "known": query.known.to_string(),
                "after": query.after,
                "limit": query.limit,
            });
            put(&mut o, "group", query.group);
            o
        }
        ClientFrame::Unknown { .. } => return None,
    };
    Some(message.to_string())
}
