//! The codec against the bytes in PROTOCOL.md, which are written by hand from its tables.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use fanfare::position::Level;
use fanfare::wire::{
    Acks, ClientFrame, Expected, GapReason, Join, Leave, MAGIC, Mode, Presence, Roster, RosterForm,
    ServerFrame, Start, State, StateForm, WireError, kind, split,
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

fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn data(data: Option<&[u8]>) -> String {
    data.map_or("deleted".to_owned(), bytes_hex)
}

fn reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Retention => "retention",
        GapReason::Damaged => "damaged",
    }
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
                let mode = match entry.mode {
                    Mode::Live => "live",
                    Mode::Durable => "durable",
                };
                let start = match entry.start {
                    Start::Tail => "tail".to_owned(),
                    Start::Seq(seq) => format!("seq {seq}"),
                    Start::Cursor => "cursor".to_owned(),
                };
                f.add(&format!("{i}.mode"), mode);
                f.add(&format!("{i}.start"), start);
                f.add(&format!("{i}.roster"), yes(entry.roster));
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
            f.add("receipt", publish.receipt);
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
            f.add("answer", yes(true));
            ClientFrame::encode_ping(&mut out, token);
            "PING"
        }
        ClientFrame::QuietPing { token } => {
            f.add("token", token);
            f.add("answer", yes(false));
            ClientFrame::encode_quiet_ping(&mut out, token);
            "PING"
        }
        ClientFrame::Fetch(fetch) => {
            f.add("request", fetch.request);
            f.add("from", fetch.from);
            f.add("to", fetch.to.map_or("head".to_owned(), |to| to.to_string()));
            f.add("count_max", fetch.count_max);
            f.add("bytes_max", fetch.bytes_max);
            f.add("group", text(fetch.group));
            fetch.encode(&mut out);
            "FETCH"
        }
        ClientFrame::SetState(set) => {
            f.add("request", set.request);
            let expected = match set.expected {
                Expected::Any => "any".to_owned(),
                Expected::Absent => "absent".to_owned(),
                Expected::Version(version) => format!("version {version}"),
            };
            f.add("expected", expected);
            f.add("group", text(set.group));
            f.add("key", text(set.key));
            f.add("data", data(set.data));
            set.encode(&mut out);
            "SET_STATE"
        }
        ClientFrame::Sync(sync) => {
            f.add("request", sync.request);
            f.add("known", sync.known);
            f.add("group", text(sync.group));
            sync.encode(&mut out);
            "SYNC"
        }
        ClientFrame::RosterQuery(query) => {
            f.add("request", query.request);
            f.add("known", query.known);
            f.add("after", query.after);
            f.add("limit", query.limit);
            f.add("group", text(query.group));
            query.encode(&mut out);
            "ROSTER_QUERY"
        }
        ClientFrame::Probed { token } => {
            f.add("token", token);
            ClientFrame::encode_probed(&mut out, token);
            "PROBED"
        }
        ClientFrame::Auth(auth) => {
            f.add("request", auth.request);
            f.add("token", text(auth.token));
            auth.encode(&mut out);
            "AUTH"
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
            f.add("ack_timeout_ms", welcome.ack_timeout_ms);
            f.add("publish_window", welcome.publish_window);
            f.add("heartbeat_slot_ms", welcome.heartbeat_slot_ms);
            f.add("producer_ttl_ms", welcome.producer_ttl_ms);
            welcome.encode(&mut out);
            "WELCOME"
        }
        ServerFrame::Joined(joined) => {
            f.add("request", joined.request);
            f.add("epoch", joined.epoch);
            f.add("handle", joined.handle);
            f.add("head", joined.head);
            f.add("group", text(joined.group));
            f.add("first", joined.first);
            f.add("cursor", joined.cursor);
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
            f.add("reason", reason(gap.reason));
            gap.encode(&mut out);
            "GAP"
        }
        ServerFrame::Drain(drain) => {
            f.add("grace_ms", drain.grace_ms);
            f.add("reconnect_after_ms", drain.reconnect_after_ms);
            drain.encode(&mut out);
            "DRAIN"
        }
        ServerFrame::Receipt(receipt) => {
            f.add("handle", receipt.handle);
            f.add("seq", receipt.seq);
            f.add("producer_seq", receipt.producer_seq);
            f.add("epoch", receipt.epoch);
            f.add("acked", receipt.acked);
            f.add("members", receipt.members);
            f.add("percent", receipt.percent);
            receipt.encode(&mut out);
            "RECEIPT"
        }
        ServerFrame::Fetched(fetched) => {
            f.add("request", fetched.request);
            f.add("epoch", fetched.epoch);
            f.add("handle", fetched.handle);
            f.add("first", fetched.first);
            f.add("last", fetched.last);
            f.add("head", fetched.head);
            let gap = fetched.gap.map_or("none".to_owned(), |(from, to, why)| {
                format!("{from} to {to} {}", reason(why))
            });
            f.add("gap", gap);
            f.add("more", yes(fetched.more));
            for (i, message) in fetched.messages().enumerate() {
                f.add(&format!("{i}.seq"), message.seq);
                f.add(&format!("{i}.stamp"), message.stamp.0);
                f.add(&format!("{i}.sender"), text(message.sender));
                f.add(&format!("{i}.payload"), bytes_hex(message.payload));
            }
            fetched.encode(&mut out);
            "FETCHED"
        }
        ServerFrame::State(state) => {
            f.add("request", state.head.request);
            let form = match state.head.form {
                StateForm::UpToDate => "up to date",
                StateForm::Deltas => "deltas",
                StateForm::Snapshot => "snapshot",
            };
            f.add("form", form);
            f.add("more", yes(state.head.more));
            f.add("handle", state.head.handle);
            f.add("version", state.head.version);
            for (i, entry) in state.entries().enumerate() {
                f.add(&format!("{i}.version"), entry.version);
                f.add(&format!("{i}.stamp"), entry.stamp.0);
                f.add(&format!("{i}.key"), text(entry.key));
                f.add(&format!("{i}.data"), data(entry.data));
            }
            let entries: Vec<_> = state.entries().collect();
            State::encode(&mut out, &state.head, entries.iter().copied());
            "STATE"
        }
        ServerFrame::Conflict(conflict) => {
            f.add("request", conflict.request);
            f.add("handle", conflict.handle);
            f.add("version", conflict.version);
            f.add("stamp", conflict.stamp.0);
            f.add("data", data(conflict.data));
            conflict.encode(&mut out);
            "CONFLICT"
        }
        ServerFrame::Roster(roster) => {
            let head = roster.head;
            f.add("request", head.request);
            let form = match head.form {
                RosterForm::UpToDate => "up to date",
                RosterForm::Changes => "changes",
                RosterForm::Page => "page",
                RosterForm::Counts => "counts",
            };
            f.add("form", form);
            f.add("handle", head.handle);
            f.add("version", head.version);
            f.add("members", head.members);
            f.add("online", head.online);
            f.add("next", head.next);
            for (i, entry) in roster.entries().enumerate() {
                let what = match entry.what {
                    Presence::Joined => "joined",
                    Presence::Left => "left",
                    Presence::Online => "online",
                    Presence::Offline => "offline",
                };
                f.add(&format!("{i}.what"), what);
                f.add(&format!("{i}.member"), text(entry.member));
            }
            let entries: Vec<_> = roster.entries().collect();
            Roster::encode(&mut out, &head, entries.iter().copied());
            "ROSTER"
        }
        ServerFrame::Redeliver(redeliver) => {
            f.add("handle", redeliver.handle);
            f.add("from", redeliver.from);
            f.add("epoch", redeliver.epoch);
            f.add("attempt", redeliver.attempt);
            redeliver.encode(&mut out);
            "REDELIVER"
        }
        ServerFrame::StateSet(set) => {
            f.add("request", set.request);
            f.add("handle", set.handle);
            f.add("version", set.version);
            f.add("stamp", set.stamp.0);
            set.encode(&mut out);
            "STATE_SET"
        }
        ServerFrame::Probe { token } => {
            f.add("token", token);
            ServerFrame::encode_probe(&mut out, token);
            "PROBE"
        }
        ServerFrame::Authed(authed) => {
            f.add("request", authed.request);
            f.add("valid_ms", authed.valid_ms);
            f.add("renew_after_ms", authed.renew_after_ms);
            authed.encode(&mut out);
            "AUTHED"
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
        kind::FETCH,
        kind::SET_STATE,
        kind::SYNC,
        kind::ROSTER_QUERY,
        kind::PROBED,
        kind::AUTH,
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
        kind::RECEIPT,
        kind::FETCHED,
        kind::STATE,
        kind::CONFLICT,
        kind::ROSTER,
        kind::REDELIVER,
        kind::STATE_SET,
        kind::PROBE,
        kind::AUTHED,
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
        let (bytes, at) = (&vector.bytes, |at: usize| usize::from(vector.bytes[at]));
        let payload = match vector.name.split('-').next().unwrap() {
            "PUBLISH" => bytes.len() - (8 + 16 + at(13)),
            "DELIVER" => bytes.len() - (8 + 32 + at(36)),
            "SET_STATE" => bytes.len() - (8 + 16 + at(12) + at(13)),
            "CONFLICT" => bytes.len() - (8 + 32),
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
        bytes[5] |= 0xFE;
        bytes[6..8].fill(0xFF);
        if !["PUBLISH", "DELIVER", "SET_STATE", "CONFLICT"].contains(&kind) {
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
