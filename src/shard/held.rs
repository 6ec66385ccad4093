//! Answers that tell of records which are not on disk yet. They wait for their commit; if it
//! fails, nobody learns what they said.

use std::collections::VecDeque;

use super::Shard;
use super::inbox::Origin;
use super::queries::Asked;
use super::records::Ticket;
use super::replies::{Refusal, refusal_text};
use crate::wire::ErrorCode;

/// An answer that waits.
#[derive(Debug)]
struct Held {
    /// The record that must be on disk.
    ticket: Ticket,
    origin: Origin,
    frames: Vec<u8>,
    next: Option<Box<Asked>>,
    /// It tells that this very record was made.
    changed: bool,
}

/// All of them, in the order in which they were made.
#[derive(Debug, Default)]
pub struct HeldAnswers(VecDeque<Held>);

impl HeldAnswers {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Shard {
    /// Sends an answer once all records up to `ticket` are on disk. `changed` says that it
    /// answers the request that made that record.
    pub(super) fn answer_when_synced(
        &mut self,
        ticket: Ticket,
        origin: Origin,
        frames: Vec<u8>,
        next: Option<Box<Asked>>,
        changed: bool,
    ) -> usize {
        let len = frames.len();
        if ticket <= self.records_synced() {
            self.answered(origin, frames, next);
        } else if self.log.is_poisoned() {
            self.refuse_held(origin, ErrorCode::StorageFailed);
        } else {
            self.held.0.push_back(Held { ticket, origin, frames, next, changed });
        }
        len
    }

    /// Sends what waited for the commit that is on disk now.
    pub(super) fn release_held(&mut self) {
        let synced = self.records_synced();
        while self.held.0.front().is_some_and(|held| held.ticket <= synced)
            && let Some(held) = self.held.0.pop_front()
        {
            self.answered(held.origin, held.frames, held.next);
        }
    }

    /// The log failed. Whether a change will be there after a restart is not known: its record
    /// may be on disk, or a snapshot that was being taken may hold it.
    pub(super) fn refuse_all_held(&mut self) {
        for held in std::mem::take(&mut self.held.0) {
            let code =
                if held.changed { ErrorCode::Indeterminate } else { ErrorCode::StorageFailed };
            self.refuse_held(held.origin, code);
        }
    }

    fn refuse_held(&mut self, origin: Origin, code: ErrorCode) {
        self.refuse_question(origin, Refusal::new(code, refusal_text(code)));
    }
}
