//! A snapshot: what is durable of all groups of a shard beside their messages, so that a start
//! needs only the log after it. Pure encode and decode.
//!
//! It is written piece by piece while the shard goes on. What it says of a group is therefore
//! true of some moment after the commit it covers; reading the log from that commit on makes
//! it whole, since taking a part of the log in twice changes nothing.

use bytes::BufMut;

use super::FORMAT_VERSION;
use super::bytes_at::{u16_at, u32_at, u64_at};
use super::group_state::{GroupState, MemberState, ProducerState, ReceiptState, StateEntry};
use super::record::{Record, put, take_parts, take_record};
use crate::limits::PUBLISH_WINDOW_MAX;
use crate::position::{CommitNumber, Epoch, Handle, NodeId, Seq, ShardId, Stamp};

/// First bytes of a snapshot.
pub const SNAPSHOT_MAGIC: [u8; 8] = *b"FNFRSNAP";
/// Bytes of the header.
pub const SNAPSHOT_HEADER: usize = 64;
/// Most bytes of one piece.
pub const PIECE_BYTES_MAX: usize = 16 * 1024 * 1024;

const PIECE_FIXED: usize = 8;
const END: u32 = u32::MAX;
const END_BYTES: usize = PIECE_FIXED + 24;
const GROUP: u8 = 16;
const MEMBER: u8 = 17;
const PRODUCER: u8 = 18;
const RECEIPT: u8 = 19;
const FLAG_MEMORY: u32 = 1;
const GROUP_DATA: usize = 40;
const RECEIPT_DATA: usize = 32;
const PLACE_BYTES: usize = 12;

/// What the first bytes of a snapshot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The node.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// The log is needed from the commit after this one on.
    pub covered: CommitNumber,
    /// The largest stamp given then.
    pub max_stamp: Stamp,
    /// The largest epoch in the log then.
    pub max_epoch: Epoch,
}

/// A group in a snapshot, without what its [`GroupState`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotGroup {
    /// Its name.
    pub name: Box<[u8]>,
    /// Its handle.
    pub handle: Handle,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its last message that is on disk.
    pub head: Seq,
    /// Its oldest message that retention has left.
    pub first_kept: Seq,
    /// Whether it ever used level `memory`.
    pub used_memory: bool,
}

/// A whole snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What it covers.
    pub header: SnapshotHeader,
    /// All groups.
    pub groups: Vec<(SnapshotGroup, GroupState)>,
}

/// Why bytes are no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotFault {
    /// It ends before its end mark: its writing was interrupted, or it was cut off.
    #[error("it is cut off after {len} bytes")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// The header is not one.
    #[error("its header is not valid")]
    Header,
    /// Another version of the format.
    #[error("it has format version {found}, this build reads version {FORMAT_VERSION}")]
    Version {
        /// The version there is.
        found: u16,
    },
    /// It belongs elsewhere.
    #[error("it is of shard {shard} of node {node} and covers commit {covered}")]
    Foreign {
        /// The node in it.
        node: NodeId,
        /// The shard in it.
        shard: ShardId,
        /// The commit in it.
        covered: CommitNumber,
    },
    /// A piece does not match its checksum, or holds what cannot be.
    #[error("the piece at byte {at} is damaged")]
    Rotten {
        /// Where it starts.
        at: usize,
    },
}

impl SnapshotHeader {
    /// The first bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SNAPSHOT_HEADER);
        out.put_slice(&SNAPSHOT_MAGIC);
        out.put_u16_le(FORMAT_VERSION);
        out.put_u16_le(self.node.0);
        out.put_u16_le(self.shard.0);
        out.put_u16_le(0);
        out.put_u64_le(self.covered.0);
        out.put_u64_le(self.max_stamp.0);
        out.put_u32_le(self.max_epoch.0);
        out.put_bytes(0, SNAPSHOT_HEADER - 4 - out.len());
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, SnapshotFault> {
        let Some(head) = bytes.get(..SNAPSHOT_HEADER) else {
            return Err(SnapshotFault::Short { len: bytes.len() });
        };
        let crc_at = SNAPSHOT_HEADER - 4;
        if head[..8] != SNAPSHOT_MAGIC || u32_at(head, crc_at) != crc32fast::hash(&head[..crc_at]) {
            return Err(SnapshotFault::Header);
        }
        let found = u16_at(head, 8);
        if found != FORMAT_VERSION {
            return Err(SnapshotFault::Version { found });
        }
        Ok(Self {
            node: NodeId(u16_at(head, 10)),
            shard: ShardId(u16_at(head, 12)),
            covered: CommitNumber(u64_at(head, 16)),
            max_stamp: Stamp(u64_at(head, 24)),
            max_epoch: Epoch(u32_at(head, 32)),
        })
    }
}

/// A piece that is being filled: groups and what belongs to each, in order. What follows a
/// group belongs to it, also in later pieces.
#[derive(Debug, Default)]
pub struct SnapshotPiece {
    bytes: Vec<u8>,
    items: u64,
}

impl SnapshotPiece {
    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was put into it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn item(&mut self) -> &mut Vec<u8> {
        if self.bytes.is_empty() {
            self.bytes.put_bytes(0, PIECE_FIXED);
        }
        self.items += 1;
        &mut self.bytes
    }

    /// Begins a group. The versions are those before anything else of it is put in.
    pub fn group(&mut self, group: &SnapshotGroup, roster_version: u64, state_version: u64) {
        let mut data = [0; GROUP_DATA];
        let mut out = &mut data[..];
        out.put_u64_le(group.handle.0);
        out.put_u32_le(group.epoch.0);
        out.put_u32_le(if group.used_memory { FLAG_MEMORY } else { 0 });
        out.put_u64_le(group.first_kept.0);
        out.put_u64_le(roster_version);
        out.put_u64_le(state_version);
        put(self.item(), GROUP, 0, group.head.0, 0, &group.name, &data);
    }

    /// A durable member of the group.
    pub fn member(&mut self, id: &[u8], member: &MemberState) {
        let epoch = member.acked_epoch.0.to_le_bytes();
        put(self.item(), MEMBER, 0, member.joined_at.0, member.acked.0, id, &epoch);
    }

    /// A producer of the group; `window` has its last places, oldest first.
    pub fn producer(
        &mut self,
        id: &[u8; 16],
        member: &[u8],
        last: u64,
        window: impl ExactSizeIterator<Item = (Seq, Epoch)>,
    ) {
        let skip = window.len().saturating_sub(PUBLISH_WINDOW_MAX);
        let mut data = Vec::with_capacity(16 + PLACE_BYTES * window.len());
        data.put_slice(id);
        for (seq, epoch) in window.skip(skip) {
            data.put_u64_le(seq.0);
            data.put_u32_le(epoch.0);
        }
        put(self.item(), PRODUCER, 0, last, 0, member, &data);
    }

    /// A key of the group's state.
    pub fn entry(&mut self, key: &[u8], version: u64, stamp: Stamp, data: Option<&[u8]>) {
        let (deleted, data) = (data.is_none(), data.unwrap_or_default());
        Record::State { key, version, stamp, deleted, data }.encode(self.item());
    }

    /// A receipt that is waited for in the group.
    pub fn receipt(&mut self, seq: Seq, receipt: &ReceiptState) {
        let mut data = [0; RECEIPT_DATA];
        let mut out = &mut data[..];
        out.put_slice(&receipt.producer);
        out.put_u32_le(receipt.epoch.0);
        out.put_u8(receipt.percent);
        out.put_u8(u8::from(receipt.done.is_some()));
        out.put_u16_le(0);
        let (acked, members) = receipt.done.unwrap_or_default();
        out.put_u32_le(acked);
        out.put_u32_le(members);
        put(self.item(), RECEIPT, 0, seq.0, receipt.producer_seq, &receipt.sender, &data);
    }

    /// All of a group's state at once.
    pub fn whole_group(&mut self, group: &SnapshotGroup, state: &GroupState) {
        self.group(group, state.roster_version, state.state_version);
        state.members.iter().for_each(|(id, member)| self.member(id, member));
        for (id, p) in &state.producers {
            self.producer(id, &p.member, p.last, p.window.iter().copied());
        }
        for (key, e) in &state.entries {
            self.entry(key, e.version, e.stamp, (!e.deleted).then_some(&e.data));
        }
        state.receipts.iter().for_each(|(seq, receipt)| self.receipt(*seq, receipt));
    }

    /// The bytes of the piece, which go behind those of the piece before; it is empty again.
    #[must_use]
    pub fn seal(&mut self, written: &mut Written) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        written.items += std::mem::take(&mut self.items);
        if bytes.is_empty() {
            return bytes;
        }
        let (len, crc) = (bytes.len() - PIECE_FIXED, crc32fast::hash(&bytes[PIECE_FIXED..]));
        bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        written.pieces += 1;
        written.bytes += bytes.len() as u64;
        bytes
    }
}

/// What was written of a snapshot so far; the end of the file tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pieces: u64,
    items: u64,
    bytes: u64,
}

impl Written {
    /// The last bytes of the file.
    #[must_use]
    pub fn end(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(END_BYTES);
        out.put_u32_le(END);
        out.put_u32_le(0);
        out.put_u64_le(self.pieces);
        out.put_u64_le(self.items);
        out.put_u64_le(self.bytes);
        let crc = crc32fast::hash(&out[PIECE_FIXED..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

/// Encodes a whole snapshot.
#[must_use]
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let mut out = snapshot.header.encode();
    let (mut piece, mut written) = (SnapshotPiece::default(), Written::default());
    for (group, state) in &snapshot.groups {
        piece.whole_group(group, state);
        if piece.len() > PIECE_BYTES_MAX / 16 {
            out.extend(piece.seal(&mut written));
        }
    }
    out.extend(piece.seal(&mut written));
    out.extend(written.end());
    out
}

/// Decodes the snapshot of `shard` on `node` that covers `covered`.
///
/// # Errors
/// A [`SnapshotFault`] that says what is wrong; nothing of it can be used then.
pub fn decode_snapshot(
    bytes: &[u8],
    node: NodeId,
    shard: ShardId,
    covered: CommitNumber,
) -> Result<Snapshot, SnapshotFault> {
    let header = SnapshotHeader::decode(bytes)?;
    if (header.node, header.shard, header.covered) != (node, shard, covered) {
        let SnapshotHeader { node, shard, covered, .. } = header;
        return Err(SnapshotFault::Foreign { node, shard, covered });
    }
    let mut snapshot = Snapshot { header, groups: Vec::new() };
    let mut written = Written::default();
    let mut at = SNAPSHOT_HEADER;
    loop {
        let short = SnapshotFault::Short { len: bytes.len() };
        let rest = bytes.get(at..).unwrap_or_default();
        let fixed = rest.get(..PIECE_FIXED).ok_or(short)?;
        let (len, crc) = (u32_at(fixed, 0), u32_at(fixed, 4));
        let rotten = SnapshotFault::Rotten { at };
        if len == END {
            let end = rest.get(..END_BYTES).ok_or(short)?;
            let whole = rest.len() == END_BYTES && end == written.end();
            return if whole { Ok(snapshot) } else { Err(rotten) };
        }
        let len = len as usize;
        let piece = rest.get(PIECE_FIXED..PIECE_FIXED + len).ok_or(short)?;
        if len == 0 || crc32fast::hash(piece) != crc {
            return Err(rotten);
        }
        written.items += take_items(piece, &mut snapshot.groups).ok_or(rotten)?;
        written.pieces += 1;
        written.bytes += (PIECE_FIXED + len) as u64;
        at += PIECE_FIXED + len;
    }
}

/// Takes the items of a piece in; `None` if one is not what it should be.
fn take_items(mut piece: &[u8], groups: &mut Vec<(SnapshotGroup, GroupState)>) -> Option<u64> {
    let mut items = 0;
    while !piece.is_empty() {
        items += 1;
        let whole = piece;
        let item = take_parts(&mut piece)?;
        if item.kind == GROUP {
            groups.push(group_of(item.a, item.name, item.data)?);
            continue;
        }
        let (_, state) = groups.last_mut()?;
        match item.kind {
            MEMBER => {
                let epoch = Epoch(u32::from_le_bytes(item.data.try_into().ok()?));
                let member =
                    MemberState { joined_at: Seq(item.a), acked: Seq(item.b), acked_epoch: epoch };
                state.members.insert(item.name.into(), member);
            }
            PRODUCER => {
                let (id, places) = item.data.split_first_chunk::<16>()?;
                let place = |p: &[u8]| (Seq(u64_at(p, 0)), Epoch(u32_at(p, 8)));
                let window = places.chunks_exact(PLACE_BYTES).map(place).collect();
                let producer = ProducerState { member: item.name.into(), last: item.a, window };
                state.producers.insert(*id, producer);
            }
            RECEIPT => {
                let (seq, receipt) = receipt_of(item.a, item.b, item.name, item.data)?;
                state.receipts.insert(seq, receipt);
            }
            _ => {
                let Record::State { key, version, stamp, deleted, data } =
                    take_record(&mut &whole[..])?
                else {
                    // An item that this build does not know.
                    continue;
                };
                let entry = StateEntry { version, stamp, deleted, data: data.into() };
                let known = state.entries.get(key).is_some_and(|known| known.version > version);
                if !known {
                    state.entries.insert(key.into(), entry);
                }
            }
        }
    }
    Some(items)
}

fn group_of(head: u64, name: &[u8], data: &[u8]) -> Option<(SnapshotGroup, GroupState)> {
    if data.len() < GROUP_DATA || name.is_empty() {
        return None;
    }
    let group = SnapshotGroup {
        name: name.into(),
        handle: Handle(u64_at(data, 0)),
        epoch: Epoch(u32_at(data, 8)),
        head: Seq(head),
        first_kept: Seq(u64_at(data, 16)),
        used_memory: u32_at(data, 12) & FLAG_MEMORY != 0,
    };
    let state = GroupState {
        roster_version: u64_at(data, 24),
        state_version: u64_at(data, 32),
        ..GroupState::default()
    };
    Some((group, state))
}

fn receipt_of(
    seq: u64,
    producer_seq: u64,
    sender: &[u8],
    data: &[u8],
) -> Option<(Seq, ReceiptState)> {
    let data = data.get(..RECEIPT_DATA)?;
    let receipt = ReceiptState {
        epoch: Epoch(u32_at(data, 16)),
        producer: *data.first_chunk()?,
        producer_seq,
        sender: sender.into(),
        percent: data[20],
        done: (data[21] != 0).then(|| (u32_at(data, 24), u32_at(data, 28))),
    };
    Some((Seq(seq), receipt))
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
