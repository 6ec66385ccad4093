//! A run: consecutive messages of one group in a commit, or records of one, with its entry
//! in the directory.

use bytes::BufMut;

use super::bytes_at::{u32_at, u64_at};
use super::record::{Record, records};
use crate::limits::GROUP_NAME_MAX;
use crate::position::{Epoch, Handle, Level, ProducerId, Seq};

/// Bytes of a [`Meta`] in the log.
pub const META_BYTES: usize = 32;

const ENTRY_FIXED: usize = 40;
const FLAG_MEMORY: u32 = 1;

/// What the log keeps of a message beside its DELIVER frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Who published it.
    pub producer: ProducerId,
    /// The producer's own number of it in this group.
    pub producer_seq: u64,
    /// The level it was published with.
    pub level: Level,
    /// Share of the members for which the publisher wants a receipt, 1 to 100; 0 for none.
    pub receipt: u8,
}

impl Meta {
    /// Appends [`META_BYTES`] bytes to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.producer);
        out.put_u64_le(self.producer_seq);
        out.put_u8(self.level as u8);
        out.put_u8(self.receipt);
        out.put_slice(&[0; 6]);
    }

    /// Decodes the first [`META_BYTES`] bytes; `None` if they are too few or name no level.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (producer, rest) = bytes.split_first_chunk::<16>()?;
        let (producer_seq, rest) = rest.split_first_chunk::<8>()?;
        let (tail, _) = rest.split_first_chunk::<8>()?;
        let level = match tail[0] {
            1 => Level::Durable,
            2 => Level::Memory,
            _ => return None,
        };
        let producer_seq = u64::from_le_bytes(*producer_seq);
        Some(Self { producer: *producer, producer_seq, level, receipt: tail[1] })
    }
}

/// What a run consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Messages.
    Messages,
    /// Records.
    Records,
    /// Something that this build does not know, and steps over.
    Other(u8),
}

impl RunKind {
    fn code(self) -> u8 {
        match self {
            Self::Messages => 0,
            Self::Records => 1,
            Self::Other(code) => code,
        }
    }

    fn of(code: u8) -> Self {
        match code {
            0 => Self::Messages,
            1 => Self::Records,
            code => Self::Other(code),
        }
    }
}

/// Consecutive messages of one group in one commit, or records of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// What it consists of.
    pub kind: RunKind,
    /// The group.
    pub handle: Handle,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its name, so that any run alone says which group it is.
    pub group: &'a [u8],
    /// Sequence number of the first message; 0 if it has none.
    pub first: Seq,
    /// Number of messages or records, at least 1.
    pub count: u32,
    /// Whether a message of level `memory` is among them.
    pub has_memory: bool,
    /// One encoded [`Meta`] per message; empty for records.
    pub metas: &'a [u8],
    /// One whole encoded DELIVER frame per message, exactly as sent to members; or the
    /// encoded records.
    pub frames: &'a [u8],
}

impl<'a> Run<'a> {
    /// A run of `count` encoded `records`.
    #[must_use]
    pub fn of_records(
        handle: Handle,
        epoch: Epoch,
        group: &'a [u8],
        count: u32,
        records: &'a [u8],
    ) -> Self {
        let (kind, metas) = (RunKind::Records, &[][..]);
        let (first, has_memory) = (Seq(0), false);
        Self { kind, handle, epoch, group, first, count, has_memory, metas, frames: records }
    }

    /// Whether it consists of messages.
    #[must_use]
    pub fn has_messages(&self) -> bool {
        self.kind == RunKind::Messages
    }

    /// Sequence number of the last message; 0 if it has none.
    #[must_use]
    pub fn last(&self) -> Seq {
        match self.kind {
            RunKind::Messages => Seq(self.first.0 + u64::from(self.count) - 1),
            RunKind::Records | RunKind::Other(_) => Seq(0),
        }
    }

    /// The records, in order; fewer than [`Run::count`] if one is malformed.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let bytes = if self.kind == RunKind::Records { self.frames } else { &[] };
        records(bytes).take(self.count as usize)
    }

    /// The metas, in order.
    pub fn metas(&self) -> impl Iterator<Item = Meta> + use<'a> {
        self.metas.chunks_exact(META_BYTES).map_while(Meta::decode)
    }

    pub(super) fn entry_len(&self) -> usize {
        entry_len(self.group.len())
    }
}

fn entry_len(name_len: usize) -> usize {
    (ENTRY_FIXED + name_len).next_multiple_of(8)
}

/// Writes the directory entry and the data of `run`; both slices advance. Returns the length
/// of the data.
pub(super) fn encode_run(
    run: &Run<'_>,
    data_at: usize,
    dir: &mut &mut [u8],
    data: &mut &mut [u8],
) -> usize {
    assert!((1..=GROUP_NAME_MAX).contains(&run.group.len()), "group name is within its limit");
    let metas = if run.has_messages() { run.count as usize * META_BYTES } else { 0 };
    assert!(run.metas.len() == metas, "one meta per message");
    assert!(run.count > 0, "a run is not empty");
    assert!(run.has_messages() == (run.first.0 > 0), "messages are numbered from 1");
    dir.put_u64_le(run.handle.0);
    dir.put_u32_le(run.epoch.0);
    dir.put_u32_le(if run.has_memory { FLAG_MEMORY } else { 0 });
    dir.put_u64_le(run.first.0);
    dir.put_u32_le(run.count);
    dir.put_u32_le(run.frames.len() as u32);
    dir.put_u32_le(data_at as u32);
    dir.put_u8(run.group.len() as u8);
    dir.put_u8(run.kind.code());
    dir.put_slice(&[0; 2]);
    dir.put_slice(run.group);
    dir.put_bytes(0, run.entry_len() - ENTRY_FIXED - run.group.len());
    data.put_slice(run.metas);
    data.put_slice(run.frames);
    run.metas.len() + run.frames.len()
}

/// Where the data of the run with this entry starts in the body.
pub(super) fn data_at(entry: &[u8]) -> Option<usize> {
    (entry.len() >= ENTRY_FIXED).then(|| u32_at(entry, 32) as usize)
}

/// Takes the first entry off `dir`; `None` if it or its data break their bounds.
pub(super) fn take_run<'a>(dir: &mut &'a [u8], body: &'a [u8]) -> Option<Run<'a>> {
    let entry = *dir;
    let data = body.get(data_at(entry)?..)?;
    let name_len = usize::from(entry[36]);
    let group = entry.get(ENTRY_FIXED..ENTRY_FIXED + name_len)?;
    let rest = entry.get(entry_len(name_len)..)?;
    let (kind, first, count) = (RunKind::of(entry[37]), u64_at(entry, 16), u32_at(entry, 24));
    let numbered = match kind {
        RunKind::Messages => first > 0 && first.checked_add(u64::from(count)).is_some(),
        RunKind::Records => first == 0,
        RunKind::Other(_) => true,
    };
    if !(1..=GROUP_NAME_MAX).contains(&name_len) || count == 0 || !numbered {
        return None;
    }
    let metas = if kind == RunKind::Messages { count as usize } else { 0 };
    let (metas, data) = data.split_at_checked(metas.checked_mul(META_BYTES)?)?;
    let frames = data.get(..u32_at(entry, 28) as usize)?;
    *dir = rest;
    Some(Run {
        kind,
        handle: Handle(u64_at(entry, 0)),
        epoch: Epoch(u32_at(entry, 8)),
        group,
        first: Seq(first),
        count,
        has_memory: u32_at(entry, 12) & FLAG_MEMORY != 0,
        metas,
        frames,
    })
}
