//! A run: consecutive messages of one group in a commit, with its entry in the directory.

use bytes::BufMut;

use super::bytes_at::{u32_at, u64_at};
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
}

impl Meta {
    /// Appends [`META_BYTES`] bytes to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.producer);
        out.put_u64_le(self.producer_seq);
        out.put_u8(self.level as u8);
        out.put_slice(&[0; 7]);
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
        Some(Self { producer: *producer, producer_seq: u64::from_le_bytes(*producer_seq), level })
    }
}

/// Consecutive messages of one group in one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// The group.
    pub handle: Handle,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its name, so that any run alone says which group it is.
    pub group: &'a [u8],
    /// Sequence number of the first message.
    pub first: Seq,
    /// Number of messages, at least 1.
    pub count: u32,
    /// Whether a message of level `memory` is among them.
    pub has_memory: bool,
    /// One encoded [`Meta`] per message.
    pub metas: &'a [u8],
    /// One whole encoded DELIVER frame per message, exactly as sent to members.
    pub frames: &'a [u8],
}

impl<'a> Run<'a> {
    /// Sequence number of the last message.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
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
    assert!(run.count > 0 && run.first.0 > 0, "a run has messages, numbered from 1");
    assert!((1..=GROUP_NAME_MAX).contains(&run.group.len()), "group name is within its limit");
    assert!(run.metas.len() == run.count as usize * META_BYTES, "one meta per message");
    dir.put_u64_le(run.handle.0);
    dir.put_u32_le(run.epoch.0);
    dir.put_u32_le(if run.has_memory { FLAG_MEMORY } else { 0 });
    dir.put_u64_le(run.first.0);
    dir.put_u32_le(run.count);
    dir.put_u32_le(run.frames.len() as u32);
    dir.put_u32_le(data_at as u32);
    dir.put_u8(run.group.len() as u8);
    dir.put_slice(&[0; 3]);
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
    let (first, count) = (u64_at(entry, 16), u32_at(entry, 24));
    let named = (1..=GROUP_NAME_MAX).contains(&name_len);
    if !named || count == 0 || first == 0 || first.checked_add(u64::from(count)).is_none() {
        return None;
    }
    let (metas, data) = data.split_at_checked((count as usize).checked_mul(META_BYTES)?)?;
    let frames = data.get(..u32_at(entry, 28) as usize)?;
    *dir = rest;
    Some(Run {
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
