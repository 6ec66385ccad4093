//! The client without I/O: bytes and time in, events and bytes out.

use std::sync::Arc;

use super::error::ClientError;
use super::event::{Event, Message, PublishId, QueryId, Reason};
use super::group::{Group, Phase, Place};
use super::input::Input;
use super::options::{AckMode, Membership, Options, Publishing, check_group, check_payload};
use super::producer::Producer;
use super::resume::{Resume, ResumeGroup};
use super::session::{Conn, Request, Session};
use crate::limits::STATE_KEY_MAX;
use crate::position::{Epoch, Handle, Nanos, ProducerId, Seq};
use crate::wire::{Expected, Fetch, Mode, RosterQuery, ServerFrame, SetState, SyncState, kind};

/// What the driver of a [`Core`] has to do about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Connect at this time, then call [`Core::connected`] or [`Core::disconnected`].
    Connect {
        /// The time.
        at: Nanos,
    },
    /// Send [`Core::output`] and receive.
    Up,
    /// Close the connection and call [`Core::disconnected`].
    Close,
    /// There is nothing to do any more.
    Over,
}

/// A client without a socket and without a clock.
///
/// A driver moves bytes between it and a connection, in a loop like this one:
///
/// 1. [`Core::next_event`] until there is none; events go to the application;
/// 2. [`Core::advance`], which does what is due;
/// 3. what [`Core::link`] says: connect, close, or send [`Core::output`] and receive, until
///    [`Core::deadline`] at the latest.
///
/// Time is monotonic, in nanoseconds from any start.
///
/// ```
/// use fanfare::client::{Core, Event, Link, Membership, Options};
/// use fanfare::position::Nanos;
///
/// let mut core = Core::new(Options::new("ann"))?;
/// core.join(b"lobby", Membership::live())?;
/// assert_eq!(core.link(), Link::Connect { at: Nanos(0) });
/// core.connected(Nanos(1));
/// core.advance(Nanos(1));
/// assert_eq!(core.output()[..4], *b"FNFR");
/// # Ok::<(), fanfare::client::ClientError>(())
/// ```
#[derive(Debug)]
pub struct Core {
    input: Input,
    session: Session,
    /// The connection is gone; what came on it before is still to be taken.
    ended: bool,
    /// What the application works on since it took the last event.
    handling: Option<(usize, Place)>,
}

impl Core {
    /// A client that has never been connected.
    ///
    /// # Errors
    /// The member id is too long or empty.
    pub fn new(options: Options) -> Result<Self, ClientError> {
        options.check()?;
        let mut session = Session::new(options, ProducerId::default());
        session.producer = session.options.producer.unwrap_or_else(|| {
            let mut id = ProducerId::default();
            for half in id.chunks_exact_mut(8) {
                half.copy_from_slice(&session.rng.next().to_le_bytes());
            }
            id
        });
        Ok(Self { input: Input::new(), session, ended: false, handling: None })
    }

    /// A client that goes on where another one was, with the same member id.
    ///
    /// # Errors
    /// The member id is too long or empty.
    pub fn resume(options: Options, resume: &Resume) -> Result<Self, ClientError> {
        let mut core = Self::new(options.producer(resume.producer))?;
        for group in &resume.groups {
            check_group(&group.name)?;
            let numbers = Producer::new(group.unanswered, group.unused);
            let name = Arc::clone(&group.name);
            if core.session.find(&name).is_none() {
                core.session.add(Group::resumed(name, group.handle, group.handled, numbers));
            }
        }
        Ok(core)
    }

    /// What to keep so that [`Core::resume`] can go on from here.
    #[must_use]
    pub fn to_resume(&self) -> Resume {
        let group = |group: &Group| {
            let (unanswered, unused) = group.producer.numbers();
            ResumeGroup {
                name: Arc::clone(&group.name),
                handle: group.handle.unwrap_or_default(),
                handled: group.resume(),
                unanswered,
                unused,
            }
        };
        let groups = self.session.groups.iter().map(group).collect();
        Resume { producer: self.session.producer, groups }
    }

    // ---- for the driver ----

    /// What to do about the connection.
    #[must_use]
    pub fn link(&self) -> Link {
        match self.session.conn {
            Conn::Down { at } => Link::Connect { at },
            Conn::Over => Link::Over,
            Conn::Greeting { .. } | Conn::Open => match &self.session.closing {
                // The last words are still to be sent.
                Some(Reason::Closed | Reason::Drained) if !self.output().is_empty() => Link::Up,
                Some(_) => Link::Close,
                None if self.ended => Link::Close,
                None => Link::Up,
            },
        }
    }

    /// Why the connection is to be closed, if it is.
    #[must_use]
    pub fn closing(&self) -> Option<&Reason> {
        self.session.closing.as_ref()
    }

    /// A connection was made.
    pub fn connected(&mut self, now: Nanos) {
        if matches!(self.session.conn, Conn::Down { .. }) {
            self.input.clear();
            self.ended = false;
            self.session.connected(now);
        }
    }

    /// The connection is gone, or could not be made. What came before is still given out.
    pub fn disconnected(&mut self, now: Nanos) {
        match self.session.conn {
            Conn::Down { .. } => self.session.disconnected(now, Reason::Lost),
            Conn::Greeting { .. } | Conn::Open => self.ended = true,
            Conn::Over => {}
        }
    }

    /// Whether there is room for more bytes; if not, take events first.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.input.wants_more()
    }

    /// Bytes came.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.session.silent_at = None;
        self.input.push(bytes);
    }

    /// Bytes to send.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.session.out.get(self.session.out_sent..).unwrap_or_default()
    }

    /// The first `len` bytes of [`Core::output`] were sent.
    pub fn sent(&mut self, len: usize) {
        let session = &mut self.session;
        session.out_sent += len;
        if session.out_sent >= session.out.len() {
            session.out.clear();
            session.out_sent = 0;
        } else if session.out_sent > session.out.len() / 2 {
            session.out.drain(..session.out_sent);
            session.out_sent = 0;
        }
    }

    /// All of [`Core::output`], which counts as sent.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        let sent = std::mem::take(&mut self.session.out_sent);
        let mut out = std::mem::take(&mut self.session.out);
        out.drain(..sent);
        out
    }

    /// Does what is due at `now` and prepares what is to be sent.
    pub fn advance(&mut self, now: Nanos) {
        self.session.advance(now);
    }

    /// When [`Core::advance`] has something to do, at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Nanos> {
        self.session.deadline()
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self, now: Nanos) -> Option<Event> {
        self.settle(now);
        loop {
            if let Some(event) = self.session.events.pop_front() {
                return Some(self.give(event));
            }
            if self.session.closing.is_none() {
                let mut frame_max = None;
                let event = match self.input.next().map(|frame| frame.map(ServerFrame::decode)) {
                    Ok(None) => None,
                    Ok(Some(Ok(frame))) => {
                        if let ServerFrame::Welcome(welcome) = &frame {
                            frame_max = Some(welcome.frame_max);
                        }
                        Some(self.session.take(&frame, now))
                    }
                    Ok(Some(Err(error))) | Err(error) => {
                        self.session.close(Reason::Protocol(error.to_string()));
                        continue;
                    }
                };
                if let Some(frame_max) = frame_max {
                    self.input.set_frame_max(frame_max);
                }
                match event {
                    Some(Some(event)) => return Some(self.give(event)),
                    Some(None) => continue,
                    None => {}
                }
            }
            if !std::mem::take(&mut self.ended) {
                return None;
            }
            self.session.disconnected(now, Reason::Lost);
            self.input.clear();
        }
    }

    /// Notes what the application works on now.
    fn give(&mut self, event: Event) -> Event {
        if self.session.options.acks == AckMode::Automatic {
            let index = match &event {
                Event::Message(message) => self.session.by_handle(message.handle),
                Event::Gap { group, .. } => self.session.find(group),
                _ => None,
            };
            let place = match &event {
                Event::Message(message) => Some((message.epoch, message.seq)),
                _ => index.and_then(|i| self.session.groups.get(i)).map(Group::place),
            };
            self.handling = index.zip(place);
        }
        event
    }

    /// The application is through with what it took last.
    fn settle(&mut self, now: Nanos) {
        if let Some((index, place)) = self.handling.take() {
            self.handled(index, place, now);
        }
    }

    fn handled(&mut self, index: usize, place: Place, now: Nanos) {
        if self.session.groups.get_mut(index).is_some_and(|group| group.handle(place)) {
            self.session.handled(index, now);
        }
    }

    // ---- for drivers that take DELIVERs themselves ----

    /// Takes one frame that the driver has cut and decoded itself, instead of
    /// [`Core::receive`]. Events that it causes beside the one that is returned come from
    /// [`Core::next_event`].
    pub fn take(&mut self, frame: &ServerFrame<'_>, now: Nanos) -> Option<Event> {
        self.session.silent_at = None;
        self.session.take(frame, now)
    }

    /// The driver took all messages of a group up to `seq` itself, and is through with them.
    pub fn passed(&mut self, handle: Handle, seq: Seq, now: Nanos) {
        if let Some(index) = self.session.by_handle(handle)
            && let Some(group) = self.session.groups.get_mut(index)
        {
            group.passed(seq);
            let place = group.place();
            self.handled(index, place, now);
        }
    }

    // ---- commands ----

    fn check_alive(&self) -> Result<(), ClientError> {
        match self.session.conn {
            Conn::Over => Err(ClientError::Over(Reason::Closed)),
            _ => Ok(()),
        }
    }

    /// Joins a group and stays in it over reconnects, until [`Core::leave`]. The answer is
    /// [`Event::Joined`] or [`Event::JoinFailed`]. If it is joined already, `how` counts from
    /// the next connection on.
    ///
    /// # Errors
    /// The name has a wrong length, there are too many groups, or the client has ended.
    pub fn join(&mut self, group: &[u8], how: Membership) -> Result<(), ClientError> {
        self.check_alive()?;
        let index = self.session.group(group)?;
        if let Some(group) = self.session.groups.get_mut(index) {
            group.wanted = Some(how);
        }
        self.session.list_move(index);
        Ok(())
    }

    /// Leaves a group; the answer is [`Event::Left`]. A durable member that is not connected
    /// leaves when it is.
    ///
    /// # Errors
    /// The group was not joined, or the client has ended.
    pub fn leave(&mut self, group: &[u8]) -> Result<(), ClientError> {
        self.check_alive()?;
        let index = self.session.find(group).ok_or(ClientError::NotJoined)?;
        let Some(group) = self.session.groups.get_mut(index) else {
            return Err(ClientError::NotJoined);
        };
        if group.wanted.take().is_none() {
            return Err(ClientError::NotJoined);
        }
        if group.phase == Phase::Out && group.leaving.is_none_or(|how| how.mode == Mode::Live) {
            group.leaving = None;
            group.forget();
            self.session.events.push_back(Event::Left { group: Arc::clone(&group.name) });
        }
        self.session.list_move(index);
        Ok(())
    }

    /// Publishes to a group, which need not be joined. The answer is [`Event::Published`] or
    /// [`Event::PublishFailed`]; until then the message is kept and sent again as often as it
    /// takes.
    ///
    /// # Errors
    /// The message can never be taken, there is no room until answers come, or the client has
    /// ended.
    pub fn publish(
        &mut self,
        group: &[u8],
        payload: &[u8],
        how: Publishing,
    ) -> Result<PublishId, ClientError> {
        self.check_alive()?;
        check_payload(payload.len(), self.session.welcome.map(|w| w.payload_max))?;
        if how.receipt_percent > 100 {
            return Err(ClientError::Percent(how.receipt_percent));
        }
        let options = &self.session.options;
        if self.session.publishes >= options.publishes_max {
            return Err(ClientError::Full { what: "publishes", max: options.publishes_max });
        }
        if self.session.publish_bytes + payload.len() > options.publish_bytes_max
            && self.session.publishes > 0
        {
            let max = options.publish_bytes_max;
            return Err(ClientError::Full { what: "bytes of publishes", max });
        }
        let index = self.session.group(group)?;
        let id = PublishId(self.session.next_publish);
        self.session.next_publish += 1;
        self.session.publishes += 1;
        self.session.publish_bytes += payload.len();
        if let Some(group) = self.session.groups.get_mut(index) {
            group.producer.push(id, payload.into(), how);
        }
        self.session.list_send(index);
        Ok(id)
    }

    /// Publishes that have no answer yet.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.session.publishes
    }

    /// Acknowledges a message and all before it, for [`AckMode::Explicit`].
    ///
    /// # Errors
    /// Its group was not joined.
    pub fn ack(&mut self, message: &Message, now: Nanos) -> Result<(), ClientError> {
        self.ack_up_to(&message.group, message.epoch, message.seq, now)
    }

    /// Acknowledges a group up to a message.
    ///
    /// # Errors
    /// The group was not joined.
    pub fn ack_up_to(
        &mut self,
        group: &[u8],
        epoch: Epoch,
        seq: Seq,
        now: Nanos,
    ) -> Result<(), ClientError> {
        let index = self.session.find(group).ok_or(ClientError::NotJoined)?;
        self.handled(index, (epoch, seq), now);
        Ok(())
    }

    fn query(
        &mut self,
        group: &[u8],
        kind: u8,
        encode: impl FnOnce(&mut Vec<u8>, u32),
    ) -> Result<QueryId, ClientError> {
        self.check_alive()?;
        let max = self.session.options.queries_max;
        if self.session.queries >= max {
            return Err(ClientError::Full { what: "questions", max });
        }
        let group = self.session.group(group)?;
        let id = QueryId(self.session.next_query);
        self.session.next_query += 1;
        self.session.queries += 1;
        let request = self.session.request(Request::Query { group, id, kind, sent: false });
        let mut bytes = Vec::new();
        encode(&mut bytes, request);
        self.session.waiting.push_back((request, bytes));
        Ok(id)
    }

    /// Reads history: messages `from` to `to` (or the end), `count_max` at most if it is not 0.
    /// The answer is [`Event::Fetched`], whose `next` says where to go on.
    ///
    /// # Errors
    /// As [`Core::publish`].
    pub fn fetch(
        &mut self,
        group: &[u8],
        from: Seq,
        to: Option<Seq>,
        count_max: u32,
    ) -> Result<QueryId, ClientError> {
        self.query(group, kind::FETCH, |out, request| {
            Fetch { request, from, to, count_max, bytes_max: 0, group }.encode(out);
        })
    }

    /// Sets a key of a group's state, or deletes it (`None`), if it is as expected. The answer is
    /// [`Event::StateSet`] or [`Event::Conflict`].
    ///
    /// # Errors
    /// As [`Core::publish`].
    pub fn set_state(
        &mut self,
        group: &[u8],
        key: &[u8],
        expected: Expected,
        data: Option<&[u8]>,
    ) -> Result<QueryId, ClientError> {
        if !(1..=STATE_KEY_MAX).contains(&key.len()) {
            return Err(ClientError::KeyLength(key.len()));
        }
        let len = data.map_or(0, <[u8]>::len);
        check_payload(len, self.session.welcome.map(|w| w.payload_max))?;
        self.query(group, kind::SET_STATE, |out, request| {
            SetState { request, expected, group, key, data }.encode(out);
        })
    }

    /// Asks for what changed in a group's state since version `known`; 0 for all of it. The
    /// answer is [`Event::State`].
    ///
    /// # Errors
    /// As [`Core::publish`].
    pub fn sync(&mut self, group: &[u8], known: u64) -> Result<QueryId, ClientError> {
        self.query(group, kind::SYNC, |out, request| {
            SyncState { request, known, group }.encode(out);
        })
    }

    /// Asks for the roster of a group: what changed since version `known`, or with 0 a page
    /// of at most `limit` members from `after` on. The answer is [`Event::Roster`].
    ///
    /// # Errors
    /// As [`Core::publish`].
    pub fn roster(
        &mut self,
        group: &[u8],
        known: u64,
        after: u32,
        limit: u32,
    ) -> Result<QueryId, ClientError> {
        self.query(group, kind::ROSTER_QUERY, |out, request| {
            RosterQuery { request, known, after, limit, group }.encode(out);
        })
    }

    /// Ends the client: what was handled is acknowledged, then the connection closes. Publishes
    /// without an answer are given up; wait for [`Core::unanswered`] to be 0 before.
    pub fn close(&mut self, now: Nanos) {
        self.settle(now);
        match self.session.conn {
            Conn::Over => {}
            Conn::Down { .. } => {
                self.session.close(Reason::Closed);
                self.session.disconnected(now, Reason::Closed);
            }
            Conn::Greeting { .. } | Conn::Open => {
                self.session.acknowledge_all(now);
                self.session.close(Reason::Closed);
            }
        }
    }
}
