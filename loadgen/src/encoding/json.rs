//! The other side of `fanfare.json.v1`: frames of a client as JSON, and native frames from the JSON
//! of a server. Written from PROTOCOL.md, apart from the server's own translation.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use fanfare::position::{Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use fanfare::wire::{
    ClientFrame, Deliver, Drain, EpochStart, ErrorFrame, Gap, GapReason, Joined, Left, Mode,
    Published, Receipt, Redeliver, ServerFrame, Start, Welcome,
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
            reason: match v.text("reason")? {
                "damaged" => GapReason::Damaged,
                _ => GapReason::Retention,
            },
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
        _ => return None,
    }
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
        _ => return None,
    };
    Some(message.to_string())
}
