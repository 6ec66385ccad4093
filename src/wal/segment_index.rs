//! The index of a sealed segment: where in it each group's messages are, so that a start need
//! not read it. Pure encode and decode.

use bytes::BufMut;

use super::FORMAT_VERSION;
use super::bytes_at::{u16_at, u32_at, u64_at};
use super::index::{IndexEntry, LogPos};
use super::log::SegmentInfo;
use crate::limits::LOG_BLOCK;
use crate::position::{CommitNumber, Handle, NodeId, SegmentNumber, Seq, ShardId};

/// First bytes of an index.
pub const INDEX_MAGIC: [u8; 8] = *b"FNFRWALI";

const HEADER: usize = 80;
const GROUP_FIXED: usize = 24;
const ENTRY: usize = 32;

/// What an index says of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// The node.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// The segment.
    pub number: SegmentNumber,
    /// What is known of it.
    pub info: SegmentInfo,
}

/// A group in an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedGroup {
    /// The group.
    pub handle: Handle,
    /// Its last message in the segment.
    pub last: Seq,
    /// Where its messages are.
    pub entries: Vec<IndexEntry>,
}

/// An index that is being made.
#[derive(Debug)]
pub struct SegmentIndexBuilder {
    bytes: Vec<u8>,
    groups: u32,
}

impl SegmentIndexBuilder {
    /// An index without groups.
    #[must_use]
    pub fn new(header: &IndexHeader) -> Self {
        let mut bytes = Vec::with_capacity(4096);
        bytes.put_slice(&INDEX_MAGIC);
        bytes.put_u16_le(FORMAT_VERSION);
        bytes.put_u16_le(header.node.0);
        bytes.put_u16_le(header.shard.0);
        bytes.put_u16_le(0);
        bytes.put_u64_le(header.number.on_disk().0);
        bytes.put_u64_le(header.info.salt);
        bytes.put_u64_le(header.info.used);
        bytes.put_u64_le(header.info.newest_ms);
        bytes.put_u64_le(header.info.first_commit.0);
        bytes.put_u64_le(header.info.last_commit.0);
        bytes.put_bytes(0, HEADER - bytes.len());
        Self { bytes, groups: 0 }
    }

    /// Bytes so far.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a group; without entries it has no messages there.
    pub fn group(&mut self, handle: Handle, last: Seq, entries: &[IndexEntry]) {
        if entries.is_empty() {
            return;
        }
        self.groups += 1;
        self.bytes.put_u64_le(handle.0);
        self.bytes.put_u64_le(last.0);
        self.bytes.put_u32_le(entries.len() as u32);
        self.bytes.put_u32_le(0);
        for entry in entries {
            self.bytes.put_u64_le(entry.first.0);
            self.bytes.put_u64_le(entry.pos.offset);
            self.bytes.put_u64_le(entry.bytes);
            self.bytes.put_u64_le(entry.newest_ms);
        }
    }

    /// The whole file.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes[HEADER - 8..HEADER - 4].copy_from_slice(&self.groups.to_le_bytes());
        let crc = crc32fast::hash(&self.bytes);
        self.bytes.put_u32_le(crc);
        self.bytes
    }
}

/// Decodes an index; `None` if it is not whole and right, then it is made again.
#[must_use]
pub fn decode_index(bytes: &[u8]) -> Option<(IndexHeader, Vec<IndexedGroup>)> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    let valid = body.len() >= HEADER
        && body[..8] == INDEX_MAGIC
        && u16_at(body, 8) == FORMAT_VERSION
        && u32::from_le_bytes(*crc) == crc32fast::hash(body);
    if !valid {
        return None;
    }
    let number = SegmentNumber(u64_at(body, 16));
    let header = IndexHeader {
        node: NodeId(u16_at(body, 10)),
        shard: ShardId(u16_at(body, 12)),
        number,
        info: SegmentInfo {
            salt: u64_at(body, 24),
            used: u64_at(body, 32),
            newest_ms: u64_at(body, 40),
            first_commit: CommitNumber(u64_at(body, 48)),
            last_commit: CommitNumber(u64_at(body, 56)),
        },
    };
    let mut groups = Vec::new();
    let mut rest = &body[HEADER..];
    for _ in 0..u32_at(body, HEADER - 8) {
        let (fixed, after) = rest.split_at_checked(GROUP_FIXED)?;
        let entries_len = (u32_at(fixed, 16) as usize).checked_mul(ENTRY)?;
        let (entries, after) = after.split_at_checked(entries_len)?;
        let entry = |e: &[u8]| IndexEntry {
            first: Seq(u64_at(e, 0)),
            pos: LogPos { segment: number, offset: u64_at(e, 8) },
            bytes: u64_at(e, 16),
            newest_ms: u64_at(e, 24),
        };
        let entries: Vec<_> = entries.chunks_exact(ENTRY).map(entry).collect();
        let (handle, last) = (Handle(u64_at(fixed, 0)), Seq(u64_at(fixed, 8)));
        let ordered = entries.is_sorted_by(|a, b| a.first < b.first && a.pos < b.pos)
            && entries.last().is_some_and(|entry| entry.first <= last)
            && entries.iter().all(|e| e.pos.offset.is_multiple_of(LOG_BLOCK as u64))
            && entries.iter().all(|e| (LOG_BLOCK as u64..header.info.used).contains(&e.pos.offset));
        if !ordered {
            return None;
        }
        groups.push(IndexedGroup { handle, last, entries });
        rest = after;
    }
    rest.is_empty().then_some((header, groups))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header() -> IndexHeader {
        IndexHeader {
            node: NodeId(7),
            shard: ShardId(2),
            number: SegmentNumber(9),
            info: SegmentInfo {
                salt: 5,
                used: 40_960,
                newest_ms: 77,
                first_commit: CommitNumber(10),
                last_commit: CommitNumber(12),
            },
        }
    }

    fn entry(first: u64, offset: u64) -> IndexEntry {
        let pos = LogPos { segment: SegmentNumber(9), offset };
        IndexEntry { first: Seq(first), pos, bytes: 100, newest_ms: 70 }
    }

    fn index() -> (Vec<u8>, Vec<IndexedGroup>) {
        let groups = vec![
            IndexedGroup {
                handle: Handle(1),
                last: Seq(40),
                entries: vec![entry(3, 4096), entry(20, 8192)],
            },
            IndexedGroup { handle: Handle(2), last: Seq(1), entries: vec![entry(1, 4096)] },
        ];
        let mut builder = SegmentIndexBuilder::new(&header());
        groups.iter().for_each(|g| builder.group(g.handle, g.last, &g.entries));
        builder.group(Handle(3), Seq(9), &[]);
        (builder.finish(), groups)
    }

    #[test]
    fn an_index_decodes_to_what_was_put_in() {
        let (bytes, groups) = index();
        assert_eq!(decode_index(&bytes), Some((header(), groups)));
    }

    #[test]
    fn an_index_cut_off_or_flipped_anywhere_is_none() {
        let (bytes, _) = index();
        for at in 0..bytes.len() {
            assert_eq!(decode_index(&bytes[..at]), None, "{at}");
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert_eq!(decode_index(&bad), None, "{at}");
        }
        assert_eq!(decode_index(&[0; 4096]), None);
    }

    #[test]
    fn no_bytes_make_decoding_panic() {
        bolero::check!().with_iterations(20_000).with_type::<(Vec<(u8, u8)>, Vec<u8>)>().for_each(
            |(edits, noise)| {
                let (mut bytes, _) = index();
                let len = bytes.len() - 4;
                for (at, byte) in edits {
                    bytes[usize::from(*at) % len] = *byte;
                }
                let crc = crc32fast::hash(&bytes[..len]);
                bytes[len..].copy_from_slice(&crc.to_le_bytes());
                let _ = decode_index(&bytes);
                assert_eq!(decode_index(noise), None);
            },
        );
    }
}
