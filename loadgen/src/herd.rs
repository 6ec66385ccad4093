//! A herd: all members of a thread drop at once, come back at once, and want what they missed.
//!
//! A member that comes back joins from the message after its last one, so that its bytes go on
//! where they ended and are verified like those of the others. Nothing that an absent member
//! still needs is forgotten meanwhile.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fanfare::client::JoinedGroup;
use fanfare::position::Nanos;

use crate::args::{HerdOptions, Workload};
use crate::clock::now_ns;
use crate::connect;
use crate::error::LoadError;
use crate::member::{Member, Role, Verifier};
use crate::session::Session;
use crate::violation::Kind;
use crate::worker::Worker;

/// Connects in one round, so that those who are back are read in between.
const CONNECTS_PER_ROUND: usize = 64;

/// Where the herd of a thread is.
#[derive(Default)]
pub struct Herd {
    stage: Stage,
    /// Members that are gone.
    pub away: Vec<Member>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// It has not dropped.
    #[default]
    There,
    /// Its connections are closed, so many of them not yet.
    Dropped { from: u64 },
    /// It comes back.
    Returning { from: u64 },
}

/// A member on its way back.
pub struct Return {
    /// When it may come back, and when it connected.
    from: u64,
    started: u64,
    /// Groups it has not joined again.
    missing: usize,
    /// Head of each group that it has, by place: caught up is who has that.
    heads: Vec<u64>,
}

impl Herd {
    /// Whether members are away, or were: what they may miss is kept.
    pub fn is_out(&self) -> bool {
        self.stage != Stage::There
    }

    /// When its members may come back, if they are away.
    pub fn next_due(&self) -> Option<u64> {
        match self.stage {
            Stage::Dropped { from } => Some(from),
            _ => None,
        }
    }

    /// Whether the end of this member's connection is the drop.
    pub fn drops(&self, member: &Member) -> bool {
        matches!(self.stage, Stage::Dropped { .. }) && member.role == Role::Reader
    }
}

impl Worker<'_> {
    /// Does what is due at `now`. Returns whether there is more at once.
    pub(crate) fn herd(&mut self, now: u64) -> Result<bool, LoadError> {
        let Workload::Herd(o) = self.workload else { return Ok(false) };
        match self.herd.stage {
            Stage::There if self.is_time_to_drop(o, now) => self.drop_all(o, now),
            Stage::Dropped { from } if now >= from && self.all_are_away() => {
                self.herd.stage = Stage::Returning { from };
                return Ok(true);
            }
            Stage::Returning { from } => {
                for _ in 0..CONNECTS_PER_ROUND {
                    let Some(member) = self.herd.away.pop() else { return Ok(false) };
                    self.bring_back(member, from)?;
                }
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    fn is_time_to_drop(&self, o: &HerdOptions, now: u64) -> bool {
        let from = self.shared.schedule().1.from;
        from > 0 && now >= from + o.drop_after.as_nanos() as u64
    }

    fn drop_all(&mut self, o: &HerdOptions, now: u64) {
        let readers = self.members.iter().flatten().filter(|m| m.role == Role::Reader);
        for member in readers {
            self.ring.close(member.slot);
        }
        for stream in &mut self.verifier.streams {
            stream.readers.clear();
        }
        self.shared.herd.dropped.fetch_max(now, Ordering::AcqRel);
        self.herd.stage =
            Stage::Dropped { from: now + o.away.max(Duration::ZERO).as_nanos() as u64 };
    }

    fn all_are_away(&self) -> bool {
        !self.members.iter().flatten().any(|m| m.role == Role::Reader)
    }

    fn bring_back(&mut self, mut member: Member, from: u64) -> Result<(), LoadError> {
        let plan = self.plan;
        let places: Vec<(u32, u64)> = member
            .groups
            .iter()
            .map(|g| (self.verifier.streams[g.stream as usize].group, g.cursor.seq))
            .collect();
        let mut core = connect::returning(plan, member.number, &places)?;
        let started = now_ns();
        let socket = connect::connect(self.shared.addr, member.number)?;
        let slot = self.ring.attach(socket).map_err(LoadError::Ring)?;
        let now = Nanos(now_ns());
        core.connected(now);
        core.advance(now);
        self.ring.send(slot, Bytes::from(core.take_output()));
        let heads = vec![u64::MAX; member.groups.len()];
        member.back = Some(Box::new(Return { from, started, missing: heads.len(), heads }));
        member.returned(slot, core);
        for group in &member.groups {
            self.verifier.streams[group.stream as usize].readers.push(slot);
        }
        self.members[slot as usize] = Some(Box::new(member));
        Ok(())
    }
}

impl Session<'_> {
    /// A member that comes back is in one more of its groups.
    pub(crate) fn joined_again(
        &mut self,
        member: &mut Member,
        cx: &mut Verifier<'_>,
        j: &JoinedGroup,
    ) {
        let name = member.name();
        let place = member.groups.iter().position(|g| g.handle == j.handle.0);
        let (Some(place), Some(back)) = (place, &mut member.back) else {
            cx.violations.add(Kind::WrongAnswer, 1, || {
                format!("{name} came back and joined group {} without asking", j.handle)
            });
            return;
        };
        back.heads[place] = j.head.0;
        back.missing -= 1;
        if back.missing == 0 {
            member.ready = true;
            self.herd_histograms.back.record(back.started, back.from, self.now, 1);
            self.herd_back += 1;
        }
    }

    /// Looks whether a member that comes back has what it missed.
    pub(crate) fn look_whether_caught_up(&mut self, member: &mut Member) {
        let Some(back) = &member.back else { return };
        let mut places = member.groups.iter().zip(&back.heads);
        if back.missing > 0 || !places.all(|(group, head)| group.cursor.seq > *head) {
            return;
        }
        self.herd_histograms.caught_up.record(back.started, back.from, self.now, 1);
        self.herd_caught_up += 1;
        member.back = None;
    }
}
