//! Control frames: the small answers that only one connection gets.

use super::conn::{Conn, ConnState};
use super::{ConnId, Shard};
use crate::wire::{ErrorCode, ErrorFrame};

/// How long a client has for the last words of its connection before this is closed anyway.
pub(super) const LAST_WORDS_MS: u64 = 1_000;

/// A refusal: what an ERROR frame says beside its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal<'a> {
    pub code: ErrorCode,
    pub limit: u64,
    pub field: &'a [u8],
    pub text: &'a str,
}

impl<'a> Refusal<'a> {
    pub fn new(code: ErrorCode, text: &'a str) -> Self {
        Self { code, limit: 0, field: b"", text }
    }

    /// A refusal of a publish of which the owner of the group told the code and the limit.
    pub fn told(code: ErrorCode, limit: u64) -> Self {
        let field: &[u8] = if code == ErrorCode::RateLimited { b"group" } else { b"" };
        Self::new(code, refusal_text(code)).limit(limit).field(field)
    }

    pub fn limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    pub fn field(self, field: &'a [u8]) -> Self {
        Self { field, ..self }
    }
}

/// The sentence for a refusal whose code alone came from another shard.
pub(super) fn refusal_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::TooManyGroups => {
            "the server holds as many groups as it may; leave unused groups or raise groups_max"
        }
        ErrorCode::TooManyMembers => {
            "the group has as many members as it may; raise members_per_group_max"
        }
        ErrorCode::StorageFull => {
            "the disk has no room for another log segment; the message was not accepted"
        }
        ErrorCode::StorageFailed => {
            "the log of this group's shard failed; restart the server, then publish again"
        }
        ErrorCode::Indeterminate => {
            "the log failed while the message was under way; after a restart look whether it is there"
        }
        ErrorCode::Draining => "the server is stopping; reconnect and publish again",
        ErrorCode::UnknownProducer => {
            "the group does not know this producer; number its messages from 1, or draw a new id"
        }
        ErrorCode::ProducerGap => {
            "an earlier message of this producer is missing; send from the number in limit on"
        }
        ErrorCode::ProducerSeqTooOld => {
            "the message is too old to tell whether it was taken; FETCH the history to find out"
        }
        ErrorCode::ProducerTaken => {
            "the producer id belongs to another member; draw a new one and open a new connection"
        }
        ErrorCode::TooManyProducers => {
            "the group has as many producers as it may; publish with a known one or raise the limit"
        }
        ErrorCode::ReceiptsRefused => {
            "receipts are off for this group or too many wait; the message was not accepted"
        }
        ErrorCode::RateLimited => {
            "more comes to the group in a second than it may take; try again after limit ms"
        }
        ErrorCode::PayloadTooLong => {
            "the payload is longer than this group takes; split it, or keep it elsewhere"
        }
        ErrorCode::TooManyShares => {
            "receipts of too many different shares wait; ask for a share that others ask for, or 100"
        }
        _ => "the request was refused",
    }
}

impl Shard {
    /// Lets `encode` append control frames for a connection, and has them written.
    pub(super) fn control(&mut self, id: ConnId, encode: impl FnOnce(&mut Vec<u8>)) {
        let spare = &mut self.spare_control;
        let Some(conn) = self.conns.get_mut(id.slot) else { return };
        // The last frame of a connection is the fatal one; nothing follows it.
        if conn.id != id || conn.state == ConnState::Closing {
            return;
        }
        if conn.control.capacity() == 0
            && let Some(buf) = spare.pop()
        {
            conn.control = buf;
        }
        encode(&mut conn.control);
        self.make_ready(id.slot);
    }

    /// Answers a request with an ERROR; a fatal one is the last frame of the connection.
    pub(super) fn refuse(&mut self, id: ConnId, request: u32, refusal: Refusal<'_>) {
        let Some(conn) = self.conn(id) else { return };
        if conn.is_in_tls_handshake() {
            return self.refuse_handshake(id);
        }
        if conn.state == ConnState::Upgrading {
            return self.refuse_begun_upgrade(id, refusal.code);
        }
        self.errors.add(refusal.code);
        let frame = ErrorFrame {
            request,
            code: refusal.code as u16,
            limit: refusal.limit,
            field: refusal.field,
            text: refusal.text.as_bytes(),
        };
        self.control(id, |out| frame.encode(out));
        if refusal.code.is_fatal() {
            self.close_after_control(id, refusal.code);
        }
    }

    /// Refuses with a fatal ERROR. The connection is looked at again soon, so that a client that
    /// does not read it goes too.
    pub(super) fn refuse_last(&mut self, id: ConnId, request: u32, refusal: Refusal<'_>) {
        self.refuse(id, request, refusal);
        self.wheel.arm(id, self.now.plus_ms(LAST_WORDS_MS));
    }

    /// Lets what waits in the control queue go out, then closes. The member is gone at once.
    pub(super) fn end_after_control(&mut self, id: ConnId) {
        self.leave_all(id);
        let Some(conn) = self.conn(id) else { return };
        if conn.state != ConnState::Closing {
            conn.state = ConnState::Closing;
            let partial = std::mem::take(&mut conn.partial);
            self.figures.partial_bytes -= partial.len() as u64;
        }
        self.make_ready(id.slot);
    }

    /// Whether a connection must not be read for now.
    pub(super) fn must_pause(&self, conn: &Conn) -> bool {
        conn.throttled != 0
            || conn.control.len() > self.config.control_bytes_max as usize
            || conn.tls.as_ref().is_some_and(|tls| tls.waits_with_much())
    }
}
