#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::position::{Epoch, Handle, Level, Nanos, NodeId, Seq, ShardId, Stamp};
use crate::wire::{
    Ack, ClientFrame, Deliver, Drain, EpochStart, ErrorFrame, FRAME_HEADER, Gap, Joined, Left,
    MAGIC, Mode, Published as Answer, Redeliver, ServerFrame, Start, split,
};

const GROUP: &[u8] = b"lobby";
const HANDLE: Handle = Handle(7);

/// What a client has sent, as owned as the tests need it.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Hello(Vec<u8>),
    Join(u32, Vec<(Vec<u8>, Mode, Start)>),
    Leave(u32, Vec<Vec<u8>>),
    Publish(u32, u64, Vec<u8>),
    Ack(Vec<Ack>),
    Ping,
    Probed(u64),
    Other,
}

/// A client and the server that the test plays.
struct Play {
    core: Core,
    now: Nanos,
}

impl Play {
    fn new(options: Options) -> Self {
        Self::seeded(options.seed(1))
    }

    fn seeded(options: Options) -> Self {
        let mut play = Self { core: Core::new(options).unwrap(), now: Nanos(0) };
        play.connect();
        play
    }

    fn connect(&mut self) {
        let Link::Connect { at } = self.core.link() else { panic!("{:?}", self.core.link()) };
        self.now = self.now.max(at);
        self.core.connected(self.now);
    }

    fn welcome(&mut self) {
        let welcome = Welcome { ack_every: 4, ack_interval_ms: 1000, ..welcome() };
        self.send(|out| welcome.encode(out));
        assert!(matches!(self.event(), Event::Connected(_)));
    }

    fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        encode(&mut out);
        self.core.receive(&out);
    }

    fn event(&mut self) -> Event {
        self.core.next_event(self.now).expect("an event")
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.core.next_event(self.now)).collect()
    }

    /// All that the client wants to send now.
    fn said(&mut self) -> Vec<Said> {
        self.core.advance(self.now);
        let out = self.core.take_output();
        let mut rest = out.strip_prefix(&MAGIC).unwrap_or(&out);
        let mut said = Vec::new();
        while let Some((frame, len)) = split(rest, 1 << 20).unwrap() {
            rest = &rest[len..];
            said.push(match ClientFrame::decode(frame).unwrap() {
                ClientFrame::Hello(h) => Said::Hello(h.member.to_vec()),
                ClientFrame::Join(j) => Said::Join(
                    j.request,
                    j.entries().map(|e| (e.group.to_vec(), e.mode, e.start)).collect(),
                ),
                ClientFrame::Leave(l) => {
                    Said::Leave(l.request, l.entries().map(<[u8]>::to_vec).collect())
                }
                ClientFrame::Publish(p) => {
                    Said::Publish(p.request, p.producer_seq, p.payload.to_vec())
                }
                ClientFrame::Ack(a) => Said::Ack(a.entries().collect()),
                ClientFrame::Ping { .. } => Said::Ping,
                ClientFrame::Probed { token } => Said::Probed(token),
                _ => Said::Other,
            });
        }
        assert!(rest.is_empty());
        said
    }

    fn wait_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    /// Joined `GROUP` and got messages 1 to `last` of epoch 1.
    fn member(options: Options, how: Membership, last: u64) -> Self {
        Self::new(options).admit(how, last)
    }

    fn admit(mut self, how: Membership, last: u64) -> Self {
        self.core.join(GROUP, how).unwrap();
        self.welcome();
        self.said();
        self.joined(1, 1, 0, 1);
        self.event();
        self.epoch(1, 1);
        (1..=last).for_each(|seq| self.deliver(seq));
        assert_eq!(self.events().len() as u64, last);
        self
    }

    fn joined(&mut self, request: u32, epoch: u32, head: u64, first: u64) {
        self.send(|out| joined(request, epoch, head, first).encode(out));
    }

    fn epoch(&mut self, epoch: u32, first: u64) {
        let (epoch, first) = (Epoch(epoch), Seq(first));
        self.send(|out| EpochStart { epoch, handle: HANDLE, first }.encode(out));
    }

    fn deliver(&mut self, seq: u64) {
        let payload = seq.to_le_bytes();
        self.send(|out| deliver(seq, &payload).encode(out));
    }

    fn published(&mut self, request: u32, producer_seq: u64, seq: u64) {
        let answer = Answer {
            request,
            epoch: Epoch(1),
            handle: HANDLE,
            producer_seq,
            seq: Seq(seq),
            level: Level::Durable,
        };
        self.send(|out| answer.encode(out));
    }

    fn error(&mut self, request: u32, code: ErrorCode, limit: u64) {
        let code = code as u16;
        self.send(|out| {
            ErrorFrame { request, code, limit, field: b"", text: b"no" }.encode(out);
        });
    }

    /// The connection breaks; the client makes the next one, up to WELCOME.
    fn reconnect(&mut self) -> Vec<Said> {
        self.core.disconnected(self.now);
        assert!(matches!(self.events()[..], [Event::Disconnected { .. }]));
        self.connect();
        assert!(matches!(self.said()[..], [Said::Hello(_)]));
        self.welcome();
        self.said()
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        node: NodeId(1),
        shard: ShardId(0),
        heartbeat_ms: 30_000,
        payload_max: 65_536,
        frame_max: 66_560,
        groups_per_member_max: 1000,
        ack_every: 256,
        ack_interval_ms: 1000,
        ack_timeout_ms: 30_000,
        publish_window: 3,
        heartbeat_slot_ms: 700,
        producer_ttl_ms: 600_000,
    }
}

fn joined(request: u32, epoch: u32, head: u64, first: u64) -> Joined<'static> {
    Joined {
        request,
        epoch: Epoch(epoch),
        handle: HANDLE,
        head: Seq(head),
        group: GROUP,
        first: Seq(first),
        cursor: Seq(0),
    }
}

fn deliver(seq: u64, payload: &[u8]) -> Deliver<'_> {
    Deliver {
        handle: HANDLE,
        seq: Seq(seq),
        stamp: Stamp(seq),
        node: NodeId(1),
        shard: ShardId(0),
        sender: b"bob",
        payload,
    }
}

fn seqs(events: &[Event]) -> Vec<u64> {
    let seq = |e: &Event| match e {
        Event::Message(m) => Some(m.seq.0),
        _ => None,
    };
    events.iter().filter_map(seq).collect()
}

fn ack(seq: u64, epoch: u32) -> Said {
    Said::Ack(vec![Ack { handle: HANDLE, seq: Seq(seq), epoch: Epoch(epoch) }])
}

fn publish(core: &mut Core, n: u8) {
    core.publish(GROUP, &[n], Publishing::default()).unwrap();
}

fn from(seq: u64) -> Start {
    Start::Seq(Seq(seq))
}

/// Hexadecimal digits and white space.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.bytes().filter_map(|c| (c as char).to_digit(16).map(|d| d as u8)).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The session of PROTOCOL.md, by its bytes.
#[test]
fn the_session_of_the_specification_is_spoken_byte_for_byte() {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/PROTOCOL.md")).unwrap();
    let session = text.split("```session\n").nth(1).unwrap().split("```").next().unwrap();
    let lines: Vec<(bool, &str, Vec<u8>)> = session
        .lines()
        .filter_map(|line| {
            let mut words = line.splitn(3, ' ');
            let (side, name, hex) = (words.next()?, words.next()?, words.next()?);
            Some((side == "C", name, bytes(hex)))
        })
        .collect();
    let producer = *b"\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf";
    let mut core = Core::new(Options::new("ann").producer(producer)).unwrap();
    let now = Nanos(0);
    core.connected(now);
    let mut out = Vec::new();
    let mut gathered = Vec::new();
    for (client, name, expected) in lines {
        if !client {
            core.receive(&expected);
            gathered.extend(std::iter::from_fn(|| core.next_event(now)));
            continue;
        }
        match name {
            "JOIN" => core.join(b"lobby", Membership::durable()).unwrap(),
            "PUBLISH" => {
                let how = Publishing { receipt_percent: 100, ..Publishing::default() };
                core.publish(b"lobby", b"hi", how).unwrap();
            }
            "LEAVE" => core.leave(b"lobby").unwrap(),
            "ACK" => core.advance(Nanos(1_000_000_000)),
            // The token of the session is not the one that the client would take.
            "PING" => continue,
            _ => {}
        }
        core.advance(now);
        out.extend(core.take_output());
        assert!(out.len() >= expected.len(), "{name}: {out:02x?}");
        let rest = out.split_off(expected.len());
        assert_eq!(out, expected, "{name}");
        out = rest;
    }
    let what: Vec<String> = gathered.iter().map(|e| format!("{e:?}")[..6].to_owned()).collect();
    assert_eq!(what, ["Connec", "Joined", "Publis", "Messag", "Receip", "Left {"]);
}

#[test]
fn a_dialogue_cut_at_every_byte_gives_the_same_events() {
    let mut out = Vec::new();
    welcome().encode(&mut out);
    joined(1, 1, 0, 1).encode(&mut out);
    EpochStart { epoch: Epoch(1), handle: HANDLE, first: Seq(1) }.encode(&mut out);
    deliver(1, b"one").encode(&mut out);
    ServerFrame::encode_probe(&mut out, 9);
    let (from, to, reason) = (Seq(2), Seq(4), GapReason::Retention);
    Gap { handle: HANDLE, from, to, epoch: Epoch(1), reason }.encode(&mut out);
    // A kind of the future.
    out.extend_from_slice(&[6, 0, 0, 0, 0xBF, 0, 0, 0, 1, 2]);
    deliver(5, &[0; 500]).encode(&mut out);
    Drain { grace_ms: 10, reconnect_after_ms: 20 }.encode(&mut out);
    let run = |cuts: &[usize]| {
        let mut play = Play::new(Options::new("ann"));
        play.core.join(GROUP, Membership::live().from(Seq(1))).unwrap();
        let (mut events, mut at) = (Vec::new(), 0);
        for cut in cuts.iter().copied().chain([out.len()]) {
            play.core.receive(&out[at..cut]);
            at = cut;
            events.extend(play.events());
            play.core.advance(play.now);
        }
        events
    };
    let whole: Vec<usize> = (0..out.len()).collect();
    let expected = run(&whole);
    assert_eq!(expected.len(), 6, "{expected:?}");
    // JOIN goes out after WELCOME, so WELCOME comes by itself.
    let first = FRAME_HEADER + 48;
    for cut in first..out.len() {
        assert_eq!(run(&[first, cut]), expected, "cut at {cut}");
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let mut rng = super::options::Rng(7);
    for _ in 0..2_000 {
        let mut play = Play::new(Options::new("ann"));
        play.core.join(GROUP, Membership::durable()).unwrap();
        play.core.publish(GROUP, b"x", Publishing::default()).unwrap();
        play.core.fetch(GROUP, Seq(1), None, 0).unwrap();
        play.welcome();
        play.said();
        for _ in 0..20 {
            // Frames of every kind with small and with huge numbers in them.
            let kind = 0x80 + (rng.next() % 0x14) as u8;
            let len = rng.next() % 90;
            let mut frame = (len as u32 + 4).to_le_bytes().to_vec();
            frame.extend_from_slice(&[kind, 0, 0, 0]);
            for _ in 0..len {
                let byte = rng.next();
                frame.push(match byte & 7 {
                    0 => 0xFF,
                    1 => (byte >> 8) as u8,
                    2 => 7,
                    3 => 1,
                    _ => 0,
                });
            }
            play.core.receive(&frame);
            play.events();
            play.core.advance(play.now);
        }
    }
}

#[test]
fn automatic_acks_count_a_message_when_the_next_event_is_asked_for() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 0);
    (1..=9).for_each(|seq| play.deliver(seq));
    for _ in 1..=4 {
        play.event();
    }
    assert_eq!(play.said(), [], "the application still works on 4");
    play.event();
    assert_eq!(play.said(), [ack(4, 1)], "by count");
    assert_eq!(seqs(&play.events()), [6, 7, 8, 9]);
    assert_eq!(play.said(), [ack(9, 1)]);
    play.deliver(10);
    play.events();
    assert_eq!(play.said(), []);
    assert_eq!(play.core.deadline(), Some(Nanos(700_000_000)), "the PING");
    play.wait_ms(1_000);
    assert_eq!(play.said(), [ack(10, 1)], "by time; with an ACK just before, no PING");
}

#[test]
fn explicit_acks_are_sent_when_the_application_says_so_and_never_beyond_what_it_got() {
    let mut play =
        Play::member(Options::new("ann").acks(AckMode::Explicit), Membership::durable(), 6);
    play.wait_ms(2_000);
    assert_eq!(play.said(), [Said::Ping]);
    play.core.ack_up_to(GROUP, Epoch(1), Seq(5), play.now).unwrap();
    assert_eq!(play.said(), [ack(5, 1)]);
    play.core.ack_up_to(GROUP, Epoch(9), Seq(99), play.now).unwrap();
    play.wait_ms(1_000);
    assert_eq!(play.said(), [ack(6, 1)]);
    play.core.ack_up_to(GROUP, Epoch(1), Seq(2), play.now).unwrap();
    play.wait_ms(1_000);
    assert_eq!(play.said(), []);
}

#[test]
fn a_durable_member_comes_back_at_its_cursor_and_what_it_has_is_dropped_and_acknowledged() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 5);
    let said = play.reconnect();
    assert_eq!(said, [Said::Join(2, vec![(GROUP.to_vec(), Mode::Durable, Start::Cursor)])]);
    // The server knows of no ACK.
    play.joined(2, 1, 7, 1);
    assert!(matches!(play.event(), Event::Joined(JoinedGroup { again: true, .. })));
    play.epoch(1, 1);
    (1..=3).for_each(|seq| play.deliver(seq));
    assert_eq!(play.events(), []);
    play.wait_ms(1_000);
    assert!(play.said().contains(&ack(3, 1)), "no further than was sent on this connection");
    (4..=7).for_each(|seq| play.deliver(seq));
    assert_eq!(seqs(&play.events()), [6, 7]);
    assert_eq!(play.said(), [ack(7, 1)]);
}

#[test]
fn a_live_member_comes_back_after_its_last_message_also_when_it_got_none() {
    let mut play = Play::member(Options::new("ann"), Membership::live(), 3);
    assert_eq!(play.reconnect(), [Said::Join(2, vec![(GROUP.to_vec(), Mode::Live, from(4))])]);

    let mut play = Play::new(Options::new("ann"));
    play.core.join(GROUP, Membership::live()).unwrap();
    play.welcome();
    play.said();
    play.joined(1, 1, 41, 42);
    play.events();
    assert_eq!(play.reconnect(), [Said::Join(2, vec![(GROUP.to_vec(), Mode::Live, from(42))])]);
}

#[test]
fn redelivered_messages_are_dropped_and_acknowledged_again() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 4);
    assert_eq!(play.said(), [ack(4, 1)]);
    play.send(|out| {
        Redeliver { handle: HANDLE, from: Seq(2), epoch: Epoch(1), attempt: 3 }.encode(out);
    });
    (2..=5).for_each(|seq| play.deliver(seq));
    let events = play.events();
    assert!(matches!(events[0], Event::Redelivery { from: Seq(2), attempt: 3, .. }));
    assert_eq!(seqs(&events), [5]);
    assert_eq!(play.said(), [ack(5, 1)]);
}

#[test]
fn a_redelivery_that_ends_may_leave_out_what_the_application_has_and_nothing_else() {
    let again = |play: &mut Play| {
        play.send(|out| {
            Redeliver { handle: HANDLE, from: Seq(1), epoch: Epoch(1), attempt: 1 }.encode(out);
        });
        play.deliver(1);
        play.events();
    };
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 4);
    again(&mut play);
    play.deliver(5);
    assert_eq!(seqs(&play.events()), [5]);
    // Also where a new epoch begins.
    again(&mut play);
    play.epoch(2, 6);
    play.deliver(6);
    assert_eq!(seqs(&play.events()), [6]);
    again(&mut play);
    play.deliver(8);
    play.events();
    assert!(matches!(play.core.closing(), Some(Reason::Protocol(_))), "7 never came");
}

#[test]
fn a_gap_is_an_event_and_only_for_what_the_application_does_not_have() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 4);
    play.reconnect();
    play.joined(2, 1, 9, 1);
    play.event();
    play.epoch(1, 1);
    play.send(|out| {
        let (from, to, reason) = (Seq(1), Seq(7), GapReason::Damaged);
        Gap { handle: HANDLE, from, to, epoch: Epoch(1), reason }.encode(out);
    });
    play.deliver(8);
    let events = play.events();
    assert!(matches!(
        events[0],
        Event::Gap { from: Seq(5), to: Seq(7), reason: GapReason::Damaged, .. }
    ));
    assert_eq!(seqs(&events), [8]);
    assert_eq!(play.said(), [ack(8, 1)], "the hole is acknowledged with what follows");
}

#[test]
fn a_durable_member_gets_the_new_messages_at_places_that_it_knew_in_another_epoch() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 10);
    play.reconnect();
    // The server kept 8 of the 10, and 9 and 10 were published anew.
    play.joined(2, 5, 10, 7);
    play.event();
    play.epoch(1, 7);
    (7..=8).for_each(|seq| play.deliver(seq));
    play.epoch(5, 9);
    (9..=11).for_each(|seq| play.deliver(seq));
    let events = play.events();
    let (before, epoch, last, first) = (Epoch(1), Epoch(5), Seq(10), Seq(9));
    let group: GroupName = GROUP.into();
    assert_eq!(events[0], Event::EpochChanged { group, before, last, epoch, first });
    assert_eq!(seqs(&events), [9, 10, 11]);
    play.wait_ms(1_000);
    assert!(play.said().contains(&ack(11, 5)));
}

#[test]
fn a_live_member_looks_back_until_it_finds_where_the_new_epoch_began() {
    let mut play = Play::member(Options::new("ann"), Membership::live(), 100);
    assert_eq!(play.reconnect(), [Said::Join(2, vec![(GROUP.to_vec(), Mode::Live, from(101))])]);
    // The server kept 20 of the 100; 21 to 120 are new.
    play.joined(2, 5, 120, 101);
    assert!(matches!(play.events()[..], [Event::Joined(_)]));
    assert_eq!(play.said(), [Said::Leave(3, vec![GROUP.to_vec()])]);
    play.epoch(5, 101);
    (101..=110).for_each(|seq| play.deliver(seq));
    play.send(|out| Left { request: 3, handle: HANDLE }.encode(out));
    assert_eq!(play.events(), []);
    assert_eq!(play.said(), [Said::Join(4, vec![(GROUP.to_vec(), Mode::Live, from(37))])]);
    // Not far enough: it is still the new epoch.
    play.joined(4, 5, 120, 37);
    play.epoch(5, 37);
    play.deliver(37);
    assert_eq!(play.events(), []);
    assert_eq!(play.said(), [Said::Leave(5, vec![GROUP.to_vec()])]);
    play.send(|out| Left { request: 5, handle: HANDLE }.encode(out));
    assert_eq!(play.events(), []);
    assert_eq!(play.said(), [Said::Join(6, vec![(GROUP.to_vec(), Mode::Live, from(1))])]);
    play.joined(6, 5, 120, 1);
    play.epoch(1, 1);
    (1..=20).for_each(|seq| play.deliver(seq));
    play.epoch(5, 21);
    (21..=120).for_each(|seq| play.deliver(seq));
    let events = play.events();
    assert!(matches!(
        events[0],
        Event::EpochChanged { last: Seq(100), epoch: Epoch(5), first: Seq(21), .. }
    ));
    assert_eq!(seqs(&events), (21..=120).collect::<Vec<_>>());
}

#[test]
fn another_data_directory_is_read_from_its_start_and_announced() {
    let mut play = Play::member(Options::new("ann"), Membership::live(), 100);
    play.reconnect();
    let other = Handle(99);
    play.send(|out| Joined { handle: other, ..joined(2, 1, 3, 4) }.encode(out));
    play.events();
    assert_eq!(play.said(), [Said::Leave(3, vec![GROUP.to_vec()])]);
    play.send(|out| Left { request: 3, handle: other }.encode(out));
    play.events();
    assert_eq!(play.said(), [Said::Join(4, vec![(GROUP.to_vec(), Mode::Live, from(1))])]);
    play.send(|out| Joined { handle: other, ..joined(4, 1, 3, 1) }.encode(out));
    play.send(|out| EpochStart { epoch: Epoch(1), handle: other, first: Seq(1) }.encode(out));
    for seq in 1..=3 {
        play.send(|out| Deliver { handle: other, ..deliver(seq, b"") }.encode(out));
    }
    let events = play.events();
    assert!(matches!(events[0], Event::EpochChanged { last: Seq(100), first: Seq(1), .. }));
    assert_eq!(seqs(&events), [1, 2, 3]);
}

#[test]
fn a_message_out_of_order_ends_the_connection_and_not_the_client() {
    let mut play = Play::member(Options::new("ann"), Membership::live(), 3);
    play.deliver(5);
    assert_eq!(play.events(), []);
    assert_eq!(play.core.link(), Link::Close);
    play.core.disconnected(play.now);
    assert!(matches!(
        play.events()[..],
        [Event::Disconnected { reason: Reason::Protocol(_), retry_in_ms: Some(_) }]
    ));
}

#[test]
fn publishes_keep_the_window_and_are_sent_again_in_order_with_their_numbers() {
    let mut play = Play::new(Options::new("ann"));
    let ids: Vec<_> =
        (1..=5).map(|n| play.core.publish(GROUP, &[n], Publishing::default()).unwrap()).collect();
    play.welcome();
    let said = play.said();
    let expected: Vec<_> = (1..=3).map(|n| Said::Publish(n, u64::from(n), vec![n as u8])).collect();
    assert_eq!(said[1..], expected, "publish_window is 3");
    play.published(1, 1, 11);
    let Event::Published(p) = play.event() else { panic!() };
    assert_eq!((p.id, p.seq, p.producer_seq), (ids[0], Seq(11), 1));
    assert_eq!(play.said(), [Said::Publish(4, 4, vec![4])]);
    let again: Vec<_> = play.reconnect();
    let expected: Vec<_> = (2..=4).map(|n| Said::Publish(n as u32 + 3, n, vec![n as u8])).collect();
    assert_eq!(again, expected);
    for n in 2..=5 {
        play.published(n as u32 + 3, n, n + 10);
        play.event();
        play.said();
    }
    assert_eq!(play.core.unanswered(), 0);
}

#[test]
fn a_full_disk_holds_publishes_until_it_has_room_and_says_so_once() {
    let mut play = Play::new(Options::new("ann"));
    (1..=2).for_each(|n| publish(&mut play.core, n));
    play.welcome();
    play.said();
    play.error(1, ErrorCode::StorageFull, 0);
    let Event::PublishHeld { retry_in_ms: Some(ms), .. } = play.event() else { panic!() };
    play.error(2, ErrorCode::ProducerGap, 1);
    assert_eq!(play.events(), []);
    assert_eq!(play.said(), []);
    play.wait_ms(ms);
    let again = [Said::Publish(3, 1, vec![1]), Said::Publish(4, 2, vec![2])];
    let said = play.said();
    assert!(said.ends_with(&again), "{said:?}");
    play.error(3, ErrorCode::StorageFull, 0);
    play.error(4, ErrorCode::ProducerGap, 1);
    assert_eq!(play.events(), [], "it was said");
    play.wait_ms(1_000);
    play.said();
    play.published(5, 1, 1);
    play.published(6, 2, 2);
    assert_eq!(play.events().len(), 2);
}

#[test]
fn a_hold_that_is_over_is_due_only_where_publishes_are_sent() {
    let mut play = Play::new(Options::new("ann"));
    publish(&mut play.core, 1);
    play.core.publish(b"news", b"a", Publishing::default()).unwrap();
    play.welcome();
    play.said();
    play.error(1, ErrorCode::StorageFull, 0);
    assert!(matches!(play.event(), Event::PublishHeld { .. }));
    play.send(|out| Drain { grace_ms: 2_000, reconnect_after_ms: 5_000 }.encode(out));
    assert!(matches!(play.event(), Event::Draining { .. }));
    play.wait_ms(1_500);
    play.said();
    assert!(play.core.deadline().unwrap() > play.now, "the server stops");
    play.core.disconnected(play.now);
    play.events();
    play.connect();
    play.said();
    assert!(play.core.deadline().unwrap() > play.now, "WELCOME has not come");
    play.welcome();
    assert!(play.said().contains(&Said::Publish(3, 1, vec![1])));
}

#[test]
fn what_the_rules_of_numbers_say_about_a_publish_reaches_the_application() {
    let mut play = Play::new(Options::new("ann"));
    let publish =
        |play: &mut Play, n: u8| play.core.publish(GROUP, &[n], Publishing::default()).unwrap();
    let (a, b) = (publish(&mut play, 1), publish(&mut play, 2));
    play.welcome();
    play.said();
    // Refused for good: its number goes to the next one.
    play.error(1, ErrorCode::PayloadTooLong, 0);
    play.error(2, ErrorCode::ProducerGap, 1);
    let Event::PublishFailed { id, error: PublishError::Refused(_), .. } = play.event() else {
        panic!()
    };
    assert_eq!(id, a);
    assert_eq!(play.events(), []);
    assert_eq!(play.said(), [Said::Publish(3, 1, vec![2])]);
    // Sent again after a reconnect, but taken so long ago that its place is forgotten.
    assert_eq!(play.reconnect(), [Said::Publish(4, 1, vec![2])]);
    play.error(4, ErrorCode::ProducerSeqTooOld, 500);
    let Event::PublishFailed { id, error, .. } = play.event() else { panic!() };
    assert_eq!((id, error), (b, PublishError::PlaceUnknown));
    // Sent again to a server that does not know the producer any more.
    let c = publish(&mut play, 3);
    assert_eq!(play.said(), [Said::Publish(5, 2, vec![3])]);
    assert_eq!(play.reconnect(), [Said::Publish(6, 2, vec![3])]);
    let d = publish(&mut play, 4);
    assert_eq!(play.said(), [Said::Publish(7, 3, vec![4])]);
    play.error(6, ErrorCode::UnknownProducer, 1);
    play.error(7, ErrorCode::UnknownProducer, 1);
    let Event::PublishFailed { id, error, .. } = play.event() else { panic!() };
    assert_eq!((id, error), (c, PublishError::InDoubt));
    assert_eq!(play.events(), []);
    // It goes on under a new id, on a new connection.
    let before = play.core.to_resume().producer;
    assert_eq!(play.said(), []);
    assert_eq!(play.core.link(), Link::Close);
    let Event::ProducerRenewed { producer } = play.event() else { panic!() };
    assert!(producer != before && play.core.to_resume().producer == producer);
    play.core.disconnected(play.now);
    let Event::Disconnected { reason: Reason::Renewed, .. } = play.event() else { panic!() };
    play.connect();
    assert_eq!(play.core.take_output()[12 + 8..][..16], producer, "in HELLO");
    play.welcome();
    assert_eq!(play.said(), [Said::Publish(8, 1, vec![4])]);
    play.published(8, 1, 9);
    assert!(matches!(play.event(), Event::Published(p) if p.id == d));
    assert_eq!(play.core.unanswered(), 0);
}

#[test]
fn a_stopping_server_gets_no_new_publishes_and_is_left_when_it_has_answered() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 1);
    play.core.publish(GROUP, b"a", Publishing::default()).unwrap();
    let Said::Publish(request, ..) = play.said()[0] else { panic!() };
    play.send(|out| Drain { grace_ms: 2_000, reconnect_after_ms: 5_000 }.encode(out));
    assert!(matches!(play.event(), Event::Draining { .. }));
    play.core.publish(GROUP, b"b", Publishing::default()).unwrap();
    assert_eq!(play.said(), []);
    assert_eq!(play.core.link(), Link::Up);
    play.published(request, 1, 2);
    play.events();
    assert_eq!(play.said(), [ack(1, 1)], "what was handled is acknowledged");
    assert_eq!(play.core.link(), Link::Close);
    let drained = play.now;
    play.wait_ms(500);
    play.core.disconnected(play.now);
    let Event::Disconnected { reason, retry_in_ms } = play.event() else { panic!() };
    assert_eq!((reason, retry_in_ms), (Reason::Drained, Some(4_500)));
    assert_eq!(play.core.link(), Link::Connect { at: drained.plus_ms(5_000) });
    play.connect();
    play.welcome();
    let said = play.said();
    assert!(matches!(said.last(), Some(Said::Publish(_, 2, payload)) if payload == b"b"));
}

#[test]
fn a_replaced_client_does_not_come_back() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 1);
    play.error(0, ErrorCode::Replaced, 0);
    assert_eq!(play.events(), []);
    assert_eq!(play.core.link(), Link::Close);
    play.core.disconnected(play.now);
    let Event::Disconnected { reason, retry_in_ms } = play.event() else { panic!() };
    assert_eq!((reason, retry_in_ms), (Reason::Replaced, None));
    assert_eq!(play.core.link(), Link::Over);
    assert!(play.core.publish(GROUP, b"x", Publishing::default()).is_err());
}

#[test]
fn waits_between_connects_double_up_to_the_limit_and_are_spread() {
    let mut play = Play { core: Core::new(Options::new("ann").seed(3)).unwrap(), now: Nanos(0) };
    let mut waits = Vec::new();
    for _ in 0..8 {
        play.core.disconnected(play.now);
        let Event::Disconnected { retry_in_ms: Some(ms), .. } = play.event() else { panic!() };
        play.wait_ms(ms);
        waits.push(ms);
    }
    let whole = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000];
    for (wait, whole) in waits.iter().zip(whole) {
        assert!((whole / 2..=whole).contains(wait), "{waits:?}");
    }
    assert!(waits.iter().zip(whole).any(|(wait, whole)| *wait != whole));
    play.connect();
    play.welcome();
    play.core.disconnected(play.now);
    let Event::Disconnected { retry_in_ms: Some(ms), .. } = play.event() else { panic!() };
    assert!(ms <= 1_000, "a WELCOME starts anew");
}

#[test]
fn pings_keep_their_slot_and_silence_ends_the_connection() {
    let mut play = Play::new(Options::new("ann"));
    play.said();
    play.welcome();
    assert_eq!(play.core.deadline(), Some(Nanos(0).plus_ms(700)));
    play.wait_ms(700);
    assert_eq!(play.said(), [Said::Ping]);
    play.send(|out| ServerFrame::encode_pong(out, 0));
    assert_eq!(play.events(), []);
    assert_eq!(play.core.deadline(), Some(Nanos(0).plus_ms(30_700)));
    play.wait_ms(31_000);
    assert_eq!(play.said(), [Said::Ping]);
    assert_eq!(play.core.deadline(), Some(Nanos(0).plus_ms(41_700)), "an answer");
    play.wait_ms(10_000);
    assert_eq!(play.said(), []);
    assert_eq!(play.core.link(), Link::Close);

    // Neither does it wait for a WELCOME without end.
    let mut play = Play::new(Options::new("ann"));
    play.wait_ms(10_000);
    play.said();
    assert_eq!(play.core.link(), Link::Close);
}

#[test]
fn a_probe_is_answered_when_all_before_it_was_taken() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 0);
    play.deliver(1);
    play.send(|out| ServerFrame::encode_probe(out, 5));
    play.event();
    assert_eq!(play.said(), []);
    assert_eq!(play.events(), []);
    assert_eq!(play.said(), [Said::Probed(5)]);
}

#[test]
fn leaving_works_in_every_state_and_a_durable_member_leaves_after_a_reconnect_too() {
    // Before the server was asked.
    let mut play = Play::new(Options::new("ann"));
    play.core.join(GROUP, Membership::live()).unwrap();
    play.core.leave(GROUP).unwrap();
    assert!(matches!(play.events()[..], [Event::Left { .. }]));
    play.welcome();
    assert!(matches!(play.said()[..], [Said::Hello(_)]));
    // While it joins.
    play.core.join(GROUP, Membership::durable()).unwrap();
    assert!(matches!(play.said()[..], [Said::Join(1, _)]));
    play.core.leave(GROUP).unwrap();
    // The connection breaks before the answer: it may be a member.
    let said = play.reconnect();
    assert!(matches!(said[..], [Said::Join(2, _)]), "{said:?}");
    play.joined(2, 1, 0, 1);
    assert_eq!(play.events(), [], "it is not wanted");
    assert!(matches!(play.said()[..], [Said::Leave(3, _)]));
    play.send(|out| Left { request: 3, handle: HANDLE }.encode(out));
    assert!(matches!(play.events()[..], [Event::Left { .. }]));
    assert_eq!(play.reconnect(), [], "that was it");
    // And in again.
    play.core.join(GROUP, Membership::live()).unwrap();
    let Said::Join(request, entries) = &play.said()[0] else { panic!() };
    assert_eq!(entries[0].2, Start::Tail);
    let request = *request;
    play.joined(request, 1, 5, 6);
    assert!(matches!(play.event(), Event::Joined(JoinedGroup { again: false, .. })));
}

#[test]
fn a_refused_group_of_a_join_does_not_touch_the_others() {
    let mut play = Play::new(Options::new("ann"));
    play.core.join(GROUP, Membership::live()).unwrap();
    play.core.join(b"full", Membership::live()).unwrap();
    play.welcome();
    assert!(matches!(&play.said()[..], [Said::Hello(_), Said::Join(1, both)] if both.len() == 2));
    play.send(|out| {
        let code = ErrorCode::TooManyMembers as u16;
        ErrorFrame { request: 1, code, limit: 9, field: b"full", text: b"full" }.encode(out);
    });
    play.joined(1, 1, 0, 1);
    let events = play.events();
    assert!(matches!(&events[0], Event::JoinFailed { group, .. } if group[..] == *b"full"));
    assert!(matches!(&events[1], Event::Joined(_)));
    assert_eq!(events.len(), 2);
    assert!(matches!(&play.reconnect()[..], [Said::Join(_, one)] if one.len() == 1));
}

#[test]
fn a_client_goes_on_from_what_was_kept() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 3);
    play.deliver(4);
    play.event();
    (1..=3).for_each(|n| publish(&mut play.core, n));
    let Said::Publish(first, ..) = play.said()[0] else { panic!() };
    play.published(first, 1, 5);
    play.event();
    play.deliver(5);
    play.event();
    // 5 was taken and not handled; 2 and 3 have no answer.
    let kept = Resume::from_bytes(&play.core.to_resume().to_bytes()).unwrap();
    assert_eq!(kept.groups[0].handled, Some((Epoch(1), Seq(4))));
    assert_eq!((kept.groups[0].unanswered, kept.groups[0].unused), (2, 4));

    let mut core = Core::resume(Options::new("ann"), &kept).unwrap();
    core.join(GROUP, Membership::durable()).unwrap();
    (2..=4).for_each(|n| publish(&mut core, n));
    let mut play = Play { core, now: Nanos(0) };
    play.connect();
    play.welcome();
    let said = play.said();
    assert_eq!(said[1], Said::Join(1, vec![(GROUP.to_vec(), Mode::Durable, Start::Cursor)]));
    let numbers: Vec<_> = said[2..]
        .iter()
        .map(|s| match s {
            Said::Publish(_, number, payload) => (*number, payload[0]),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, [(2, 2), (3, 3), (4, 4)]);
    play.joined(1, 1, 5, 3);
    play.event();
    play.epoch(1, 3);
    (3..=5).for_each(|seq| play.deliver(seq));
    assert_eq!(seqs(&play.events()), [5], "3 and 4 were handled");
}

#[test]
fn bounds_are_errors_and_nothing_is_lost_by_them() {
    let mut options = Options::new("ann");
    (options.publishes_max, options.publish_bytes_max) = (2, 100);
    (options.queries_max, options.groups_max) = (1, 2);
    let mut play = Play::new(options);
    let how = Publishing::default();
    play.core.publish(GROUP, &[0; 60], how).unwrap();
    let full = play.core.publish(GROUP, &[0; 60], how);
    assert!(matches!(full, Err(ClientError::Full { what: "bytes of publishes", max: 100 })));
    play.core.publish(GROUP, &[0; 40], how).unwrap();
    assert!(matches!(play.core.publish(GROUP, b"", how), Err(ClientError::Full { max: 2, .. })));
    play.core.fetch(GROUP, Seq(1), None, 1).unwrap();
    assert!(matches!(play.core.sync(GROUP, 0), Err(ClientError::Full { max: 1, .. })));
    play.core.join(b"b", Membership::live()).unwrap();
    let third = play.core.join(b"c", Membership::live());
    assert!(matches!(third, Err(ClientError::TooManyGroups(2))));
    assert!(matches!(play.core.join(b"", Membership::live()), Err(ClientError::GroupLength(0))));
    assert!(matches!(Core::new(Options::new("")), Err(ClientError::MemberLength(0))));
    let long = play.core.publish(GROUP, &vec![0; 300_000], how);
    assert!(matches!(long, Err(ClientError::PayloadTooLong { .. })));
    play.welcome();
    play.said();
    play.published(3, 1, 1);
    play.events();
    assert_eq!(play.core.unanswered(), 1);
    play.core.publish(GROUP, &[0; 60], how).unwrap();
}

#[test]
fn questions_wait_for_a_connection_and_fail_when_it_breaks_after_they_were_sent() {
    let mut play = Play::new(Options::new("ann"));
    let first = play.core.fetch(GROUP, Seq(1), None, 0).unwrap();
    play.core.disconnected(play.now);
    assert!(matches!(play.events()[..], [Event::Disconnected { .. }]), "it was not sent");
    play.connect();
    play.welcome();
    assert_eq!(play.said(), [Said::Hello(b"ann".to_vec()), Said::Other]);
    play.core.disconnected(play.now);
    let events = play.events();
    assert!(matches!(&events[0], Event::QueryFailed { id, error: None, .. } if *id == first));
    play.connect();
    play.welcome();
    play.said();
    // An old server.
    let second = play.core.sync(GROUP, 0).unwrap();
    play.said();
    play.error(0, ErrorCode::UnknownFrame, u64::from(crate::wire::kind::SYNC));
    let events = play.events();
    assert!(events.iter().any(|e| matches!(e, Event::QueryFailed { id, .. } if *id == second)));
    play.core.sync(GROUP, 0).unwrap();
}

#[test]
fn number_one_of_a_client_that_was_away_for_long_is_not_risked() {
    let mut play = Play::new(Options::new("ann"));
    publish(&mut play.core, 1);
    play.welcome();
    play.said();
    play.core.disconnected(play.now);
    play.events();
    publish(&mut play.core, 2);
    play.wait_ms(6 * 60 * 1000);
    play.connect();
    play.welcome();
    assert!(matches!(
        play.events()[..],
        [Event::PublishFailed { id: PublishId(1), error: PublishError::InDoubt, .. }]
    ));
    // Number 1 of the same id could be answered with the place of the one given up.
    let before = play.core.to_resume().producer;
    play.said();
    assert!(matches!(play.events()[..], [Event::ProducerRenewed { .. }]));
    assert_eq!(play.core.link(), Link::Close);
    play.core.disconnected(play.now);
    play.events();
    play.connect();
    play.welcome();
    assert_eq!(play.said()[1..], [Said::Publish(2, 1, vec![2])]);
    assert_ne!(play.core.to_resume().producer, before);
}

/// The server says how soon it may forget, and counts from the publish, not from when the client
/// noticed that its connection was gone.
#[test]
fn number_one_is_not_risked_where_the_server_forgets_soon() {
    for (waits_ms, in_doubt) in [(3_000, false), (5_500, true)] {
        let mut play = Play::new(Options::new("ann"));
        publish(&mut play.core, 1);
        play.welcome();
        play.said();
        play.wait_ms(waits_ms);
        play.core.disconnected(play.now);
        play.events();
        play.connect();
        let welcome = Welcome { producer_ttl_ms: 10_000, ..welcome() };
        play.send(|out| welcome.encode(out));
        let events = play.events();
        let gives_up = |e: &Event| matches!(e, Event::PublishFailed { error, .. } if *error == PublishError::InDoubt);
        assert_eq!(events.iter().any(gives_up), in_doubt, "{waits_ms} ms: {events:?}");
    }
}

#[test]
fn a_cursor_beyond_what_the_client_kept_is_told() {
    let mut play = Play::member(Options::new("ann"), Membership::durable(), 3);
    play.reconnect();
    play.joined(2, 1, 9, 7);
    let Event::Joined(joined) = play.event() else { panic!() };
    assert_eq!(joined.skipped, Some((Seq(4), Seq(6))));
    play.epoch(1, 7);
    (7..=9).for_each(|seq| play.deliver(seq));
    assert_eq!(seqs(&play.events()), [7, 8, 9]);
}

#[test]
fn a_driver_that_takes_messages_itself_acknowledges_and_publishes_through_the_core() {
    let mut options = Options::new("ann").acks(AckMode::Explicit);
    (options.eager, options.answer_timeout_ms) = (true, u64::MAX);
    let mut play = Play::new(options);
    play.core.join(GROUP, Membership::durable()).unwrap();
    assert!(matches!(play.said()[..], [Said::Hello(_), Said::Join(1, _)]), "in one breath");
    let welcome = Welcome { ack_every: 4, ..welcome() };
    assert!(play.core.take(&ServerFrame::Welcome(welcome), play.now).is_some());
    let now = play.now;
    assert!(play.core.take(&ServerFrame::Joined(joined(1, 1, 0, 1)), now).is_some());
    let epoch = EpochStart { epoch: Epoch(1), handle: HANDLE, first: Seq(1) };
    assert!(play.core.take(&ServerFrame::Epoch(epoch), now).is_none());
    play.core.passed(HANDLE, Seq(3), now);
    assert_eq!(play.said(), []);
    play.core.passed(HANDLE, Seq(4), now);
    assert_eq!(play.said(), [ack(4, 1)]);
    play.core.passed(HANDLE, Seq(5), now);
    play.wait_ms(1_000);
    assert_eq!(play.said(), [ack(5, 1)]);
    assert_eq!(play.core.deadline(), Some(Nanos(0).plus_ms(30_700)), "the slot stays");
}

#[test]
fn members_that_get_a_message_at_once_acknowledge_it_at_moments_of_their_own() {
    let moment = |seed: u64| {
        let options = Options::new("ann").seed(seed);
        let mut play = Play::seeded(options).admit(Membership::durable(), 1);
        let begin = play.now;
        while !play.said().contains(&ack(1, 1)) {
            play.wait_ms(1);
        }
        play.now.since(begin) / 1_000_000
    };
    let moments: Vec<u64> = (1..=64).map(moment).collect();
    assert!(moments.iter().all(|ms| (500..=1_000).contains(ms)), "{moments:?}");
    let in_one_tenth =
        |from: u64| moments.iter().filter(|ms| (from..from + 50).contains(ms)).count();
    assert!((500..1_000).step_by(50).all(|from| in_one_tenth(from) < 20), "{moments:?}");
}
