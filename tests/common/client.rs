use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fanfare::limits::FRAME_MAX;
use fanfare::position::{Epoch, Handle, Level, ProducerId, Seq, Stamp};
use fanfare::wire::{
    Ack, Acks, Auth, Authed, ClientFrame, ErrorCode, Hello, Join, JoinEntry, Leave, MAGIC, Publish,
    Published, Receipt, Redeliver, ServerFrame, Start, StateSet, Welcome, split,
};

use super::queries::{ConflictGot, Page, RosterPage, StatePage};
use super::{SOON, Server};

/// A frame of the server, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    Welcome(Welcome),
    Joined {
        request: u32,
        epoch: Epoch,
        handle: Handle,
        head: Seq,
        group: Vec<u8>,
        first: Seq,
        cursor: Seq,
    },
    Left {
        request: u32,
        handle: Handle,
    },
    Epoch {
        epoch: Epoch,
        handle: Handle,
        first: Seq,
    },
    Deliver {
        handle: Handle,
        seq: Seq,
        stamp: Stamp,
        sender: Vec<u8>,
        payload: Vec<u8>,
    },
    Published(Published),
    Pong(u64),
    Error {
        request: u32,
        code: u16,
        limit: u64,
        field: String,
        text: String,
    },
    Gap {
        handle: Handle,
        from: Seq,
        to: Seq,
        epoch: Epoch,
    },
    Drain {
        grace_ms: u32,
        reconnect_after_ms: u32,
    },
    Receipt(Receipt),
    Redeliver(Redeliver),
    Probe(u64),
    Fetched(Page),
    State(StatePage),
    StateSet(StateSet),
    Conflict(ConflictGot),
    Roster(RosterPage),
    Authed(Authed),
    /// The server ended the connection.
    Closed,
}

impl Got {
    fn of(frame: ServerFrame<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8 in an ERROR");
        match frame {
            ServerFrame::Welcome(welcome) => Self::Welcome(welcome),
            ServerFrame::Joined(j) => Self::Joined {
                request: j.request,
                epoch: j.epoch,
                handle: j.handle,
                head: j.head,
                group: j.group.to_vec(),
                first: j.first,
                cursor: j.cursor,
            },
            ServerFrame::Left(l) => Self::Left { request: l.request, handle: l.handle },
            ServerFrame::Epoch(e) => {
                Self::Epoch { epoch: e.epoch, handle: e.handle, first: e.first }
            }
            ServerFrame::Deliver(d) => Self::Deliver {
                handle: d.handle,
                seq: d.seq,
                stamp: d.stamp,
                sender: d.sender.to_vec(),
                payload: d.payload.to_vec(),
            },
            ServerFrame::Published(published) => Self::Published(published),
            ServerFrame::Pong { token } => Self::Pong(token),
            ServerFrame::Error(e) => Self::Error {
                request: e.request,
                code: e.code,
                limit: e.limit,
                field: text(e.field),
                text: text(e.text),
            },
            ServerFrame::Gap(g) => {
                Self::Gap { handle: g.handle, from: g.from, to: g.to, epoch: g.epoch }
            }
            ServerFrame::Drain(d) => {
                Self::Drain { grace_ms: d.grace_ms, reconnect_after_ms: d.reconnect_after_ms }
            }
            ServerFrame::Receipt(receipt) => Self::Receipt(receipt),
            ServerFrame::Redeliver(redeliver) => Self::Redeliver(redeliver),
            ServerFrame::Probe { token } => Self::Probe(token),
            ServerFrame::Fetched(page) => Self::Fetched(Page::of(&page)),
            ServerFrame::State(state) => Self::State(StatePage::of(&state)),
            ServerFrame::StateSet(set) => Self::StateSet(set),
            ServerFrame::Conflict(conflict) => Self::Conflict(ConflictGot::of(&conflict)),
            ServerFrame::Roster(roster) => Self::Roster(RosterPage::of(&roster)),
            ServerFrame::Authed(authed) => Self::Authed(authed),
            other => panic!("nobody asked for {other:?}"),
        }
    }

    /// The group that this frame is about, if it is a part of the group's stream.
    fn handle(&self) -> Option<Handle> {
        match self {
            Self::Epoch { handle, .. }
            | Self::Deliver { handle, .. }
            | Self::Gap { handle, .. } => Some(*handle),
            _ => None,
        }
    }
}

/// What JOINED said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinedGroup {
    pub handle: Handle,
    pub epoch: Epoch,
    pub head: Seq,
    pub first: Seq,
    pub cursor: Seq,
}

/// A blocking client. Frames come one by one; those that a helper passes over stay in order.
/// It numbers its messages per group from 1; one that was refused gives its number back.
pub struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
    used: usize,
    passed_over: VecDeque<Got>,
    next_request: u32,
    producer_seqs: HashMap<String, u64>,
    unanswered: HashMap<u32, (String, u64)>,
    closed: bool,
}

impl Client {
    /// A connection on which nothing was sent.
    pub fn bare(server: &Server) -> Self {
        Self::over(TcpStream::connect(server.addr()).unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            bytes: Vec::new(),
            used: 0,
            passed_over: VecDeque::new(),
            next_request: 1,
            producer_seqs: HashMap::new(),
            unanswered: HashMap::new(),
            closed: false,
        }
    }

    /// A connection that got WELCOME.
    pub fn open(server: &Server, member: &str) -> Self {
        Self::open_shard(server, member).0
    }

    /// The same, with the shard that owns the connection.
    pub fn open_shard(server: &Server, member: &str) -> (Self, u16) {
        let mut client = Self::bare(server);
        let welcome = client.hello(member);
        (client, welcome.shard.0)
    }

    /// A connection that a certain shard owns. The kernel spreads them by source port.
    pub fn on_shard(server: &Server, shard: u16, member: &str) -> Self {
        for _ in 0..500 {
            let (client, on) = Self::open_shard(server, member);
            if on == shard {
                return client;
            }
        }
        panic!("no connection came to shard {shard} in 500 tries");
    }

    /// A connection of a producer that may have had others.
    pub fn open_as(server: &Server, member: &str, producer: ProducerId) -> Self {
        let mut client = Self::bare(server);
        client.hello_as(member, producer);
        client
    }

    /// The same, on a certain shard.
    pub fn on_shard_as(server: &Server, shard: u16, member: &str, producer: ProducerId) -> Self {
        for _ in 0..500 {
            let mut client = Self::bare(server);
            if client.hello_as(member, producer).shard.0 == shard {
                return client;
            }
        }
        panic!("no connection came to shard {shard} in 500 tries");
    }

    /// Whether no frame came that no helper has taken.
    pub fn nothing_passed_over(&self) -> bool {
        self.passed_over.is_empty()
    }

    pub fn hello(&mut self, member: &str) -> Welcome {
        self.hello_as(member, new_producer())
    }

    pub fn hello_as(&mut self, member: &str, producer: ProducerId) -> Welcome {
        self.send(&hello_bytes_as(member, producer));
        match self.recv() {
            Got::Welcome(welcome) => welcome,
            other => panic!("instead of WELCOME: {other:?}"),
        }
    }

    /// Sends a token; returns its request.
    pub fn send_auth(&mut self, token: &str) -> u32 {
        let request = self.request();
        let mut out = Vec::new();
        Auth { request, token: token.as_bytes() }.encode(&mut out);
        self.send(&out);
        request
    }

    /// A connection that got WELCOME and AUTHED for its token.
    pub fn open_with(server: &Server, member: &str, token: &str) -> Self {
        let mut client = Self::bare(server);
        client.send(&hello_bytes(member));
        let request = client.send_auth(token);
        assert!(matches!(client.recv(), Got::Welcome(_)));
        client.authed(request);
        client
    }

    pub fn authed(&mut self, request: u32) -> Authed {
        self.expect("AUTHED", |got| match got {
            Got::Authed(authed) if authed.request == request => Some(*authed),
            Got::Error { request: of, .. } if *of == request => panic!("refused: {got:?}"),
            _ => None,
        })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Another handle of the same socket that only writes.
    pub fn writer(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn request(&mut self) -> u32 {
        self.next_request += 1;
        self.next_request - 1
    }

    /// Lets a frame that was taken come again.
    pub fn put_back(&mut self, got: Got) {
        self.passed_over.push_front(got);
    }

    /// The next frame; panics if none comes soon.
    pub fn recv(&mut self) -> Got {
        self.recv_within(SOON).unwrap_or_else(|| panic!("no frame within {SOON:?}"))
    }

    /// The next frame if one comes in time.
    pub fn recv_within(&mut self, time: Duration) -> Option<Got> {
        match self.passed_over.pop_front() {
            Some(got) => Some(got),
            None => self.recv_new(Instant::now() + time),
        }
    }

    fn recv_new(&mut self, deadline: Instant) -> Option<Got> {
        loop {
            if let Some((frame, len)) = split(&self.bytes[self.used..], FRAME_MAX).unwrap() {
                let got = Got::of(ServerFrame::decode(frame).unwrap());
                self.used += len;
                return Some(got);
            }
            if self.closed {
                return Some(Got::Closed);
            }
            self.bytes.drain(..self.used);
            self.used = 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(len) => self.bytes.extend_from_slice(&chunk[..len]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
    }

    /// The first frame for which `pick` gives something, passing over the others.
    pub fn expect<T>(&mut self, what: &str, mut pick: impl FnMut(&Got) -> Option<T>) -> T {
        if let Some(at) = self.passed_over.iter().position(|got| pick(got).is_some()) {
            return self.passed_over.remove(at).as_ref().and_then(pick).unwrap();
        }
        let deadline = Instant::now() + SOON;
        loop {
            let Some(got) = self.recv_new(deadline) else {
                let last: Vec<_> = self.passed_over.iter().rev().take(3).collect();
                panic!(
                    "no {what} within {SOON:?}; {} passed over: {last:?}",
                    self.passed_over.len()
                )
            };
            if let Some(picked) = pick(&got) {
                return picked;
            }
            assert_ne!(got, Got::Closed, "the connection ended before {what} came");
            self.passed_over.push_back(got);
        }
    }

    pub fn send_join(&mut self, groups: &[(&str, Start)]) -> u32 {
        let request = self.request();
        let entries: Vec<_> =
            groups.iter().map(|(group, start)| JoinEntry::live(group.as_bytes(), *start)).collect();
        let mut out = Vec::new();
        Join::encode(&mut out, request, &entries);
        self.send(&out);
        request
    }

    pub fn join(&mut self, group: &str) -> JoinedGroup {
        self.join_at(group, Start::Tail)
    }

    pub fn join_from(&mut self, group: &str, seq: u64) -> JoinedGroup {
        self.join_at(group, Start::Seq(Seq(seq)))
    }

    fn join_at(&mut self, group: &str, start: Start) -> JoinedGroup {
        let request = self.send_join(&[(group, start)]);
        self.joined(request, group)
    }

    /// Waits for JOINED.
    pub fn joined(&mut self, request: u32, group: &str) -> JoinedGroup {
        self.expect("JOINED", |got| match got {
            Got::Joined { request: of, epoch, handle, head, group: name, first, cursor }
                if *of == request =>
            {
                assert_eq!(name, group.as_bytes());
                let (handle, epoch, head) = (*handle, *epoch, *head);
                Some(JoinedGroup { handle, epoch, head, first: *first, cursor: *cursor })
            }
            Got::Error { request: of, .. } if *of == request => panic!("JOIN refused: {got:?}"),
            _ => None,
        })
    }

    pub fn send_leave(&mut self, group: &str) -> u32 {
        let request = self.request();
        let mut out = Vec::new();
        Leave::encode(&mut out, request, &[group.as_bytes()]);
        self.send(&out);
        request
    }

    /// Bytes of a PUBLISH, and its request.
    pub fn publish_frame(
        &mut self,
        group: &str,
        level: Option<Level>,
        payload: &[u8],
    ) -> (u32, Vec<u8>) {
        let last = self.producer_seqs.entry(group.to_owned()).or_insert(0);
        *last += 1;
        let producer_seq = *last;
        let (request, bytes) = self.publish_frame_as(group, level, producer_seq, payload);
        self.unanswered.insert(request, (group.to_owned(), producer_seq));
        (request, bytes)
    }

    /// The same with a number of the caller's choice.
    pub fn publish_frame_as(
        &mut self,
        group: &str,
        level: Option<Level>,
        producer_seq: u64,
        payload: &[u8],
    ) -> (u32, Vec<u8>) {
        let request = self.request();
        let mut out = Vec::new();
        Publish { request, level, receipt: 0, producer_seq, group: group.as_bytes(), payload }
            .encode(&mut out);
        (request, out)
    }

    /// Sends a publish with a number of the caller's choice.
    pub fn send_publish_as(&mut self, group: &str, producer_seq: u64, payload: &[u8]) -> u32 {
        let (request, bytes) = self.publish_frame_as(group, None, producer_seq, payload);
        self.send(&bytes);
        request
    }

    /// Publishes with a number of the caller's choice and waits for the answer.
    pub fn publish_as(
        &mut self,
        group: &str,
        producer_seq: u64,
        payload: &[u8],
    ) -> Result<Published, (ErrorCode, u64)> {
        let request = self.send_publish_as(group, producer_seq, payload);
        self.answer(request)
    }

    /// What a publish was answered: its place, or code and limit of the refusal.
    pub fn answer(&mut self, request: u32) -> Result<Published, (ErrorCode, u64)> {
        self.expect("an answer", |got| match got {
            Got::Published(published) if published.request == request => Some(Ok(*published)),
            Got::Error { request: of, code, limit, .. } if *of == request => {
                Some(Err((ErrorCode::from_number(*code).unwrap(), *limit)))
            }
            _ => None,
        })
    }

    pub fn send_publish(&mut self, group: &str, payload: &[u8]) -> u32 {
        let (request, bytes) = self.publish_frame(group, None, payload);
        self.send(&bytes);
        request
    }

    /// Publishes and waits for the answer.
    pub fn publish(&mut self, group: &str, payload: &[u8]) -> Published {
        let request = self.send_publish(group, payload);
        self.published(request)
    }

    pub fn published(&mut self, request: u32) -> Published {
        self.expect("PUBLISHED", |got| match got {
            Got::Published(published) if published.request == request => Some(*published),
            Got::Error { request: of, .. } if *of == request => panic!("refused: {got:?}"),
            _ => None,
        })
    }

    /// The ERROR that answers `request`: code, limit, field.
    pub fn error(&mut self, request: u32) -> (ErrorCode, u64, String) {
        if let Some((group, producer_seq)) = self.unanswered.remove(&request) {
            let last = self.producer_seqs.get_mut(&group).unwrap();
            *last = (producer_seq - 1).min(*last);
        }
        self.expect("ERROR", |got| match got {
            Got::Error { request: of, code, limit, field, text } if *of == request => {
                assert!(!text.is_empty(), "an ERROR says in words what happened");
                Some((ErrorCode::from_number(*code).unwrap(), *limit, field.clone()))
            }
            _ => None,
        })
    }

    /// A fatal ERROR as the next frame, then the end.
    pub fn fatal(&mut self) -> (ErrorCode, u64) {
        let (code, limit, _) = self.error(0);
        assert!(code.is_fatal());
        assert_eq!(self.recv(), Got::Closed, "after {code:?}");
        (code, limit)
    }

    /// Waits for a PONG, so that everything sent before was taken by the server.
    pub fn ping(&mut self) {
        let token = u64::from(self.request());
        let mut out = Vec::new();
        ClientFrame::encode_ping(&mut out, token);
        self.send(&out);
        self.expect("PONG", |got| (*got == Got::Pong(token)).then_some(()));
    }

    pub fn ack(&mut self, handle: Handle, epoch: Epoch, seq: Seq) {
        let mut out = Vec::new();
        Acks::encode(&mut out, &[Ack { handle, seq, epoch }]);
        self.send(&out);
    }

    /// Reads DELIVERs of a group until `seq`, checking what PROTOCOL.md promises about order.
    pub fn follow(&mut self, follower: &mut Follower, seq: u64) {
        while follower.last < Seq(seq) {
            let handle = follower.handle;
            let got = self.expect(&format!("message {} of {seq}", follower.last.next()), |got| {
                (got.handle() == Some(handle)).then(|| got.clone())
            });
            follower.take(got);
        }
    }
}

/// A member's view of one group: what it got, and the checks on it.
pub struct Follower {
    pub handle: Handle,
    pub epoch: Option<Epoch>,
    pub last: Seq,
    /// Sequence number, sender, payload.
    pub messages: Vec<(Seq, Vec<u8>, Vec<u8>)>,
    pub gaps: Vec<(Seq, Seq)>,
    pub last_stamp: Stamp,
}

impl Follower {
    /// Of live messages.
    pub fn live(joined: JoinedGroup) -> Self {
        Self::from(joined, joined.head.0 + 1)
    }

    /// Of everything from `seq` on.
    pub fn from(joined: JoinedGroup, seq: u64) -> Self {
        Self {
            handle: joined.handle,
            epoch: None,
            last: Seq(seq - 1),
            messages: Vec::new(),
            gaps: Vec::new(),
            last_stamp: Stamp(0),
        }
    }

    pub fn take(&mut self, got: Got) {
        match got {
            Got::Epoch { epoch, handle, first } if handle == self.handle => {
                assert!(self.epoch.is_none_or(|before| before < epoch), "epochs go up");
                assert!(first > self.last, "EPOCH from {first} after message {}", self.last);
                self.epoch = Some(epoch);
            }
            Got::Gap { from, to, handle, .. } if handle == self.handle => {
                assert_eq!(from, self.last.next(), "a GAP starts where the messages end");
                assert!(from <= to);
                self.gaps.push((from, to));
                self.last = to;
            }
            Got::Deliver { handle, seq, stamp, sender, payload } if handle == self.handle => {
                assert!(self.epoch.is_some(), "EPOCH comes before the first DELIVER");
                assert_eq!(seq, self.last.next(), "sequence numbers are contiguous");
                assert!(stamp > self.last_stamp, "stamps go up");
                self.last_stamp = stamp;
                self.last = seq;
                self.messages.push((seq, sender, payload));
            }
            other => panic!("not of this group: {other:?}"),
        }
    }

    pub fn payloads(&self) -> Vec<&[u8]> {
        self.messages.iter().map(|(_, _, payload)| &payload[..]).collect()
    }
}

/// A producer that no other client of this process or of another has.
pub fn new_producer() -> ProducerId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let next = NEXT.fetch_add(1, Ordering::Relaxed) ^ u64::from(std::process::id()) << 32;
    let mut producer = [0; 16];
    producer[..8].copy_from_slice(&clock.to_le_bytes());
    producer[8..].copy_from_slice(&next.to_le_bytes());
    producer
}

/// Magic and HELLO of a new producer.
pub fn hello_bytes(member: &str) -> Vec<u8> {
    hello_bytes_as(member, new_producer())
}

/// Magic and HELLO.
pub fn hello_bytes_as(member: &str, producer: ProducerId) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    Hello {
        version_min: 1,
        version_max: 1,
        encoding: 0,
        flags: 0,
        producer,
        member: member.as_bytes(),
    }
    .encode(&mut out);
    out
}
