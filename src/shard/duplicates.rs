//! Stage 3, for publishes that get no new place: those that have one already, and those that
//! must not be taken.

use super::Shard;
use super::commit::Reply;
use super::inbox::Header;
use crate::config::ShardConfig;
use crate::group::{Group, ProducerLimits, Unacceptable, Verdict};
use crate::position::{Epoch, Handle, Level, Seq};
use crate::wire::{ErrorCode, Published};

impl ShardConfig {
    /// Bounds of what is remembered of the producers of a group.
    pub(super) fn producer_limits(&self) -> ProducerLimits {
        ProducerLimits {
            window: self.publish_window as usize,
            producers_max: self.producers_per_group_max as usize,
            ttl_ms: self.producer_ttl_ms,
        }
    }
}

impl Header {
    /// The answer that says which place the publish has.
    pub(super) fn reply(&self, handle: Handle, (seq, epoch): (Seq, Epoch), level: Level) -> Reply {
        let request = self.origin.request;
        let producer_seq = self.producer_seq;
        let published = Published { request, epoch, handle, producer_seq, seq, level };
        Reply { origin: self.origin, published }
    }
}

impl Shard {
    /// Answers a publish that is not to be sequenced.
    pub(super) fn not_fresh(&mut self, header: &Header, verdict: Verdict) {
        let (code, limit) = match verdict {
            Verdict::Duplicate { seq, epoch } => match self.answer_again(header, (seq, epoch)) {
                Ok(()) => return,
                Err(refusal) => refusal,
            },
            // It has no place, and gets none any more.
            Verdict::Fresh(_)
            | Verdict::Refused(Unacceptable::Gap { .. } | Unacceptable::Unknown)
                if header.late =>
            {
                (ErrorCode::Draining, 0)
            }
            // What was expected next is not known any more; a restart tells.
            Verdict::Refused(Unacceptable::Gap { .. }) if self.log.is_poisoned() => {
                (ErrorCode::StorageFailed, 0)
            }
            Verdict::Refused(why) => refusal_of(why),
            // It could be taken, but not by this log.
            Verdict::Fresh(_) => match self.may_publish() {
                Ok(()) => return,
                Err(refusal) => refusal,
            },
        };
        self.refuse_publish(header.origin, code, limit);
        self.forget_unused(header.group as u32);
    }

    /// Answers a publish that has its place already, as soon as it may be known that it has,
    /// and not before earlier publishes to the group are answered.
    fn answer_again(
        &mut self,
        header: &Header,
        place: (Seq, Epoch),
    ) -> Result<(), (ErrorCode, u64)> {
        let (seq, _) = place;
        let poisoned = self.log.is_poisoned();
        let Some(group) = self.groups.get_mut(header.group) else { return Ok(()) };
        let handle = group.handle;
        let Some(sequencer) = group.sequencer() else { return Ok(()) };
        let waiting = sequencer.has_waiting() && !poisoned;
        let on_disk = seq <= sequencer.synced;
        let staged = sequencer.sequenced > sequencer.handed;
        self.figures.duplicates += 1;
        if on_disk && !waiting {
            let reply = header.reply(handle, place, Level::Durable);
            self.filling.early_replies.push(reply);
        } else if poisoned {
            return Err((ErrorCode::StorageFailed, 0));
        } else if header.level == Level::Memory && !waiting {
            // Nothing before it waits, so it was shown when it got its place.
            let reply = header.reply(handle, place, Level::Memory);
            self.filling.early_replies.push(reply);
        } else if !self.can_sequence(header.priority) {
            // The disk is full, and so is what waits for it.
            return Err((ErrorCode::StorageFull, 0));
        } else {
            let reply = header.reply(handle, place, Level::Durable);
            self.filling.add(header.priority, size_of::<Reply>());
            match &mut self.in_flight {
                Some(commit) if !staged => commit.replies.push(reply),
                _ => self.filling.replies.push(reply),
            }
        }
        Ok(())
    }

    /// What may be said of a publish whose commit failed: nobody may learn of what was in
    /// flight, since whether it is on disk is known only to recovery; what was not handed to
    /// the disk is refused for certain.
    pub(super) fn answer_after_failure(&mut self, reply: Reply) {
        let Published { seq, handle, .. } = reply.published;
        let group = self.by_handle.get(&handle).and_then(|key| self.groups.get_mut(*key as usize));
        let code = match group.and_then(Group::sequencer) {
            Some(sequencer) if seq <= sequencer.synced => return self.reply(reply),
            Some(sequencer) if seq > sequencer.handed => ErrorCode::StorageFailed,
            _ => ErrorCode::Indeterminate,
        };
        self.refuse_publish(reply.origin, code, 0);
    }
}

fn refusal_of(why: Unacceptable) -> (ErrorCode, u64) {
    match why {
        Unacceptable::Unknown => (ErrorCode::UnknownProducer, 1),
        Unacceptable::Gap { expected } => (ErrorCode::ProducerGap, expected),
        Unacceptable::TooOld { oldest } => (ErrorCode::ProducerSeqTooOld, oldest),
        Unacceptable::Taken => (ErrorCode::ProducerTaken, 0),
        Unacceptable::TooMany { producers_max } => {
            (ErrorCode::TooManyProducers, producers_max as u64)
        }
    }
}
