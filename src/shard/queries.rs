//! What clients ask about a group: FETCH, SYNC, ROSTER_QUERY, and SET_STATE. Questions are
//! asked on the connection's shard, answered by the group's owner, and answers are whole
//! frames on their way back.
//!
//! A connection has at most [`QUERIES_MAX`] of them under way. One that finds the control
//! queue of its connection full is parked until there is room, so that answers to a peer that
//! does not read take no memory. The owner answers a slice per turn, in the order in which
//! they came.

use std::collections::VecDeque;

use super::backpressure::QUESTIONS;
use super::inbox::Origin;
use super::peers::FORWARD_OVERHEAD;
use super::replies::Refusal;
use super::{ConnId, Io, Shard};
use crate::auth::Right;
use crate::limits::{QUERIES_MAX, QUERY_BYTES_PER_TURN, QUERY_COST};
use crate::mesh::Message;
use crate::position::Seq;
use crate::wire::{
    ErrorCode, ErrorFrame, Expected, Fetch, RosterQuery, SetState, StateForm, SyncState,
};

/// What is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// A page of history.
    Fetch {
        /// First message wanted.
        from: Seq,
        /// Last message wanted; `None` is the head.
        to: Option<Seq>,
        /// Most messages.
        count_max: u32,
        /// Most bytes of frames.
        bytes_max: u32,
    },
    /// What changed in the state.
    Sync {
        /// Version that the client has.
        known: u64,
        /// Pages after the first go on where it said.
        page: Option<SyncPage>,
    },
    /// Who is on the roster.
    Roster {
        /// Version that the client has.
        known: u64,
        /// Where the page begins.
        after: u32,
        /// Most members.
        limit: u32,
    },
    /// A change of the state.
    Set {
        /// What the key must be.
        expected: Expected,
        /// The key.
        key: Box<[u8]>,
        /// Its new value; `None` deletes it.
        data: Option<Box<[u8]>>,
    },
}

/// Where the next page of a STATE begins.
#[derive(Clone, Copy, Debug)]
pub struct SyncPage {
    /// What its entries are.
    pub form: StateForm,
    /// Entries with a higher version follow ...
    pub after: u64,
    /// ... up to this version, that of the state when it was asked.
    pub up_to: u64,
}

/// A question on its way to the owner of its group.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who asks.
    pub origin: Origin,
    /// Name of the group.
    pub group: Box<[u8]>,
    /// What.
    pub question: Question,
}

impl Asked {
    /// Bytes that it counts against the inbox while it waits.
    fn bytes(&self) -> u64 {
        let data = match &self.question {
            Question::Set { data: Some(data), .. } => data.len() as u64,
            _ => 0,
        };
        FORWARD_OVERHEAD + data
    }
}

/// An answer: whole frames.
#[derive(Debug)]
pub struct Answer {
    /// The connection that asked.
    pub conn: ConnId,
    /// The frames.
    pub frames: Vec<u8>,
    /// What is asked for next, if this is not all of the answer.
    pub next: Option<Box<Asked>>,
}

/// Questions about groups of this shard that wait for their turn.
#[derive(Debug, Default)]
pub struct Questions {
    waiting: VecDeque<Asked>,
    bytes: u64,
}

impl Questions {
    /// Bytes that count against the inbox.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a question in.
    pub fn push(&mut self, asked: Asked) {
        self.bytes += asked.bytes();
        self.waiting.push_back(asked);
    }

    fn pop(&mut self) -> Option<Asked> {
        let asked = self.waiting.pop_front()?;
        self.bytes -= asked.bytes();
        Some(asked)
    }
}

impl Shard {
    pub(super) fn ask_fetch(&mut self, id: ConnId, fetch: &Fetch<'_>) {
        let Fetch { request, from, to, count_max, bytes_max, group } = *fetch;
        if !self.tokens.may(id, Right::History, group) {
            return self.forbid(id, request, Right::History, group);
        }
        self.ask(id, request, group, Question::Fetch { from, to, count_max, bytes_max });
    }

    pub(super) fn ask_sync(&mut self, id: ConnId, sync: &SyncState<'_>) {
        if !self.tokens.may(id, Right::Join, sync.group)
            && !self.tokens.may(id, Right::State, sync.group)
        {
            return self.forbid(id, sync.request, Right::State, sync.group);
        }
        let question = Question::Sync { known: sync.known, page: None };
        self.ask(id, sync.request, sync.group, question);
    }

    pub(super) fn ask_roster(&mut self, id: ConnId, query: &RosterQuery<'_>) {
        let RosterQuery { request, known, after, limit, group } = *query;
        if !self.tokens.may(id, Right::Join, group) {
            return self.forbid(id, request, Right::Join, group);
        }
        self.ask(id, request, group, Question::Roster { known, after, limit });
    }

    pub(super) fn ask_set(&mut self, id: ConnId, set: &SetState<'_>) {
        if !self.tokens.may(id, Right::State, set.group) {
            return self.forbid(id, set.request, Right::State, set.group);
        }
        let max = u64::from(self.config.payload_max);
        if set.data.is_some_and(|data| data.len() as u64 > max) {
            let text = "the value is longer than payload_max; keep it elsewhere and set its name";
            let refusal = Refusal::new(ErrorCode::StateTooLarge, text).limit(max).field(b"data");
            return self.refuse(id, set.request, refusal);
        }
        let (key, data) = (set.key.into(), set.data.map(Into::into));
        self.ask(id, set.request, set.group, Question::Set { expected: set.expected, key, data });
        self.throttle_questions(id);
    }

    fn ask(&mut self, id: ConnId, request: u32, group: &[u8], question: Question) {
        let Some(conn) = self.conn(id) else { return };
        if usize::from(conn.asking) >= QUERIES_MAX {
            let text = "too many questions wait on this connection; ask when one was answered";
            let refusal = Refusal::new(ErrorCode::TooManyRequests, text).limit(QUERIES_MAX as u64);
            return self.refuse(id, request, refusal);
        }
        conn.asking += 1;
        let origin = Origin { shard: self.id, conn: id, request };
        self.ask_or_park(Asked { origin, group: group.into(), question });
    }

    /// Sends a question to its owner, or parks it while its connection has no room for the
    /// answer.
    fn ask_or_park(&mut self, asked: Asked) {
        let room = self.config.control_bytes_max as usize;
        let Some(conn) = self.conn(asked.origin.conn) else { return };
        if conn.control.len() > room || conn.parked.is_some() {
            conn.parked.get_or_insert_default().push(asked);
        } else {
            self.send_question(asked);
        }
    }

    fn send_question(&mut self, asked: Asked) {
        let owner = self.owner_of(&asked.group);
        if owner == self.id {
            self.questions.push(asked);
        } else if let Some(peer) = self.mesh.peer(owner) {
            self.backpressure.forwarded(QUESTIONS, asked.bytes());
            peer.tell(Message::Ask(Box::new(asked)));
        }
    }

    /// The control queue of a connection went out: what waited for that is asked now.
    pub(super) fn unpark(&mut self, id: ConnId) {
        let room = self.config.control_bytes_max as usize;
        while let Some(conn) = self.conn(id)
            && conn.control.len() <= room
            && let Some(parked) = &mut conn.parked
        {
            let asked = parked.remove(0);
            if parked.is_empty() {
                conn.parked = None;
            }
            self.send_question(asked);
        }
    }

    /// Whether a question can be answered in the next turn.
    pub(super) fn can_answer(&self) -> bool {
        !self.questions.is_empty() && self.can_record()
    }

    /// Stage 4b: answers a slice of the questions that wait. What changes state waits for the
    /// log like everything else.
    pub(super) fn answer_questions(&mut self, io: &mut impl Io) {
        let mut budget = QUERY_BYTES_PER_TURN;
        while budget > 0
            && self.can_answer()
            && let Some(asked) = self.questions.pop()
        {
            if asked.origin.shard != self.id {
                self.tell(
                    asked.origin.shard,
                    Message::Credit { priority: QUESTIONS, bytes: asked.bytes() },
                );
            }
            budget = budget.saturating_sub(QUERY_COST + self.answer_question(asked, io));
        }
    }

    /// Answers a question, or has the answer wait for the disk; returns the bytes it took.
    fn answer_question(&mut self, asked: Asked, io: &mut impl Io) -> usize {
        let Asked { origin, group, question } = asked;
        match question {
            Question::Fetch { from, to, count_max, bytes_max } => {
                self.fetch(origin, &group, from, to, count_max, bytes_max)
            }
            Question::Sync { known, page } => self.sync_state(origin, group, known, page),
            Question::Roster { known, after, limit } => {
                self.query_roster(origin, &group, known, after, limit)
            }
            Question::Set { expected, key, data } => {
                self.set_state(origin, &group, expected, &key, data.as_deref(), io.wall_ms())
            }
        }
    }

    /// Sends an answer back to the connection that asked.
    pub(super) fn answered(&mut self, origin: Origin, frames: Vec<u8>, next: Option<Box<Asked>>) {
        let answer = Answer { conn: origin.conn, frames, next };
        if origin.shard == self.id {
            self.take_answer(answer);
        } else {
            self.tell(origin.shard, Message::Answer(answer));
        }
    }

    /// An answer for a connection of this shard.
    pub(super) fn take_answer(&mut self, answer: Answer) {
        let Answer { conn: id, frames, next } = answer;
        self.control(id, |out| out.extend_from_slice(&frames));
        if let Some(next) = next {
            return self.ask_or_park(*next);
        }
        if let Some(conn) = self.conn(id) {
            conn.asking -= 1;
        }
        self.unpark(id);
    }

    /// Answers a question with an ERROR.
    pub(super) fn refuse_question(&mut self, origin: Origin, refusal: Refusal<'_>) -> usize {
        let mut frames = Vec::new();
        ErrorFrame {
            request: origin.request,
            code: refusal.code as u16,
            limit: refusal.limit,
            field: refusal.field,
            text: refusal.text.as_bytes(),
        }
        .encode(&mut frames);
        let len = frames.len();
        self.figures.refused += 1;
        self.errors.add(refusal.code);
        self.answered(origin, frames, None);
        len
    }
}
