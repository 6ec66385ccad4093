//! What an application may ask of a client.

use std::sync::Arc;

use super::core::Core;
use super::error::ClientError;
use super::event::{Event, Message, PublishId, QueryId, Reason};
use super::group::Phase;
use super::options::{Membership, Publishing, check_payload};
use super::session::{Conn, Request};
use crate::limits::STATE_KEY_MAX;
use crate::position::{Epoch, Nanos, Seq};
use crate::wire::{Expected, Fetch, Mode, RosterQuery, SetState, SyncState, kind};

impl Core {
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

    /// Acknowledges a message and all before it, for [`super::AckMode::Explicit`].
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
        let request = self.session.requests.add(Request::Query { group, id, kind, sent: false });
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
