//! The client without I/O: bytes and time in, events and bytes out.

use std::sync::Arc;

use super::error::ClientError;
use super::event::{Event, Reason};
use super::group::{Group, Place};
use super::input::Input;
use super::options::{AckMode, Options, check_group};
use super::producer::Producer;
use super::resume::{Resume, ResumeGroup};
use super::session::{Conn, Session};
use crate::position::{Handle, Nanos, ProducerId, Seq};
use crate::wire::ServerFrame;

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
    pub(super) session: Session,
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
        session.producer = session.options.producer.unwrap_or_else(|| session.rng.producer());
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
                Some(Reason::Closed | Reason::Drained | Reason::Renewed)
                    if !self.output().is_empty() =>
                {
                    Link::Up
                }
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

    /// How the client was asked to be.
    pub(super) fn options(&self) -> &Options {
        &self.session.options
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
    pub(super) fn settle(&mut self, now: Nanos) {
        if let Some((index, place)) = self.handling.take() {
            self.handled(index, place, now);
        }
    }

    pub(super) fn handled(&mut self, index: usize, place: Place, now: Nanos) {
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
}
