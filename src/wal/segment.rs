//! The header block of a segment file. Pure encode and decode.

use bytes::BufMut;

use super::FORMAT_VERSION;
use super::bytes_at::{is_zero, u16_at, u32_at, u64_at};
use crate::limits::LOG_BLOCK;
use crate::position::{NodeId, SegmentNumber, ShardId};

/// First bytes of a segment file.
pub const SEGMENT_MAGIC: [u8; 8] = *b"FNFRWALS";

const CRC_AT: usize = LOG_BLOCK - 4;

/// What the first block of a segment file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The node whose log it is.
    pub node: NodeId,
    /// The shard whose log it is.
    pub shard: ShardId,
    /// Its number, the same as in its file name.
    pub number: SegmentNumber,
    /// Random; every commit in the segment repeats it.
    pub salt: u64,
    /// Size of the file when it was created.
    pub bytes: u64,
    /// Unix time of its creation.
    pub created_ms: u64,
}

/// Why a block is no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderFault {
    /// Fewer bytes than a header block has.
    #[error("the file has {len} bytes and ends within its header block")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// The block is all zero.
    #[error("the header block is all zero")]
    Zero,
    /// The first bytes are not those of a segment.
    #[error("the first bytes are not those of a log segment")]
    Magic,
    /// The checksum does not match.
    #[error("the header block does not match its checksum")]
    Checksum,
    /// Another version of the format.
    #[error("the segment has format version {found}, this build reads version {FORMAT_VERSION}")]
    Version {
        /// The version there is.
        found: u16,
    },
}

impl SegmentHeader {
    /// The header block.
    #[must_use]
    pub fn encode(&self) -> [u8; LOG_BLOCK] {
        let mut block = [0; LOG_BLOCK];
        let mut out = &mut block[..];
        out.put_slice(&SEGMENT_MAGIC);
        out.put_u16_le(FORMAT_VERSION);
        out.put_u16_le(self.node.0);
        out.put_u16_le(self.shard.0);
        out.put_u16_le(0);
        out.put_u64_le(self.number.on_disk().0);
        out.put_u64_le(self.salt);
        out.put_u64_le(self.bytes);
        out.put_u64_le(self.created_ms);
        let crc = crc32fast::hash(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Decodes the header block at the start of `bytes`.
    ///
    /// # Errors
    /// A [`SegmentHeaderFault`] that says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, SegmentHeaderFault> {
        let Some(block) = bytes.get(..LOG_BLOCK) else {
            return Err(SegmentHeaderFault::Short { len: bytes.len() });
        };
        if is_zero(block) {
            return Err(SegmentHeaderFault::Zero);
        }
        if block[..8] != SEGMENT_MAGIC {
            return Err(SegmentHeaderFault::Magic);
        }
        if u32_at(block, CRC_AT) != crc32fast::hash(&block[..CRC_AT]) {
            return Err(SegmentHeaderFault::Checksum);
        }
        let found = u16_at(block, 8);
        if found != FORMAT_VERSION {
            return Err(SegmentHeaderFault::Version { found });
        }
        Ok(Self {
            node: NodeId(u16_at(block, 10)),
            shard: ShardId(u16_at(block, 12)),
            number: SegmentNumber(u64_at(block, 16)),
            salt: u64_at(block, 24),
            bytes: u64_at(block, 32),
            created_ms: u64_at(block, 40),
        })
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
