//! Builders that the tests of this folder share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::{Meta, Run, RunKind, encode_commit};
use crate::position::{CommitNumber, Epoch, Handle, Level, NodeId, Seq, ShardId, Stamp};
use crate::ring::LogBuf;
use crate::wire::Deliver;

pub(super) const SALT: u64 = 0x5A17_5A17_5A17_5A17;

/// A run with bytes of its own.
#[derive(Clone, Debug)]
pub(super) struct OwnedRun {
    pub(super) handle: Handle,
    pub(super) epoch: Epoch,
    pub(super) group: Vec<u8>,
    pub(super) first: Seq,
    pub(super) count: u32,
    pub(super) metas: Vec<u8>,
    pub(super) frames: Vec<u8>,
}

impl OwnedRun {
    pub(super) fn as_run(&self) -> Run<'_> {
        Run {
            kind: RunKind::Messages,
            handle: self.handle,
            epoch: self.epoch,
            group: &self.group,
            first: self.first,
            count: self.count,
            has_memory: false,
            metas: &self.metas,
            frames: &self.frames,
        }
    }
}

pub(super) fn frame(handle: Handle, seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deliver {
        handle,
        seq: Seq(seq),
        stamp: Stamp(seq << 16),
        node: NodeId(1),
        shard: ShardId(0),
        sender: b"ann",
        payload,
    }
    .encode(&mut out);
    out
}

/// A run of `count` messages whose payloads are `payload` bytes that are not zero.
pub(super) fn run(handle: u64, first: u64, count: u32, payload: usize) -> OwnedRun {
    let handle = Handle(handle);
    let (mut metas, mut frames) = (Vec::new(), Vec::new());
    for seq in first..first + u64::from(count) {
        Meta { producer: [7; 16], producer_seq: seq, level: Level::Durable, receipt: 0 }
            .encode(&mut metas);
        let bytes: Vec<u8> = (0..payload).map(|i| (i as u8 ^ seq as u8) | 1).collect();
        frames.extend(frame(handle, seq, &bytes));
    }
    let group = format!("group-{}", handle.0).into_bytes();
    OwnedRun { handle, epoch: Epoch(1), group, first: Seq(first), count, metas, frames }
}

pub(super) fn commit(number: u64, runs: &[OwnedRun]) -> Vec<u8> {
    let runs: Vec<Run<'_>> = runs.iter().map(OwnedRun::as_run).collect();
    let mut buf = LogBuf::with_capacity(super::commit_len(runs.iter()));
    encode_commit(&mut buf, CommitNumber(number), SALT, Stamp(number << 16), &runs);
    buf.as_slice().to_vec()
}
