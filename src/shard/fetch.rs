//! FETCH: a page of a group's history, from the tail if it is there, else from the log.

use super::Shard;
use super::catch_up::{For, Read};
use super::inbox::Origin;
use crate::fanout::Tail;
use crate::position::{Epoch, Handle, Seq};
use crate::wire::{self, FETCHED_FIXED, Fetched, GapReason};

/// A page of a group that does not exist.
const NOTHING: Fetched<'_> = Fetched {
    request: 0,
    epoch: Epoch(0),
    handle: Handle(0),
    first: Seq(0),
    last: Seq(0),
    head: Seq(0),
    gap: None,
    more: false,
    frames: &[],
};

/// What a page may hold.
#[derive(Clone, Copy, Debug)]
pub struct PageLimits {
    /// Last message.
    pub to: Seq,
    /// Most messages.
    pub count: u64,
    /// Most bytes, but always one message.
    pub bytes: usize,
}

/// A FETCH whose page is read from the log.
#[derive(Clone, Debug)]
pub struct FetchRead {
    origin: Origin,
    limits: PageLimits,
    head: Seq,
}

#[cfg(test)]
impl FetchRead {
    pub(super) fn for_test() -> Box<Self> {
        use crate::position::ShardId;
        use crate::shard::ConnId;
        let conn = ConnId { slot: 0, generation: 0 };
        let origin = Origin { shard: ShardId(0), conn, request: 1 };
        let limits = PageLimits { to: Seq(1), count: 1, bytes: 1 };
        Box::new(Self { origin, limits, head: Seq(1) })
    }
}

/// A page that is being filled with frames.
#[derive(Debug, Default)]
struct Page {
    frames: Vec<u8>,
    first: Seq,
    last: Seq,
    count: u64,
}

impl Page {
    /// Takes frames from the start of `bytes`, whose first message is `seq`, leaving out those
    /// before `from`. Returns false once the page is full.
    fn take(&mut self, bytes: &[u8], mut seq: Seq, from: Seq, limits: PageLimits) -> bool {
        let mut rest = bytes;
        while let Ok(Some((_, len))) = wire::split(rest, rest.len()) {
            if seq >= from {
                let full = self.count >= limits.count
                    || (self.count > 0 && self.frames.len() + len > limits.bytes);
                if full || seq > limits.to {
                    return false;
                }
                self.frames.extend_from_slice(&rest[..len]);
                self.first = if self.count == 0 { seq } else { self.first };
                self.last = seq;
                self.count += 1;
            }
            seq = seq.next();
            rest = &rest[len..];
        }
        true
    }

    /// Fills the page from a tail that holds message `from`, if it does.
    fn from_tail(tail: &Tail, from: Seq, limits: PageLimits) -> Option<Self> {
        let mut page = Self::default();
        for ordinal in tail.ordinal_with(from)?..tail.end() {
            let segment = tail.get(ordinal)?;
            if !page.take(segment.bytes(), segment.first(), from, limits) {
                break;
            }
        }
        Some(page)
    }
}

impl Shard {
    /// Answers a FETCH, or begins to read for it. Only messages that are on disk are shown.
    pub(super) fn fetch(
        &mut self,
        origin: Origin,
        name: &[u8],
        from: Seq,
        to: Option<Seq>,
        count_max: u32,
        bytes_max: u32,
    ) -> usize {
        let nothing = Fetched { request: origin.request, ..NOTHING };
        let frame_max = self.config.frame_max();
        let Some(&key) = self.by_name.get(name) else { return self.send_page(origin, &nothing) };
        let group = &mut self.groups[key as usize];
        let (handle, epoch, published) = (group.handle, group.epoch, group.published);
        let Some(sequencer) = group.sequencer() else { return self.send_page(origin, &nothing) };
        let head = sequencer.synced.min(published);
        let first_kept = sequencer.first_kept;
        let to = to.map_or(head, |to| to.min(head));
        // The length field does not count itself.
        let room = frame_max + 4 - FETCHED_FIXED;
        let limits = PageLimits {
            to,
            count: if count_max == 0 { u64::MAX } else { u64::from(count_max) },
            bytes: if bytes_max == 0 { room } else { room.min(bytes_max as usize) },
        };
        if from > to {
            return self.send_page(origin, &Fetched { epoch, handle, head, ..nothing });
        }
        if to < first_kept {
            let gap = Some((from, to, GapReason::Retention));
            return self.send_page(origin, &Fetched { epoch, handle, head, gap, ..nothing });
        }
        if from >= first_kept
            && let Some(page) = Page::from_tail(&group.tail, from, limits)
        {
            let (first, last, more) = (page.first, page.last, page.last < to);
            let frames = &page.frames[..];
            let page = Fetched { epoch, handle, head, first, last, more, frames, ..nothing };
            return self.send_page(origin, &page);
        }
        let who = For::Fetch(Box::new(FetchRead { origin, limits, head }));
        self.reads.ask(who, handle, from);
        0
    }

    /// The group of a FETCH was deleted while it waited.
    pub(super) fn fetched_nothing(&mut self, handle: Handle, fetch: &FetchRead) {
        let page = Fetched { request: fetch.origin.request, handle, ..NOTHING };
        self.send_page(fetch.origin, &page);
    }

    /// What the log has for a FETCH is here: `found` are frames from `read.from` on.
    pub(super) fn fetched(
        &mut self,
        read: &Read,
        fetch: &FetchRead,
        found: Option<crate::wal::Collected>,
    ) {
        let FetchRead { origin, limits, head } = fetch;
        let to = limits.to;
        let live_epoch =
            self.by_handle.get(&read.handle).map(|&key| self.groups[key as usize].epoch);
        let mut page = Page::default();
        let mut epoch = live_epoch.unwrap_or_default();
        if let Some(found) = &found {
            page.take(&found.frames, found.first, found.first, *limits);
            if page.count > 0 {
                epoch = found.epoch;
            }
        }
        let gap = read.gap.map(|(from, gap_to, reason)| (from, gap_to.min(to), reason));
        let last = page.last.max(gap.map_or(Seq(0), |(_, gap_to, _)| gap_to));
        let answer = Fetched {
            request: origin.request,
            epoch,
            handle: read.handle,
            first: page.first,
            last: page.last,
            head: *head,
            gap,
            more: last.0 > 0 && last < to,
            frames: &page.frames,
        };
        self.pace.spend(page.frames.len());
        self.send_page(*origin, &answer);
    }

    fn send_page(&mut self, origin: Origin, page: &Fetched<'_>) -> usize {
        let mut frames = Vec::with_capacity(FETCHED_FIXED + page.frames.len());
        page.encode(&mut frames);
        let len = frames.len();
        self.figures.fetches += 1;
        self.answered(origin, frames, None);
        len
    }
}
