//! One commit: what a single log write carries. Pure encode and decode.
//!
//! A commit is its header sectors, then its body (directory and runs), then zeros up to the
//! next block. Each 512-byte sector can be validated alone, which is what lets recovery tell
//! a torn write from rot.

use bytes::BufMut;

use super::FORMAT_VERSION;
use super::bytes_at::{is_zero, u16_at, u32_at, u64_at};
use super::run::{Run, data_at, encode_run, take_run};
use crate::limits::{COMMIT_BYTES_MAX, LOG_BLOCK, LOG_SECTOR};
use crate::position::{CommitNumber, Stamp};
use crate::ring::LogBuf;

/// First bytes of a commit.
pub const COMMIT_MAGIC: [u8; 4] = *b"FNFC";
/// First bytes of the second and later header sectors of a commit.
pub const CONTINUATION_MAGIC: [u8; 4] = *b"FNFX";

const CRC_AT: usize = LOG_SECTOR - 4;
const FIRST_TABLE_AT: usize = 48;
const FIRST_TABLE_LEN: usize = (CRC_AT - FIRST_TABLE_AT) / 4;
const NEXT_TABLE_AT: usize = 24;
const NEXT_TABLE_LEN: usize = (CRC_AT - NEXT_TABLE_AT) / 4;
const ZERO_SECTOR: [u8; LOG_SECTOR] = [0; LOG_SECTOR];

/// Where the parts of a commit are, from the length of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    header_sectors: usize,
    body_sectors: usize,
    total_len: usize,
}

impl Layout {
    fn of(body_len: usize) -> Self {
        let body_sectors = body_len.div_ceil(LOG_SECTOR);
        let header_sectors =
            1 + body_sectors.saturating_sub(FIRST_TABLE_LEN).div_ceil(NEXT_TABLE_LEN);
        let total_len = ((header_sectors + body_sectors) * LOG_SECTOR).next_multiple_of(LOG_BLOCK);
        Self { header_sectors, body_sectors, total_len }
    }

    fn body_at(self) -> usize {
        self.header_sectors * LOG_SECTOR
    }
}

/// Where the checksum of body sector `sector` is: byte offset from the start of the commit.
fn crc_at(sector: usize) -> usize {
    match sector.checked_sub(FIRST_TABLE_LEN) {
        None => FIRST_TABLE_AT + 4 * sector,
        Some(rest) => {
            let header = 1 + rest / NEXT_TABLE_LEN;
            header * LOG_SECTOR + NEXT_TABLE_AT + 4 * (rest % NEXT_TABLE_LEN)
        }
    }
}

fn body_len<'r, 'a: 'r>(runs: impl Iterator<Item = &'r Run<'a>>) -> usize {
    runs.map(|r| r.entry_len() + r.metas.len() + r.frames.len()).sum()
}

/// Bytes that a commit of `runs` takes on disk; a multiple of [`LOG_BLOCK`].
#[must_use]
pub fn commit_len<'r, 'a: 'r>(runs: impl Iterator<Item = &'r Run<'a>>) -> usize {
    Layout::of(body_len(runs)).total_len
}

/// Encodes a commit of `runs` into `buf`, whose old content is replaced and whose length
/// becomes [`commit_len`]. The buffer then holds no byte of its earlier use.
///
/// # Panics
/// If the commit is larger than the buffer's capacity or than [`COMMIT_BYTES_MAX`], or a run
/// breaks what its fields promise; all of these are for the caller to prevent.
pub fn encode_commit<'a>(
    buf: &mut LogBuf,
    number: CommitNumber,
    salt: u64,
    max_stamp: Stamp,
    runs: &[Run<'a>],
) {
    let body_len = body_len(runs.iter());
    let dir_len: usize = runs.iter().map(Run::entry_len).sum();
    let layout = Layout::of(body_len);
    assert!(layout.total_len <= COMMIT_BYTES_MAX, "commit of {} bytes", layout.total_len);
    buf.set_len(layout.total_len);
    let (header, body) = buf.as_mut_slice().split_at_mut(layout.body_at());

    let (mut dir, mut data) = body.split_at_mut(dir_len);
    let mut data_at = dir_len;
    for run in runs {
        data_at += encode_run(run, data_at, &mut dir, &mut data);
    }
    data.fill(0);

    header.fill(0);
    for (sector, bytes) in body.chunks_exact(LOG_SECTOR).take(layout.body_sectors).enumerate() {
        let at = crc_at(sector);
        header[at..at + 4].copy_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    }
    for (index, sector) in header.chunks_exact_mut(LOG_SECTOR).enumerate() {
        let mut out = &mut sector[..];
        out.put_slice(if index == 0 { &COMMIT_MAGIC } else { &CONTINUATION_MAGIC });
        out.put_u16_le(FORMAT_VERSION);
        out.put_u16_le(if index == 0 { layout.header_sectors } else { index } as u16);
        out.put_u64_le(number.0);
        out.put_u64_le(salt);
        if index == 0 {
            out.put_u32_le(body_len as u32);
            out.put_u32_le(dir_len as u32);
            out.put_u32_le(runs.len() as u32);
            out.put_u32_le(0);
            out.put_u64_le(max_stamp.0);
        }
        let crc = crc32fast::hash(&sector[..CRC_AT]);
        sector[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A commit whose every checksum and bound holds.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// Its number.
    pub number: CommitNumber,
    /// The largest stamp in it.
    pub max_stamp: Stamp,
    /// Bytes it takes on disk; the next commit starts right after.
    pub total_len: usize,
    run_count: u32,
    dir_len: usize,
    body: &'a [u8],
}

/// Why there is no usable commit at this place. What that means for the log as a whole is
/// for recovery to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitFault {
    /// The first block is all zero: nothing was written here.
    #[error("nothing was written here")]
    End,
    /// The first sector is all zero but the rest of the first block is not.
    #[error("the first header sector is missing")]
    Headless,
    /// More bytes are needed to decide.
    #[error("{need} bytes are needed")]
    Incomplete {
        /// Bytes needed from the start of the commit; at most [`COMMIT_BYTES_MAX`].
        need: usize,
    },
    /// The first header sector is valid, every other sector is valid or all zero, and at
    /// least one is missing: what an interrupted write leaves.
    #[error("commit {number} was written in part")]
    Torn {
        /// Number of the commit.
        number: CommitNumber,
        /// Bytes the commit takes on disk.
        total_len: usize,
    },
    /// The first header sector is valid but another sector is neither valid nor all zero.
    #[error("commit {number} is damaged: {why}")]
    Rotten {
        /// Number of the commit.
        number: CommitNumber,
        /// Bytes the commit takes on disk.
        total_len: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The first sector is neither all zero nor a valid header of this segment.
    #[error("no valid commit header: {why}")]
    BadHeader {
        /// What is wrong.
        why: &'static str,
        /// Whether a header of this segment was there: its salt still is, but for a few bits.
        salted: bool,
    },
}

struct Header {
    number: CommitNumber,
    max_stamp: Stamp,
    body_len: usize,
    dir_len: usize,
    run_count: u32,
    layout: Layout,
}

/// Decodes the commit at the start of `bytes`, which may hold more after it.
///
/// # Errors
/// A [`CommitFault`] that says what is there instead.
pub fn decode_commit(bytes: &[u8], salt: u64) -> Result<Commit<'_>, CommitFault> {
    let Some(block) = bytes.get(..LOG_BLOCK) else {
        return Err(CommitFault::Incomplete { need: LOG_BLOCK });
    };
    if is_zero(&block[..LOG_SECTOR]) {
        return Err(if is_zero(block) { CommitFault::End } else { CommitFault::Headless });
    }
    let header = decode_header(block, salt)
        .map_err(|why| CommitFault::BadHeader { why, salted: is_salted(block, salt) })?;
    let Header { number, layout, .. } = header;
    let total_len = layout.total_len;
    let Some(bytes) = bytes.get(..total_len) else {
        return Err(CommitFault::Incomplete { need: total_len });
    };
    match check_sectors(bytes, &header, salt) {
        Sectors::Valid => {}
        Sectors::Missing => return Err(CommitFault::Torn { number, total_len }),
        Sectors::Bad(why) => return Err(CommitFault::Rotten { number, total_len, why }),
    }
    let body = &bytes[layout.body_at()..][..header.body_len];
    let commit = Commit {
        number,
        max_stamp: header.max_stamp,
        total_len,
        run_count: header.run_count,
        dir_len: header.dir_len,
        body,
    };
    if !commit.directory_holds() {
        return Err(CommitFault::Rotten { number, total_len, why: "its directory is malformed" });
    }
    Ok(commit)
}

fn decode_header(block: &[u8], salt: u64) -> Result<Header, &'static str> {
    let sector = &block[..LOG_SECTOR];
    if sector[..4] != COMMIT_MAGIC {
        return Err("wrong magic");
    }
    if u32_at(sector, CRC_AT) != crc32fast::hash(&sector[..CRC_AT]) {
        return Err("wrong checksum");
    }
    if u16_at(sector, 4) != FORMAT_VERSION {
        return Err("unknown format version");
    }
    if u64_at(sector, 16) != salt {
        return Err("salt of another segment");
    }
    let header = Header {
        number: CommitNumber(u64_at(sector, 8)),
        max_stamp: Stamp(u64_at(sector, 40)),
        body_len: u32_at(sector, 24) as usize,
        dir_len: u32_at(sector, 28) as usize,
        run_count: u32_at(sector, 32),
        layout: Layout::of(u32_at(sector, 24) as usize),
    };
    let fits = header.layout.total_len <= COMMIT_BYTES_MAX
        && header.layout.header_sectors == usize::from(u16_at(sector, 6))
        && header.dir_len <= header.body_len;
    if fits { Ok(header) } else { Err("lengths that cannot be") }
}

/// Most bits of a salt that rot may have changed. That another one is as near is one chance in
/// three thousand million, and nobody outside knows the salt.
const SALT_BITS_ROTTEN_MAX: u32 = 8;

/// Whether `block` starts with what was a commit header of the segment. A large commit that lost
/// its first sector has other header sectors at the starts of blocks.
fn is_salted(block: &[u8], salt: u64) -> bool {
    block[..4] != CONTINUATION_MAGIC
        && (u64_at(block, 16) ^ salt).count_ones() <= SALT_BITS_ROTTEN_MAX
}

/// Bytes that [`decode_commit`] needs to judge the commit at the start of `block`; one block
/// if there is no valid header.
pub(super) fn commit_len_at(block: &[u8], salt: u64) -> usize {
    decode_header(block, salt).map_or(LOG_BLOCK, |header| header.layout.total_len)
}

enum Sectors {
    Valid,
    Missing,
    Bad(&'static str),
}

/// Checks every sector of a commit whose first header sector is valid. A body sector whose
/// checksum is in a missing header sector cannot be judged and counts as part of the tear.
fn check_sectors(bytes: &[u8], header: &Header, salt: u64) -> Sectors {
    let layout = header.layout;
    let mut missing = false;
    for index in 1..layout.header_sectors {
        let sector = &bytes[index * LOG_SECTOR..][..LOG_SECTOR];
        if sector == ZERO_SECTOR {
            missing = true;
        } else if !continuation_holds(sector, index, header.number, salt) {
            return Sectors::Bad("a header sector does not match its checksum");
        }
    }
    let body = &bytes[layout.body_at()..];
    for (index, sector) in body.chunks_exact(LOG_SECTOR).take(layout.body_sectors).enumerate() {
        let crc_at = crc_at(index);
        let table = &bytes[crc_at / LOG_SECTOR * LOG_SECTOR..][..LOG_SECTOR];
        if u32_at(bytes, crc_at) == crc32fast::hash(sector) {
            continue;
        }
        if sector != ZERO_SECTOR && table != ZERO_SECTOR {
            return Sectors::Bad("a body sector does not match its checksum");
        }
        missing = true;
    }
    if missing { Sectors::Missing } else { Sectors::Valid }
}

fn continuation_holds(sector: &[u8], index: usize, number: CommitNumber, salt: u64) -> bool {
    sector[..4] == CONTINUATION_MAGIC
        && u16_at(sector, 4) == FORMAT_VERSION
        && usize::from(u16_at(sector, 6)) == index
        && u64_at(sector, 8) == number.0
        && u64_at(sector, 16) == salt
        && u32_at(sector, CRC_AT) == crc32fast::hash(&sector[..CRC_AT])
}

impl<'a> Commit<'a> {
    /// The runs, in the order in which they were sequenced.
    pub fn runs(&self) -> impl Iterator<Item = Run<'a>> + use<'a> {
        let body = self.body;
        let mut dir = &body[..self.dir_len];
        (0..self.run_count).map_while(move |_| take_run(&mut dir, body))
    }

    /// Whether the directory has all its runs, fills its length, and its runs fill the body
    /// in order. Ends at the first fault, so a made-up run count costs nothing.
    fn directory_holds(&self) -> bool {
        let mut dir = &self.body[..self.dir_len];
        let mut end = self.dir_len;
        for _ in 0..self.run_count {
            if data_at(dir) != Some(end) {
                return false;
            }
            let Some(run) = take_run(&mut dir, self.body) else { return false };
            end += run.metas.len() + run.frames.len();
        }
        dir.is_empty() && end == self.body.len()
    }
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
