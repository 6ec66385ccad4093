//! How a thread connects its members and publishers, in bounded batches or at a rate.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use fanfare::position::Nanos;
use socket2::SockRef;

use crate::args::Workload;
use crate::clock::{SECOND, now_ns};
use crate::connect;
use crate::encoding::Messages;
use crate::error::LoadError;
use crate::member::{Link, Member, Role};
use crate::plan::Plan;
use crate::shared::Phase;
use crate::slow::RECV_BUFFER_BYTES;
use crate::target::Target;
use crate::target::peer::{Peer, Who};
use crate::tls::Tls;
use crate::worker::{SLEEP_MAX_NS, Worker};

/// Connections of one thread that have not joined yet.
const JOINING_MAX: usize = 128;
/// Joining gives up when nothing came for this long.
const JOIN_TIMEOUT_S: u64 = 15;
impl Worker<'_> {
    /// Joins all members of this thread.
    pub(crate) fn join(&mut self) -> Result<(), LoadError> {
        let mine = self.connections();
        let (rate, at_once) = match self.workload {
            Workload::Connect(c) if c.storm => (None, usize::MAX),
            Workload::Connect(c) => (c.options.rate, JOINING_MAX),
            _ => (None, JOINING_MAX),
        };
        let start = now_ns();
        let (mut opened, mut joined, mut progress) = (0, 0, start);
        while self.session.joined < mine.len() {
            if self.shared.phase() == Phase::Stop {
                return Err(LoadError::Interrupted);
            }
            let now = now_ns();
            let due = |nth: u32| {
                rate.map_or(now, |r| start + (f64::from(nth) * SECOND as f64 / r) as u64)
            };
            while let Some((role, number, nth)) = mine.get(opened).copied()
                && due(nth) <= now
                && (rate.is_some() || opened - self.session.joined < at_once)
            {
                self.open(role, number, nth, rate.map(|_| due(nth)))?;
                opened += 1;
                if rate.is_none() && opened % JOINING_MAX == 0 {
                    break;
                }
            }
            let next = mine.get(opened).filter(|_| rate.is_some()).map(|c| due(c.2));
            self.wait(next.map_or(SLEEP_MAX_NS, |at| at.saturating_sub(now)))?;
            // A handshake has more than one turn.
            self.session.send(now_ns(), &mut self.members, &mut self.ring);
            if let Some(refused) = self.session.refused.take() {
                return Err(refused);
            }
            if self.session.joined > joined {
                self.shared
                    .joined
                    .fetch_add((self.session.joined - joined) as u64, Ordering::Relaxed);
                (joined, progress) = (self.session.joined, now);
            }
            if opened == mine.len() && now > progress + JOIN_TIMEOUT_S * SECOND {
                return Err(LoadError::JoinTimeout {
                    joined,
                    wanted: mine.len(),
                    seconds: JOIN_TIMEOUT_S,
                    addr: self.shared.addr,
                });
            }
        }
        self.total.merge(&self.session.histograms);
        Ok(())
    }

    /// The connections of this thread: role, number, and number among all connections.
    fn connections(&self) -> Vec<(Role, u32, u32)> {
        let plan = self.plan;
        let readers = (0..plan.members).map(|m| (Role::Reader, m, m));
        let stalled = (plan.members..plan.members + plan.stalled).map(|m| (Role::Stalled, m, m));
        let mine = |c: &(Role, u32, u32)| c.2 as usize % self.shared.threads == self.index;
        let mut all: Vec<_> = readers.chain(stalled).filter(mine).collect();
        if self.index == 0 {
            let after = plan.members + plan.stalled;
            all.extend((0..plan.publishers).map(|p| (Role::Publisher, p, after + p)));
        }
        all
    }

    fn open(
        &mut self,
        role: Role,
        number: u32,
        nth: u32,
        due: Option<u64>,
    ) -> Result<(), LoadError> {
        let groups = match role {
            Role::Publisher => Vec::new(),
            Role::Reader | Role::Stalled => self.plan.groups_of(number),
        };
        let mut link = self.link(Who { role, number }, &groups)?;
        let started = now_ns();
        let socket = match self.plan.sources.get(nth as usize) {
            Some(source) => connect::connect_from(self.shared.addr, *source)?,
            None => connect::connect(self.shared.addr, nth)?,
        };
        let silent = role == Role::Stalled;
        if silent && self.slow.read() {
            let _ = SockRef::from(&socket).set_recv_buffer_size(RECV_BUFFER_BYTES);
        }
        let attached =
            if silent { self.ring.attach_silent(socket) } else { self.ring.attach(socket) };
        let slot = attached.map_err(LoadError::Ring)?;
        if silent {
            self.ring.recv_once(slot, self.options.recv_buffer_bytes);
        }
        let now = Nanos(now_ns());
        if let Some(core) = link.core() {
            core.connected(now);
        }
        link.advance(now);
        let mut member = Member::new(role, number, slot, groups.len(), link);
        let encodings = &self.plan.encodings;
        let encoding = encodings[number as usize % encodings.len()];
        member.messages = Messages::new(encoding, &self.shared.addr.to_string()).map(Box::new);
        if encoding.is_tls() {
            let tls = self.plan.tls.as_ref().map(Tls::begin).transpose()?;
            member.tls = tls.map(Box::new);
        }
        self.ring.send(slot, Bytes::from(member.take_output()));
        member.started = started;
        member.intended = due.unwrap_or(started);
        self.members[slot as usize] = Some(Box::new(member));
        if role == Role::Publisher {
            self.publisher_slots.push(slot);
        }
        if role == Role::Reader && self.plan.target != Target::Fanfare {
            for group in &groups {
                let index = self.session.stream(&mut self.verifier, *group, 0, 0);
                self.verifier.streams[index as usize].readers.push(slot);
            }
        }
        Ok(())
    }

    /// The protocol of a connection, with what it says first.
    fn link(&mut self, who: Who, groups: &[u32]) -> Result<Link, LoadError> {
        if self.plan.target == Target::Fanfare {
            let core = connect::client(self.plan, who.role, who.number, groups)?;
            return Ok(Link::Fanfare(core));
        }
        let stream = |group: &u32| (*group, self.session.stream(&mut self.verifier, *group, 0, 0));
        let places: Vec<_> = groups.iter().map(stream).collect();
        let host = self.shared.addr.to_string();
        Ok(Link::Peer(Peer::new(self.plan, &host, who, &places)))
    }
}

/// Slots that the ring of one thread needs.
pub fn slots_of_thread(plan: &Plan, threads: usize) -> u32 {
    (plan.members + plan.stalled).div_ceil(threads as u32) + plan.publishers + 2
}
