//! What a test client does as a durable member.

use fanfare::position::{Level, Seq};
use fanfare::wire::{ClientFrame, Join, JoinEntry, Mode, Publish, Receipt, Start};

use super::client::{Client, Follower, Got, JoinedGroup};

impl Client {
    pub fn send_join_durable(&mut self, group: &str, start: Start) -> u32 {
        let request = self.request();
        let (mode, group) = (Mode::Durable, group.as_bytes());
        let mut out = Vec::new();
        Join::encode(&mut out, request, &[JoinEntry { group, mode, start, roster: false }]);
        self.send(&out);
        request
    }

    /// Joins as a durable member that goes on where it is.
    pub fn join_durable(&mut self, group: &str) -> JoinedGroup {
        self.join_durable_at(group, Start::Cursor)
    }

    pub fn join_durable_at(&mut self, group: &str, start: Start) -> JoinedGroup {
        let request = self.send_join_durable(group, start);
        self.joined(request, group)
    }

    /// Leaves and waits for LEFT.
    pub fn leave(&mut self, group: &str) {
        let request = self.send_leave(group);
        self.expect("LEFT", |got| {
            matches!(got, Got::Left { request: of, .. } if *of == request).then_some(())
        });
    }

    /// Acknowledges all that a follower has.
    pub fn ack_all(&mut self, follower: &Follower) {
        self.ack(follower.handle, follower.epoch.unwrap(), follower.last);
    }

    /// Publishes with a receipt asked for. Returns the place of the message.
    pub fn publish_with_receipt(&mut self, group: &str, percent: u8, payload: &[u8]) -> Seq {
        let request = self.send_publish_with_receipt(group, percent, payload);
        self.published(request).seq
    }

    pub fn send_publish_with_receipt(&mut self, group: &str, percent: u8, payload: &[u8]) -> u32 {
        let (request, bytes) = self.publish_frame(group, None, payload);
        // The byte after `level` and `name_len`.
        let mut bytes = bytes;
        bytes[8 + 6] = percent;
        self.send(&bytes);
        request
    }

    pub fn receipt(&mut self) -> Receipt {
        self.expect("RECEIPT", |got| match got {
            Got::Receipt(receipt) => Some(*receipt),
            _ => None,
        })
    }

    /// Says that everything before a PROBE was read.
    pub fn probed(&mut self, token: u64) {
        let mut out = Vec::new();
        ClientFrame::encode_probed(&mut out, token);
        self.send(&out);
    }
}

impl Follower {
    /// Of everything from what JOINED calls the first message on.
    pub fn first(joined: JoinedGroup) -> Self {
        Self::from(joined, joined.first.0)
    }
}
