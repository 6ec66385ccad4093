//! What the codec says about frames that are not as PROTOCOL.md asks.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use fanfare::limits::{FRAME_ENTRIES_MAX, FRAME_MAX, GROUP_NAME_MAX, MEMBER_ID_MAX, STATE_KEY_MAX};
use fanfare::position::{Epoch, Handle, Seq};
use fanfare::wire::{
    Ack, Acks, ClientFrame, ErrorCode, ErrorFrame, Fetched, Frame, Hello, Join, JoinEntry, Leave,
    Presence, Publish, Roster, RosterEntry, RosterForm, RosterHead, ServerFrame, Start, State,
    StateEntry, StateForm, StateHead, WireError, kind, split,
};

/// A kind that is reserved.
const RESUME: u8 = 0x0A;

fn frame(bytes: &[u8]) -> Frame<'_> {
    let (frame, taken) = split(bytes, FRAME_MAX).unwrap().unwrap();
    assert_eq!(taken, bytes.len());
    frame
}

/// The field that decoding complains about.
fn bad_field(kind: u8, body: &[u8]) -> &'static str {
    match ClientFrame::decode(Frame { kind, flags: 0, body }) {
        Err(WireError::Malformed { kind: of, field }) if of == kind => field,
        other => panic!("not malformed: {other:?}"),
    }
}

fn hello(member: &[u8]) -> Vec<u8> {
    let mut body = vec![1, 0, 1, 0, 0, member.len() as u8, 0, 0];
    body.extend([7; 16]);
    body.extend(member);
    body
}

/// A JOIN of one entry.
fn join(mode: u8, start: u8, name: &[u8]) -> Vec<u8> {
    let mut body = vec![9, 0, 0, 0, 1, 0, 0, 0, mode, start, name.len() as u8, 0];
    body.extend([0; 12]);
    body.extend(name);
    body
}

#[test]
fn length_field_is_bounded_before_anything_is_kept() {
    for max in [4, 5, 1000, FRAME_MAX] {
        let over = (max as u32 + 1).to_le_bytes();
        let error = WireError::TooLong { len: max as u64 + 1, max: max as u64 };
        assert_eq!(split(&over, max), Err(error));
        assert!(matches!(split(&u32::MAX.to_le_bytes(), max), Err(WireError::TooLong { .. })));
        assert_eq!(split(&(max as u32).to_le_bytes(), max), Ok(None));
    }
}

#[test]
fn length_field_that_does_not_cover_the_header_is_refused() {
    for len in 0..4u32 {
        let error = WireError::TooShort { len: u64::from(len) };
        assert_eq!(split(&len.to_le_bytes(), FRAME_MAX), Err(error));
    }
    let empty = [4, 0, 0, 0, 0x77, 0xFF, 1, 2];
    let frame = Frame { kind: 0x77, flags: 0xFF, body: &[] };
    assert_eq!(split(&empty, FRAME_MAX), Ok(Some((frame, 8))));
}

#[test]
fn kinds_of_the_other_side_and_reserved_kinds_are_unknown() {
    for body in [&[][..], &[0xFF; 64]] {
        for kind in 0..=u8::MAX {
            let frame = Frame { kind, flags: 0, body };
            if !(kind::HELLO..=kind::AUTH).contains(&kind) || kind == RESUME {
                assert_eq!(ClientFrame::decode(frame), Ok(ClientFrame::Unknown { kind }));
            }
            if !(kind::WELCOME..=kind::AUTHED).contains(&kind) {
                assert_eq!(ServerFrame::decode(frame), Ok(ServerFrame::Unknown { kind }));
            }
        }
    }
}

#[test]
fn counts_are_one_to_the_maximum() {
    let entry = JoinEntry::live(b"g", Start::Tail);
    let ack = Ack { handle: Handle(1), seq: Seq(1), epoch: Epoch(1) };
    for count in [1, FRAME_ENTRIES_MAX] {
        let mut out = Vec::new();
        Join::encode(&mut out, 1, &vec![entry; count]);
        let Ok(ClientFrame::Join(join)) = ClientFrame::decode(frame(&out)) else { panic!() };
        assert_eq!(join.entries().count(), count);

        out.clear();
        Leave::encode(&mut out, 1, &vec![&b"g"[..]; count]);
        let Ok(ClientFrame::Leave(leave)) = ClientFrame::decode(frame(&out)) else { panic!() };
        assert_eq!(leave.entries().count(), count);

        out.clear();
        Acks::encode(&mut out, &vec![ack; count]);
        let Ok(ClientFrame::Ack(acks)) = ClientFrame::decode(frame(&out)) else { panic!() };
        assert_eq!(acks.entries().count(), count);
    }
    for count in [0, FRAME_ENTRIES_MAX as u16 + 1, u16::MAX] {
        let [low, high] = count.to_le_bytes();
        let mut body = vec![1, 0, 0, 0, low, high, 0, 0];
        body.extend([1; 24 * 300]);
        assert_eq!(bad_field(kind::JOIN, &body), "count");
        assert_eq!(bad_field(kind::LEAVE, &body), "count");
        assert_eq!(bad_field(kind::ACK, &body[4..]), "count");
    }
}

#[test]
fn names_and_ids_are_one_byte_to_the_maximum() {
    let longest_member = [b'm'; MEMBER_ID_MAX];
    let body = hello(&longest_member);
    let Ok(ClientFrame::Hello(got)) =
        ClientFrame::decode(Frame { kind: kind::HELLO, flags: 0, body: &body })
    else {
        panic!()
    };
    assert_eq!(got.member, longest_member);
    assert_eq!(bad_field(kind::HELLO, &hello(b"")), "member");
    assert_eq!(bad_field(kind::HELLO, &hello(&[b'm'; MEMBER_ID_MAX + 1])), "member");

    let longest_group = [b'g'; GROUP_NAME_MAX];
    let body = join(0, 0, &longest_group);
    let Ok(ClientFrame::Join(got)) =
        ClientFrame::decode(Frame { kind: kind::JOIN, flags: 0, body: &body })
    else {
        panic!()
    };
    assert_eq!(got.entries().next().unwrap().group, longest_group);
    for name in [&[][..], &[b'g'; GROUP_NAME_MAX + 1]] {
        assert_eq!(bad_field(kind::JOIN, &join(0, 0, name)), "group");
        let mut leave = vec![1, 0, 0, 0, 1, 0, 0, 0, name.len() as u8];
        leave.extend(name);
        assert_eq!(bad_field(kind::LEAVE, &leave), "group");
        let mut publish = vec![1, 0, 0, 0, 0, name.len() as u8, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        publish.extend(name);
        assert_eq!(bad_field(kind::PUBLISH, &publish), "group");
    }
}

#[test]
fn reserved_modes_starts_and_levels_are_refused_by_name() {
    for reserved in [2, 3, 255] {
        assert_eq!(bad_field(kind::JOIN, &join(reserved, 0, b"g")), "mode");
    }
    for (mode, reserved) in [(0, 2), (0, 3), (1, 3), (1, 255)] {
        assert_eq!(bad_field(kind::JOIN, &join(mode, reserved, b"g")), "start");
    }
    let unnumbered = [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'g'];
    assert_eq!(bad_field(kind::PUBLISH, &unnumbered), "producer_seq");
    for reserved in [101, 255] {
        let body = [1, 0, 0, 0, 1, 1, reserved, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'g'];
        assert_eq!(bad_field(kind::PUBLISH, &body), "receipt");
    }
    for reserved in [3, 4, 255] {
        let body = [1, 0, 0, 0, reserved, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'g'];
        assert_eq!(bad_field(kind::PUBLISH, &body), "level");
    }
}

#[test]
fn a_bad_entry_after_good_ones_refuses_the_whole_frame() {
    let mut body = join(0, 0, b"g");
    body[4] = 2;
    body.extend(&join(2, 0, b"h")[8..]);
    assert_eq!(bad_field(kind::JOIN, &body), "mode");
    body.truncate(body.len() - 1);
    body[4] = 3;
    assert_eq!(bad_field(kind::JOIN, &body), "mode");
}

#[test]
fn ranges_and_keys_of_queries_are_checked() {
    let fetch = |from: u64, to: u64| {
        let mut body = vec![1, 0, 0, 0, 1, 0, 0, 0];
        body.extend(from.to_le_bytes());
        body.extend(to.to_le_bytes());
        body.extend([0; 8]);
        body.push(b'g');
        body
    };
    assert_eq!(bad_field(kind::FETCH, &fetch(5, 4)), "to");
    for (from, to) in [(0, 0), (0, 1), (5, 0), (5, 5), (u64::MAX, u64::MAX)] {
        let body = fetch(from, to);
        let Ok(ClientFrame::Fetch(got)) =
            ClientFrame::decode(Frame { kind: kind::FETCH, flags: 0, body: &body })
        else {
            panic!()
        };
        assert_eq!((got.from.0, got.to.map_or(0, |to| to.0)), (from.max(1), to));
    }
    for key_len in [0, STATE_KEY_MAX + 1] {
        let mut body = vec![1, 0, 0, 0, 1, key_len as u8, 0, 0];
        body.extend([0; 8]);
        body.push(b'g');
        body.extend(vec![b'k'; key_len]);
        assert_eq!(bad_field(kind::SET_STATE, &body), "key");
    }
}

/// The field that a client complains about.
fn bad_answer(frame: &[u8]) -> &'static str {
    let frame = self::frame(frame);
    match ServerFrame::decode(frame) {
        Err(WireError::Malformed { kind: of, field }) if of == frame.kind => field,
        other => panic!("not malformed: {other:?}"),
    }
}

#[test]
fn a_page_whose_frames_are_not_what_it_says_is_refused() {
    let deliver = |handle, seq| {
        let mut out = Vec::new();
        fanfare::wire::Deliver {
            handle: Handle(handle),
            seq: Seq(seq),
            stamp: fanfare::position::Stamp(1),
            node: fanfare::position::NodeId(1),
            shard: fanfare::position::ShardId(1),
            sender: b"m",
            payload: b"x",
        }
        .encode(&mut out);
        out
    };
    let page = |first, last, gap, frames: &[&[u8]]| {
        let mut out = Vec::new();
        let (first, last, frames) = (Seq(first), Seq(last), &frames.concat()[..]);
        let (epoch, handle, head) = (Epoch(1), Handle(1), Seq(9));
        let more = false;
        Fetched { request: 1, epoch, handle, first, last, head, gap, more, frames }
            .encode(&mut out);
        out
    };
    let (one, two, foreign) = (deliver(1, 1), deliver(1, 2), deliver(2, 2));
    let right = page(1, 2, None, &[&one, &two]);
    let Ok(ServerFrame::Fetched(got)) = ServerFrame::decode(frame(&right)) else { panic!() };
    assert_eq!(got.messages().map(|message| message.seq.0).collect::<Vec<_>>(), [1, 2]);

    assert_eq!(bad_answer(&page(1, 2, None, &[&one])), "frames");
    assert_eq!(bad_answer(&page(1, 2, None, &[&one, &foreign])), "frames");
    assert_eq!(bad_answer(&page(1, 2, None, &[&two, &one])), "frames");
    assert_eq!(bad_answer(&page(1, u64::MAX, None, &[&one, &two])), "frames");
    let mut pong = Vec::new();
    ServerFrame::encode_pong(&mut pong, 1);
    assert_eq!(bad_answer(&page(1, 1, None, &[&pong])), "frames");
    for (first, last) in [(0, 1), (1, 0), (2, 1)] {
        assert_eq!(bad_answer(&page(first, last, None, &[&one, &two])), "last");
    }
    let gap = Some((Seq(2), Seq(1), fanfare::wire::GapReason::Retention));
    assert_eq!(bad_answer(&page(0, 0, gap, &[])), "gap_to");
}

#[test]
fn forms_and_entries_of_answers_are_checked() {
    let (handle, stamp) = (Handle(1), fanfare::position::Stamp(1));
    let (mut state, mut roster) = (Vec::new(), Vec::new());
    let head = StateHead { request: 1, form: StateForm::Deltas, more: false, handle, version: 1 };
    let entry = StateEntry { version: 1, stamp, key: b"k", data: Some(b"data") };
    State::encode(&mut state, &head, std::iter::once(entry));
    let (form, version) = (RosterForm::Page, 1);
    let head = RosterHead { request: 1, form, handle, version, members: 1, online: 1, next: 0 };
    let entry = RosterEntry { what: Presence::Online, member: b"m" };
    Roster::encode(&mut roster, &head, std::iter::once(entry));

    let bad = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[8 + at] = value;
        bad_answer(&frame)
    };
    assert_eq!(bad(&state, 4, 3), "form");
    assert_eq!(bad(&state, 6, 2), "entry.version");
    assert_eq!(bad(&state, 24 + 18, 0), "key");
    assert_eq!(bad(&state, 24 + 18, STATE_KEY_MAX as u8 + 1), "key");
    assert_eq!(bad(&state, 24 + 20, 5), "data");
    assert_eq!(bad(&state, 24 + 23, 255), "data");
    assert_eq!(bad(&roster, 4, 4), "form");
    assert_eq!(bad(&roster, 7, 255), "what");
    assert_eq!(bad(&roster, 40, 0), "what");
    assert_eq!(bad(&roster, 40, 5), "what");
    assert_eq!(bad(&roster, 41, 0), "member");
    assert_eq!(bad(&roster, 41, MEMBER_ID_MAX as u8 + 1), "member");
}

#[test]
fn start_at_zero_is_start_at_one() {
    let body = join(0, 1, b"g");
    let Ok(ClientFrame::Join(join)) =
        ClientFrame::decode(Frame { kind: kind::JOIN, flags: 0, body: &body })
    else {
        panic!()
    };
    assert_eq!(join.entries().next().unwrap().start, Start::Seq(Seq(1)));
}

#[test]
fn a_malformed_request_still_tells_its_number() {
    let request = |kind, body| Frame { kind, flags: 0, body }.request();
    let asking = [
        kind::JOIN,
        kind::LEAVE,
        kind::PUBLISH,
        kind::FETCH,
        kind::SET_STATE,
        kind::SYNC,
        kind::ROSTER_QUERY,
    ];
    for kind in asking {
        assert_eq!(request(kind, &[4, 3, 2, 1]), 0x0102_0304);
        assert_eq!(request(kind, &[4, 3, 2, 1, 255]), 0x0102_0304);
        assert_eq!(request(kind, &[4, 3, 2]), 0);
    }
    for kind in [kind::HELLO, kind::ACK, kind::PING, kind::PROBED, RESUME, 0xFF] {
        assert_eq!(request(kind, &[4, 3, 2, 1]), 0);
    }
}

#[test]
fn text_of_an_error_is_cut_at_a_character() {
    for (text, kept) in [("x".repeat(600), 512), ("é".repeat(300), 512), ("€".repeat(300), 510)]
    {
        let mut out = Vec::new();
        let text = text.as_bytes();
        ErrorFrame { request: 0, code: 1, limit: 0, field: &[b'f'; 300], text }.encode(&mut out);
        let Ok(ServerFrame::Error(error)) = ServerFrame::decode(frame(&out)) else { panic!() };
        assert_eq!(error.text, &text[..kept]);
        assert!(str::from_utf8(error.text).is_ok());
        assert_eq!(error.field.len(), 255);
    }
}

#[test]
fn the_longest_publish_fits_in_the_longest_frame_and_so_does_its_deliver() {
    let payload = vec![1; fanfare::limits::PAYLOAD_MAX];
    let mut out = Vec::new();
    let group = &[b'g'; GROUP_NAME_MAX][..];
    Publish { request: 1, level: None, receipt: 0, producer_seq: 1, group, payload: &payload }
        .encode(&mut out);
    assert!(matches!(ClientFrame::decode(frame(&out)), Ok(ClientFrame::Publish(_))));

    out.clear();
    fanfare::wire::Deliver {
        handle: Handle(1),
        seq: Seq(1),
        stamp: fanfare::position::Stamp(1),
        node: fanfare::position::NodeId(1),
        shard: fanfare::position::ShardId(1),
        sender: &[b'm'; MEMBER_ID_MAX],
        payload: &payload,
    }
    .encode(&mut out);
    assert!(matches!(ServerFrame::decode(frame(&out)), Ok(ServerFrame::Deliver(_))));

    out.clear();
    let member = &[b'm'; MEMBER_ID_MAX][..];
    let producer = [1; 16];
    Hello { version_min: 1, version_max: 1, encoding: 0, flags: 0, producer, member }
        .encode(&mut out);
    assert_eq!(out.len(), 4 + 92, "PROTOCOL.md says how long a HELLO may be");
}

/// The rows of the table in PROTOCOL.md, by name and number.
#[test]
fn every_error_code_is_in_the_document_and_the_other_way_round() {
    let table: Vec<(u16, String)> = include_str!("../PROTOCOL.md")
        .lines()
        .skip_while(|line| *line != "## Errors")
        .take_while(|line| *line != "## Order")
        .filter_map(|line| {
            let mut cells = line.split('|').skip(1).map(str::trim);
            Some((cells.next()?.parse().ok()?, cells.next()?.to_owned()))
        })
        .collect();
    assert_eq!(table.len(), 44);
    for number in 0..=u16::MAX {
        let code = ErrorCode::from_number(number);
        let row = table.iter().find(|(of, _)| *of == number).map(|(_, name)| name.clone());
        assert_eq!(code.map(|code| format!("{code:?}")), row);
        if let Some(code) = code {
            assert_eq!(code as u16, number);
            assert_eq!(code.is_fatal(), number < 100);
        }
    }
}
