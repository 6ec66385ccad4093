//! All that a client knows, and what is due on its connection.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::error::ClientError;
use super::event::{Event, GroupName, PublishId, QueryId, Reason};
use super::group::Group;
use super::options::{Options, Rng};
use super::token::TokenSource;
use crate::position::{Handle, Nanos, ProducerId};
use crate::wire::{Hello, MAGIC, VERSION, Welcome};

/// When a server may forget a producer, if it does not say; see PROTOCOL.md.
const PRODUCER_TTL_MS: u32 = 10 * 60 * 1000;

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conn {
    /// There is none; one is to be made at this time.
    Down { at: Nanos },
    /// HELLO was sent; WELCOME must come until then.
    Greeting { until: Nanos },
    /// WELCOME came.
    Open,
    /// There will be none any more.
    Over,
}

/// A request without an answer.
#[derive(Debug)]
pub(super) enum Request {
    Join(Vec<usize>),
    Leave(Vec<usize>),
    Publish { group: usize, id: PublishId },
    Query { group: usize, id: QueryId, kind: u8, sent: bool },
    Auth,
}

/// The requests without an answer, by number.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub open: HashMap<u32, Request>,
    last: u32,
}

impl Requests {
    /// Takes a number that is not in use.
    pub fn add(&mut self, request: Request) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.open.contains_key(&self.last) {
                self.open.insert(self.last, request);
                return self.last;
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    pub options: Options,
    pub producer: ProducerId,
    pub rng: Rng,
    pub conn: Conn,
    pub welcome: Option<Welcome>,
    pub out: Vec<u8>,
    pub out_sent: usize,
    pub events: VecDeque<Event>,
    pub groups: Vec<Group>,
    by_name: HashMap<GroupName, usize>,
    by_handle: HashMap<Handle, usize>,
    last: Option<(Handle, usize)>,

    pub requests: Requests,
    /// Encoded questions that wait for a connection.
    pub waiting: VecDeque<(u32, Vec<u8>)>,
    pub next_publish: u64,
    pub next_query: u64,
    pub publishes: usize,
    pub publish_bytes: usize,
    pub queries: usize,

    /// Groups to join or leave.
    pub moves: VecDeque<usize>,
    /// Groups with publishes to send.
    pub sends: VecDeque<usize>,
    /// Groups to acknowledge.
    pub acks: Vec<usize>,
    /// When groups are to be acknowledged at the latest, in order.
    pub clock: VecDeque<(Nanos, usize)>,
    /// How much earlier than at the latest the next ACK comes, of 2048 parts.
    ack_early: u64,
    /// Groups whose publishes wait for a time.
    pub holds: Vec<usize>,

    /// The token that was sent last on this connection.
    pub token: Option<Arc<str>>,
    /// When the next one is due.
    pub renew_at: Option<Nanos>,
    /// Groups whose JOIN waits for a time, and when it is over.
    pub late_moves: Vec<(Nanos, usize)>,

    pub ping_at: Option<Nanos>,
    /// When an ACK was sent last.
    pub acked_at: Option<Nanos>,
    /// Something must have come until then.
    pub silent_at: Option<Nanos>,
    /// Reconnects in a row that failed.
    attempt: u32,
    /// The server stops; when to reconnect.
    pub drain: Option<Nanos>,
    /// The connection is to be closed.
    pub closing: Option<Reason>,
    /// A group has forgotten this producer: a new id is drawn as soon as all that may have been
    /// taken under this one has its answer.
    pub renewing: bool,
}

impl Session {
    pub fn new(options: Options, producer: ProducerId) -> Self {
        Self {
            rng: Rng(options.seed),
            options,
            producer,
            conn: Conn::Down { at: Nanos(0) },
            welcome: None,
            out: Vec::new(),
            out_sent: 0,
            events: VecDeque::new(),
            groups: Vec::new(),
            by_name: HashMap::new(),
            by_handle: HashMap::new(),
            last: None,
            requests: Requests::default(),
            waiting: VecDeque::new(),
            next_publish: 1,
            next_query: 1,
            publishes: 0,
            publish_bytes: 0,
            queries: 0,
            moves: VecDeque::new(),
            sends: VecDeque::new(),
            acks: Vec::new(),
            clock: VecDeque::new(),
            ack_early: 0,
            holds: Vec::new(),
            token: None,
            renew_at: None,
            late_moves: Vec::new(),
            ping_at: None,
            acked_at: None,
            silent_at: None,
            attempt: 0,
            drain: None,
            closing: None,
            renewing: false,
        }
    }

    // ---- groups ----

    /// The group with this name.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The group with this name, made if need be.
    pub fn group(&mut self, name: &[u8]) -> Result<usize, ClientError> {
        super::options::check_group(name)?;
        match self.find(name) {
            Some(index) => Ok(index),
            None if self.groups.len() >= self.options.groups_max => {
                Err(ClientError::TooManyGroups(self.groups.len()))
            }
            None => Ok(self.add(Group::new(name.into()))),
        }
    }

    pub fn add(&mut self, group: Group) -> usize {
        let index = self.groups.len();
        self.by_name.insert(Arc::clone(&group.name), index);
        if let Some(handle) = group.handle {
            self.by_handle.insert(handle, index);
        }
        self.groups.push(group);
        index
    }

    /// The group that the server names by this handle.
    pub fn by_handle(&mut self, handle: Handle) -> Option<usize> {
        match self.last {
            Some((last, index)) if last == handle => Some(index),
            _ => {
                let index = self.by_handle.get(&handle).copied()?;
                self.last = Some((handle, index));
                Some(index)
            }
        }
    }

    /// The server named group `index`.
    pub fn name_handle(&mut self, index: usize, handle: Handle) {
        if self.by_handle.get(&handle) == Some(&index) {
            return;
        }
        if let Some(group) = self.groups.get_mut(index) {
            if let Some(old) = group.handle
                && self.by_handle.get(&old) == Some(&index)
            {
                self.by_handle.remove(&old);
            }
            self.last = None;
            self.by_handle.insert(handle, index);
        }
    }

    // ---- lists ----

    /// Puts a group on the list of those to join or leave, if it has to be.
    pub fn list_move(&mut self, index: usize) {
        if let Some(group) = self.groups.get_mut(index)
            && group.has_to_move()
            && !std::mem::replace(&mut group.listed, true)
        {
            self.moves.push_back(index);
        }
    }

    pub fn list_send(&mut self, index: usize) {
        if let Some(group) = self.groups.get_mut(index)
            && !group.producer.is_empty()
            && !std::mem::replace(&mut group.send_listed, true)
        {
            self.sends.push_back(index);
        }
    }

    pub fn list_ack(&mut self, index: usize) {
        if let Some(group) = self.groups.get_mut(index)
            && !std::mem::replace(&mut group.ack_listed, true)
        {
            self.acks.push(index);
        }
    }

    /// Messages of the group were handled: acknowledge by count, or start its clock.
    pub fn handled(&mut self, index: usize, now: Nanos) {
        let (Some(welcome), Some(group)) = (&self.welcome, self.groups.get_mut(index)) else {
            return;
        };
        let (every, interval) = (u64::from(welcome.ack_every), u64::from(welcome.ack_interval_ms));
        let early = |whole: u64| whole - whole * self.ack_early / 2048;
        if every > 0 && u64::from(group.unacked) >= early(every) {
            self.list_ack(index);
        } else if group.unacked > 0 && !std::mem::replace(&mut group.timed, true) {
            let at = now.plus_ms(early(interval));
            let before = self.clock.back().map_or(at, |(before, _)| *before);
            self.clock.push_back((at.max(before), index));
        }
    }

    /// Draws when the next ACK comes. All members of a group get a message in the same moment: if
    /// all counted alike, their ACKs would come in one burst, in front of the next message.
    pub fn spread_acks(&mut self) {
        self.ack_early = self.rng.next() % 1024;
    }

    // ---- the connection's life ----

    /// A connection was made.
    pub fn connected(&mut self, now: Nanos) {
        self.renew_if_settled();
        let until = now.plus_ms(self.options.answer_timeout_ms);
        self.conn = Conn::Greeting { until };
        self.out_sent = 0;
        self.out.clear();
        #[cfg(feature = "server")]
        if let Some(opening) = self.options.own.then(crate::auth::own_opening).flatten() {
            self.out.extend_from_slice(&opening);
        }
        self.out.extend_from_slice(&MAGIC);
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            encoding: 0,
            flags: 0,
            producer: self.producer,
            member: &self.options.member,
        }
        .encode(&mut self.out);
        self.send_token();
        for index in 0..self.groups.len() {
            self.list_move(index);
            self.list_send(index);
        }
    }

    /// The connection is gone, or could not be made.
    pub fn disconnected(&mut self, now: Nanos, reason: Reason) {
        let drain = self.drain.take();
        let reason = match (self.closing.take(), drain) {
            (Some(known), _) => known,
            (None, Some(_)) => Reason::Drained,
            (None, None) => reason,
        };
        (self.out, self.out_sent) = Default::default();
        self.welcome = None;
        (self.ping_at, self.silent_at, self.acked_at) = (None, None, None);
        (self.moves, self.sends, self.late_moves) = Default::default();
        (self.token, self.renew_at) = (None, None);
        (self.acks, self.clock, self.holds) = Default::default();
        for group in &mut self.groups {
            if group.disconnected() {
                self.events.push_back(Event::Left { group: Arc::clone(&group.name) });
            }
        }
        let mut unanswered = Vec::new();
        self.requests.open.retain(|_, request| match request {
            Request::Query { sent: false, .. } => true,
            Request::Query { group, id, .. } => {
                unanswered.push((*id, *group));
                false
            }
            Request::Join(_) | Request::Leave(_) | Request::Publish { .. } | Request::Auth => false,
        });
        unanswered.sort_unstable();
        for (id, group) in unanswered {
            self.queries = self.queries.saturating_sub(1);
            if let Some(group) = self.groups.get(group) {
                let group = Arc::clone(&group.name);
                self.events.push_back(Event::QueryFailed { id, group, error: None });
            }
        }
        for index in 0..self.groups.len() {
            if self.groups[index].held_until().is_some() {
                self.holds.push(index);
            }
        }
        let may_change = self.options.token.as_ref().is_some_and(TokenSource::may_change);
        let retry_in_ms = (!is_final(&reason, may_change)).then(|| match drain {
            Some(at) => at.since(now) / 1_000_000,
            None => self.backoff_ms(),
        });
        self.conn = match retry_in_ms {
            Some(ms) => Conn::Down { at: now.plus_ms(ms) },
            None => Conn::Over,
        };
        self.events.push_back(Event::Disconnected { reason, retry_in_ms });
    }

    /// The wait before the next attempt; each is about twice as long as the one before.
    fn backoff_ms(&mut self) -> u64 {
        let (least, most) =
            (self.options.backoff_min_ms.max(1), self.options.backoff_max_ms.max(1));
        let whole = least.saturating_mul(1 << self.attempt.min(20)).min(most);
        self.attempt = self.attempt.saturating_add(1);
        whole - self.rng.next() % (whole / 2 + 1)
    }

    /// The wait before publishes that were held back are tried again.
    pub fn hold_ms(&mut self) -> u64 {
        let whole = self.options.backoff_min_ms.max(2);
        whole - self.rng.next() % (whole / 2)
    }

    /// WELCOME came.
    pub fn welcomed(&mut self, welcome: Welcome, now: Nanos) {
        self.conn = Conn::Open;
        self.welcome = Some(welcome);
        self.spread_acks();
        self.attempt = 0;
        let ttl_ms = match welcome.producer_ttl_ms {
            0 => PRODUCER_TTL_MS,
            ttl_ms => ttl_ms,
        };
        // The other half is for the way.
        let safe_ms = u64::from(ttl_ms / 2);
        for index in 0..self.groups.len() {
            let Some(group) = self.groups.get_mut(index) else { break };
            let (name, settled) = (Arc::clone(&group.name), group.producer.away(now, safe_ms));
            self.give_up(&name, settled.in_doubt);
            self.renewing |= settled.forgotten;
        }
        if welcome.heartbeat_ms > 0 {
            self.ping_at = Some(now.plus_ms(u64::from(welcome.heartbeat_slot_ms)));
        }
    }

    /// Draws a new producer id if one is wanted and nothing needs the old one. It holds from the
    /// next HELLO on.
    pub fn renew_if_settled(&mut self) -> bool {
        if !self.renewing || !self.groups.iter().all(|group| group.producer.may_renew()) {
            return false;
        }
        self.renewing = false;
        self.producer = self.rng.producer();
        for group in &mut self.groups {
            group.producer.renew();
        }
        self.events.push_back(Event::ProducerRenewed { producer: self.producer });
        true
    }

    /// The connection has to end, unless it has to already.
    pub fn close(&mut self, reason: Reason) {
        self.closing.get_or_insert(reason);
    }
}

/// Whether there is no use in trying again.
fn is_final(reason: &Reason, token_may_change: bool) -> bool {
    use crate::wire::ErrorCode as E;
    match reason {
        Reason::Replaced | Reason::Closed => true,
        Reason::Server(refusal) => match refusal.known() {
            Some(E::BadMagic | E::VersionUnsupported | E::EncodingUnsupported | E::TlsRequired) => {
                true
            }
            Some(E::AuthRequired | E::TokenExpired | E::TokenRefused) => !token_may_change,
            _ => false,
        },
        _ => false,
    }
}
