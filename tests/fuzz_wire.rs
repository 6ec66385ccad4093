//! Fuzz targets of the wire decoders. Under `cargo test` each runs a fixed number of inputs;
//! fuzz/README.md says how to run them for longer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use fanfare::limits::FRAME_MAX;
use fanfare::wire::{Acks, ClientFrame, Frame, Join, Leave, Roster, ServerFrame, State, split};

const ITERATIONS: usize = 20_000;

fn encode_client(frame: &ClientFrame<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match frame {
        ClientFrame::Hello(hello) => hello.encode(&mut out),
        ClientFrame::Join(join) => {
            Join::encode(&mut out, join.request, &join.entries().collect::<Vec<_>>());
        }
        ClientFrame::Leave(leave) => {
            Leave::encode(&mut out, leave.request, &leave.entries().collect::<Vec<_>>());
        }
        ClientFrame::Publish(publish) => publish.encode(&mut out),
        ClientFrame::Ack(acks) => Acks::encode(&mut out, &acks.entries().collect::<Vec<_>>()),
        ClientFrame::Ping { token } => ClientFrame::encode_ping(&mut out, *token),
        ClientFrame::QuietPing { token } => ClientFrame::encode_quiet_ping(&mut out, *token),
        ClientFrame::Fetch(fetch) => fetch.encode(&mut out),
        ClientFrame::SetState(set) => set.encode(&mut out),
        ClientFrame::Sync(sync) => sync.encode(&mut out),
        ClientFrame::RosterQuery(query) => query.encode(&mut out),
        ClientFrame::Probed { token } => ClientFrame::encode_probed(&mut out, *token),
        ClientFrame::Auth(auth) => auth.encode(&mut out),
        ClientFrame::Unknown { .. } => return None,
    }
    Some(out)
}

fn encode_server(frame: &ServerFrame<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match frame {
        ServerFrame::Welcome(welcome) => welcome.encode(&mut out),
        ServerFrame::Joined(joined) => joined.encode(&mut out),
        ServerFrame::Left(left) => left.encode(&mut out),
        ServerFrame::Epoch(epoch) => epoch.encode(&mut out),
        ServerFrame::Deliver(deliver) => deliver.encode(&mut out),
        ServerFrame::Published(published) => published.encode(&mut out),
        ServerFrame::Pong { token } => ServerFrame::encode_pong(&mut out, *token),
        // Texts above the maximum are cut when they are encoded, so they do not come back.
        ServerFrame::Error(error) if error.text.len() > 512 => return None,
        ServerFrame::Error(error) => error.encode(&mut out),
        ServerFrame::Gap(gap) => gap.encode(&mut out),
        ServerFrame::Drain(drain) => drain.encode(&mut out),
        ServerFrame::Receipt(receipt) => receipt.encode(&mut out),
        ServerFrame::Fetched(fetched) => fetched.encode(&mut out),
        ServerFrame::State(state) => {
            let entries: Vec<_> = state.entries().collect();
            State::encode(&mut out, &state.head, entries.iter().copied());
        }
        ServerFrame::Conflict(conflict) => conflict.encode(&mut out),
        ServerFrame::Roster(roster) => {
            let entries: Vec<_> = roster.entries().collect();
            Roster::encode(&mut out, &roster.head, entries.iter().copied());
        }
        ServerFrame::Redeliver(redeliver) => redeliver.encode(&mut out),
        ServerFrame::StateSet(set) => set.encode(&mut out),
        ServerFrame::Probe { token } => ServerFrame::encode_probe(&mut out, *token),
        ServerFrame::Authed(authed) => authed.encode(&mut out),
        ServerFrame::Unknown { .. } => return None,
    }
    Some(out)
}

/// Random length fields are nearly always too long, so most are made to fit what follows.
fn stream(pieces: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (len, piece) in pieces {
        let len = if *len < 0xE0 { piece.len() as u32 } else { u32::from(*len) - 0xE0 };
        bytes.extend(len.to_le_bytes());
        bytes.extend(piece);
    }
    bytes
}

#[test]
fn split_takes_whole_frames_and_nothing_else() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<(Vec<(u8, Vec<u8>)>, u8)>().for_each(
        |(pieces, max)| {
            let (bytes, max) = (stream(pieces), usize::from(*max));
            let mut rest = &bytes[..];
            while let Ok(Some((frame, taken))) = split(rest, max) {
                assert!(taken >= 8 && taken <= rest.len() && taken - 4 <= max);
                assert_eq!(taken, frame.body.len() + 8);
                assert_eq!(split(&rest[..taken - 1], max), Ok(None));
                rest = &rest[taken..];
            }
        },
    );
}

#[test]
fn split_of_random_bytes_never_panics() {
    bolero::check!().with_iterations(ITERATIONS).for_each(|bytes| {
        let _ = split(bytes, FRAME_MAX);
        let _ = split(bytes, u32::MAX as usize);
    });
}

/// Kinds are drawn from the known ones more often than chance would.
fn known(kind: u8, base: u8, count: u8) -> u8 {
    if kind < 0xF0 { base + kind % count } else { kind }
}

#[test]
fn client_frames_decode_to_what_they_were_encoded_from_or_not_at_all() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<(u8, u8, Vec<u8>)>().for_each(
        |(kind, flags, body)| {
            let frame = Frame { kind: known(*kind, 0x01, 12), flags: *flags, body };
            let _ = frame.request();
            let Ok(decoded) = ClientFrame::decode(frame) else { return };
            let Some(encoded) = encode_client(&decoded) else { return };
            let (again, taken) = split(&encoded, FRAME_MAX).unwrap().unwrap();
            assert_eq!(taken, encoded.len());
            // Entries are borrowed with their reserved bytes, so what is compared is the encoding.
            assert_eq!(encode_client(&ClientFrame::decode(again).unwrap()).unwrap(), encoded);
        },
    );
}

#[test]
fn server_frames_decode_to_what_they_were_encoded_from_or_not_at_all() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<(u8, u8, Vec<u8>)>().for_each(
        |(kind, flags, body)| {
            let frame = Frame { kind: known(*kind, 0x81, 18), flags: *flags, body };
            let Ok(decoded) = ServerFrame::decode(frame) else { return };
            let Some(encoded) = encode_server(&decoded) else { return };
            let (again, taken) = split(&encoded, FRAME_MAX).unwrap().unwrap();
            assert_eq!(taken, encoded.len());
            assert_eq!(encode_server(&ServerFrame::decode(again).unwrap()).unwrap(), encoded);
        },
    );
}

/// Random bodies rarely get past the counts and lengths, so this one starts from frames that
/// are right and changes single bytes.
#[test]
fn changed_bytes_in_right_frames_never_panic() {
    let vectors: Vec<Vec<u8>> = include_str!("../PROTOCOL.md")
        .split("```golden ")
        .skip(1)
        .map(|block| {
            let lines = block.lines().skip(1).take_while(|line| *line != "```");
            lines
                .filter(|line| !line.contains(" ="))
                .flat_map(|line| line.split(';').next().unwrap().split_whitespace())
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect()
        })
        .collect();
    bolero::check!().with_iterations(ITERATIONS).with_type::<(u8, [(u8, u8); 3])>().for_each(
        |(which, changes)| {
            let mut bytes = vectors[usize::from(*which) % vectors.len()].clone();
            for (at, value) in changes {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
            let Ok(Some((frame, _))) = split(&bytes, FRAME_MAX) else { return };
            if let Ok(frame) = ClientFrame::decode(frame) {
                encode_client(&frame);
            }
            if let Ok(frame) = ServerFrame::decode(frame) {
                encode_server(&frame);
            }
        },
    );
}
