//! PROBE: proof that a client has read everything up to a place in its stream. A connection has
//! one at most on its way; who needs proof of something later waits for the next one.

use std::collections::VecDeque;

use super::receipts::Sent;
use super::{ConnId, Shard};
use crate::position::Nanos;
use crate::wire::ServerFrame;

/// What a connection keeps beside when it has durable members or receipts.
#[derive(Debug, Default)]
pub struct Watch {
    /// Token of the last PROBE sent.
    sent: u64,
    /// Token of the last one answered.
    answered: u64,
    /// Something that was sent after the last PROBE needs proof.
    wanted: bool,
    /// When the wheel has the acknowledgements of this connection looked at.
    pub armed_at: Option<Nanos>,
    /// Receipts that it was sent and has not proved to have read.
    pub receipts: VecDeque<Sent>,
    /// Bytes of the writes since the watch began, the one in flight included.
    pub handed: u64,
    /// The same without the last write.
    handed_before: u64,
    /// The kernel was asked what it still holds; this much had been written then.
    pub asked_at: Option<u64>,
}

impl Watch {
    /// A write of so many bytes is started.
    pub fn hand(&mut self, bytes: u64) {
        self.handed_before = self.handed;
        self.handed += bytes;
    }

    /// Bytes of the writes that have ended.
    pub fn written(&self, in_flight: bool) -> u64 {
        if in_flight { self.handed_before } else { self.handed }
    }
}

impl Shard {
    /// What a connection keeps beside.
    pub(super) fn watch(&mut self, id: ConnId) -> Option<&mut Watch> {
        Some(self.conn(id)?.watch.get_or_insert_default())
    }

    /// Asks for proof that the client has read all that was written up to now. Returns the
    /// token whose answer is that.
    pub(super) fn prove(&mut self, id: ConnId) -> u64 {
        let Some(watch) = self.watch(id) else { return 0 };
        if watch.sent > watch.answered {
            watch.wanted = true;
            return watch.sent + 1;
        }
        self.send_probe(id)
    }

    fn send_probe(&mut self, id: ConnId) -> u64 {
        let Some(watch) = self.watch(id) else { return 0 };
        watch.sent += 1;
        watch.wanted = false;
        let token = watch.sent;
        self.control(id, |out| ServerFrame::encode_probe(out, token));
        token
    }

    /// The client answered a PROBE. One that was not asked for says nothing.
    pub(super) fn probed(&mut self, id: ConnId, token: u64) {
        let Some(watch) = self.conn(id).and_then(|conn| conn.watch.as_deref_mut()) else { return };
        if token <= watch.answered || token > watch.sent {
            return;
        }
        watch.answered = token;
        let wanted = watch.wanted;
        self.receipts_are_read(id, token);
        self.redeliver_if_proved(id, token);
        if wanted && self.conn(id).is_some() {
            self.send_probe(id);
        }
    }
}
