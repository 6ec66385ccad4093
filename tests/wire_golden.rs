//! The codec against the bytes in PROTOCOL.md, which are written by hand from its tables.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use fanfare::position::Level;
use fanfare::wire::{
    Acks, ClientFrame, GapReason, Join, Leave, MAGIC, ServerFrame, Start, WireError, kind, split,
};

const PROTOCOL: &str = include_str!("../PROTOCOL.md");
const MAX: usize = fanfare::limits::FRAME_MAX;

struct Vector {
    name: String,
    fields: String,
    bytes: Vec<u8>,
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("a hex byte")).collect()
}

/// The fenced blocks of this kind: the rest of the opening line, and the lines inside.
fn blocks(language: &str) -> Vec<(String, Vec<&'static str>)> {
    let mut found = Vec::new();
    let mut lines = PROTOCOL.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = info.strip_prefix(language) {
            found.push((name.trim().to_owned(), body));
        }
    }
    found
}

fn vectors() -> Vec<Vector> {
    blocks("golden")
        .into_iter()
        .map(|(name, lines)| {
            let (mut fields, mut bytes) = (String::new(), Vec::new());
            for line in lines {
                if line.contains(" =") {
                    writeln!(fields, "{line}").unwrap();
                } else {
                    bytes.extend(hex(line.split(';').next().unwrap()));
                }
            }
            Vector { name, fields, bytes }
        })
        .collect()
}

fn text(bytes: &[u8]) -> String {
    format!("{:?}", str::from_utf8(bytes).expect("the vectors use ASCII names"))
}

fn bytes_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

fn level(level: Option<Level>) -> &'static str {
    match level {
        None => "default",
        Some(Level::Durable) => "durable",
        Some(Level::Memory) => "memory",
    }
}

/// Collects `name = value` lines.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        let line = format!("{name} = {value}");
        writeln!(self.0, "{}", line.trim_end()).unwrap();
    }
}

/// The kind's name, its fields as PROTOCOL.md writes them, and the frame encoded again.
fn client(frame: ClientFrame<'_>) -> (&'static str, String, Vec<u8>) {
    let (mut f, mut out) = (Lines::default(), Vec::new());
    let name = match frame {
        ClientFrame::Hello(hello) => {
            f.add("version_min", hello.version_min);
            f.add("version_max", hello.version_max);
            f.add("encoding", hello.encoding);
            f.add("flags", hello.flags);
            f.add("producer", bytes_hex(&hello.producer));
            f.add("member", text(hello.member));
            hello.encode(&mut out);
            "HELLO"
        }
        ClientFrame::Join(join) => {
            let entries: Vec<_> = join.entries().collect();
            f.add("request", join.request);
            f.add("count", entries.len());
            for (i, entry) in entries.iter().enumerate() {
                let start = match entry.start {
                    Start::Tail => "tail".to_owned(),
                    Start::Seq(seq) => format!("seq {seq}"),
                };
                f.add(&format!("{i}.start"), start);
                f.add(&format!("{i}.group"), text(entry.group));
            }
            Join::encode(&mut out, join.request, &entries);
            "JOIN"
        }
        ClientFrame::Leave(leave) => {
            let groups: Vec<_> = leave.entries().collect();
            f.add("request", leave.request);
            f.add("count", groups.len());
            for (i, group) in groups.iter().enumerate() {
                f.add(&format!("{i}.group"), text(group));
            }
            Leave::encode(&mut out, leave.request, &groups);
            "LEAVE"
        }
        ClientFrame::Publish(publish) => {
            f.add("request", publish.request);
            f.add("level", level(publish.level));
            f.add("producer_seq", publish.producer_seq);
            f.add("group", text(publish.group));
            f.add("payload", bytes_hex(publish.payload));
            publish.encode(&mut out);
            "PUBLISH"
        }
        ClientFrame::Ack(acks) => {
            let entries: Vec<_> = acks.entries().collect();
            f.add("count", entries.len());
            for (i, ack) in entries.iter().enumerate() {
                f.add(&format!("{i}.handle"), ack.handle);
                f.add(&format!("{i}.seq"), ack.seq);
                f.add(&format!("{i}.epoch"), ack.epoch);
            }
            Acks::encode(&mut out, &entries);
            "ACK"
        }
        ClientFrame::Ping { token } => {
            f.add("token", token);
            ClientFrame::encode_ping(&mut out, token);
            "PING"
        }
        ClientFrame::Unknown { .. } => "unknown",
    };
    (name, f.0, out)
}

fn server(frame: ServerFrame<'_>) -> (&'static str, String, Vec<u8>) {
    let (mut f, mut out) = (Lines::default(), Vec::new());
    let name = match frame {
        ServerFrame::Welcome(welcome) => {
            f.add("version", welcome.version);
            f.add("node", welcome.node);
            f.add("shard", welcome.shard);
            f.add("heartbeat_ms", welcome.heartbeat_ms);
            f.add("payload_max", welcome.payload_max);
            f.add("frame_max", welcome.frame_max);
            f.add("groups_per_member_max", welcome.groups_per_member_max);
            f.add("ack_every", welcome.ack_every);
            f.add("ack_interval_ms", welcome.ack_interval_ms);
            welcome.encode(&mut out);
            "WELCOME"
        }
        ServerFrame::Joined(joined) => {
            f.add("request", joined.request);
            f.add("epoch", joined.epoch);
            f.add("handle", joined.handle);
            f.add("head", joined.head);
            f.add("group", text(joined.group));
            joined.encode(&mut out);
            "JOINED"
        }
        ServerFrame::Left(left) => {
            f.add("request", left.request);
            f.add("handle", left.handle);
            left.encode(&mut out);
            "LEFT"
        }
        ServerFrame::Epoch(epoch) => {
            f.add("epoch", epoch.epoch);
            f.add("handle", epoch.handle);
            f.add("first", epoch.first);
            epoch.encode(&mut out);
            "EPOCH"
        }
        ServerFrame::Deliver(deliver) => {
            f.add("handle", deliver.handle);
            f.add("seq", deliver.seq);
            f.add("stamp", deliver.stamp.0);
            f.add("node", deliver.node);
            f.add("shard", deliver.shard);
            f.add("sender", text(deliver.sender));
            f.add("payload", bytes_hex(deliver.payload));
            deliver.encode(&mut out);
            assert_eq!(out.len(), deliver.encoded_len());
            "DELIVER"
        }
        ServerFrame::Published(published) => {
            f.add("request", published.request);
            f.add("epoch", published.epoch);
            f.add("handle", published.handle);
            f.add("producer_seq", published.producer_seq);
            f.add("seq", published.seq);
            f.add("level", level(Some(published.level)));
            published.encode(&mut out);
            "PUBLISHED"
        }
        ServerFrame::Pong { token } => {
            f.add("token", token);
            ServerFrame::encode_pong(&mut out, token);
            "PONG"
        }
        ServerFrame::Error(error) => {
            f.add("request", error.request);
            f.add("code", error.code);
            f.add("limit", error.limit);
            f.add("field", text(error.field));
            f.add("text", text(error.text));
            error.encode(&mut out);
            "ERROR"
        }
        ServerFrame::Gap(gap) => {
            f.add("handle", gap.handle);
            f.add("from", gap.from);
            f.add("to", gap.to);
            f.add("epoch", gap.epoch);
            let reason = match gap.reason {
                GapReason::Retention => "retention",
                GapReason::Damaged => "damaged",
            };
            f.add("reason", reason);
            gap.encode(&mut out);
            "GAP"
        }
        ServerFrame::Drain(drain) => {
            f.add("grace_ms", drain.grace_ms);
            f.add("reconnect_after_ms", drain.reconnect_after_ms);
            drain.encode(&mut out);
            "DRAIN"
        }
        ServerFrame::Unknown { .. } => "unknown",
    };
    (name, f.0, out)
}

fn either(bytes: &[u8]) -> Result<(&'static str, String, Vec<u8>), WireError> {
    let (frame, taken) = split(bytes, MAX)?.expect("a whole frame");
    assert_eq!(taken, bytes.len(), "the vector is one frame");
    if frame.kind < 0x80 {
        ClientFrame::decode(frame).map(client)
    } else {
        ServerFrame::decode(frame).map(server)
    }
}

#[test]
fn codec_agrees_with_every_golden_vector() {
    for vector in vectors() {
        let (kind, fields, encoded) = either(&vector.bytes).unwrap();
        assert_eq!(vector.name.split('-').next(), Some(kind), "name of the vector");
        assert_eq!(fields, vector.fields, "decoding {}", vector.name);
        assert_eq!(encoded, vector.bytes, "encoding {}", vector.name);
    }
}

#[test]
fn every_kind_has_a_golden_vector() {
    let have: BTreeSet<u8> = vectors().iter().map(|vector| vector.bytes[4]).collect();
    let want = BTreeSet::from([
        kind::HELLO,
        kind::JOIN,
        kind::LEAVE,
        kind::PUBLISH,
        kind::ACK,
        kind::PING,
        kind::WELCOME,
        kind::JOINED,
        kind::LEFT,
        kind::EPOCH,
        kind::DELIVER,
        kind::PUBLISHED,
        kind::PONG,
        kind::ERROR,
        kind::GAP,
        kind::DRAIN,
    ]);
    assert_eq!(have, want);

    // The list above is whole if no other kind decodes to something known.
    for kind in 0..=u8::MAX {
        let frame = fanfare::wire::Frame { kind, flags: 0, body: &[] };
        let known = !matches!(ClientFrame::decode(frame), Ok(ClientFrame::Unknown { .. }))
            || !matches!(ServerFrame::decode(frame), Ok(ServerFrame::Unknown { .. }));
        assert_eq!(known, want.contains(&kind), "kind {kind:#04x}");
    }
}

#[test]
fn a_frame_cut_at_any_byte_waits_for_the_rest() {
    for vector in vectors() {
        for cut in 0..vector.bytes.len() {
            assert_eq!(split(&vector.bytes[..cut], MAX), Ok(None), "{} at {cut}", vector.name);
        }
    }
}

#[test]
fn a_body_cut_at_any_byte_is_malformed() {
    for vector in vectors() {
        // A payload ends where the body ends, so a shorter one is another message.
        let payload = match vector.name.split('-').next().unwrap() {
            "PUBLISH" => vector.bytes.len() - (8 + 16 + usize::from(vector.bytes[13])),
            "DELIVER" => vector.bytes.len() - (8 + 32 + usize::from(vector.bytes[36])),
            _ => 0,
        };
        for body in 0..vector.bytes.len() - 8 {
            let mut bytes = vector.bytes[..8 + body].to_vec();
            bytes[..4].copy_from_slice(&(body as u32 + 4).to_le_bytes());
            let got = either(&bytes);
            if body + payload < vector.bytes.len() - 8 {
                assert!(
                    matches!(got, Err(WireError::Malformed { kind, .. }) if kind == bytes[4]),
                    "{} with a body of {body} bytes: {got:?}",
                    vector.name
                );
            } else {
                assert_eq!(got.unwrap().2, bytes, "{} with a short payload", vector.name);
            }
        }
    }
}

#[test]
fn unknown_flags_and_bytes_after_the_last_field_are_ignored() {
    for vector in vectors() {
        let kind = vector.name.split('-').next().unwrap();
        let mut bytes = vector.bytes.clone();
        bytes[5] = 0xFF;
        bytes[6..8].fill(0xFF);
        if kind != "PUBLISH" && kind != "DELIVER" {
            bytes.extend([0xAB; 13]);
        }
        let len = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        let (_, fields, encoded) = either(&bytes).unwrap();
        assert_eq!(fields, vector.fields);
        assert_eq!(encoded, vector.bytes);
    }
}

#[test]
fn all_vectors_in_one_stream_come_apart_again_when_it_is_cut_at_any_byte() {
    let vectors = vectors();
    let stream: Vec<u8> = vectors.iter().flat_map(|v| v.bytes.iter().copied()).collect();
    for cut in 0..=stream.len() {
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        for piece in [&stream[..cut], &stream[cut..]] {
            buffer.extend_from_slice(piece);
            while let Some((frame, taken)) = split(&buffer, MAX).unwrap() {
                found.push(frame.kind);
                buffer.drain(..taken);
            }
        }
        assert!(buffer.is_empty());
        assert_eq!(found, vectors.iter().map(|v| v.bytes[4]).collect::<Vec<_>>());
    }
}

#[test]
fn the_session_in_the_document_is_made_of_valid_frames() {
    let sessions = blocks("session");
    let (_, lines) = sessions.first().expect("a session");
    let mut magic = false;
    for line in lines {
        let mut words = line.splitn(3, ' ');
        let (who, name) = (words.next().unwrap(), words.next().unwrap());
        let bytes = hex(words.next().unwrap());
        if name == "magic" {
            assert_eq!(bytes, MAGIC);
            magic = true;
            continue;
        }
        let (kind, _, encoded) = either(&bytes).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(kind, name);
        assert_eq!(encoded, bytes, "{name}");
        assert_eq!(who, if bytes[4] < 0x80 { "C" } else { "S" });
    }
    assert!(magic);
}
