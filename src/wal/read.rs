//! Catch-up: takes a group's frames out of a stretch of the log. Pure.

use super::commit::{CommitFault, decode_commit};
use super::run::Run;
use crate::limits::LOG_BLOCK;
use crate::position::{Epoch, Handle, Seq};
use crate::wire;

/// Frames of one group, of one epoch, with contiguous sequence numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collected {
    /// Whole DELIVER frames; may be empty.
    pub frames: Vec<u8>,
    /// Sequence number of the first frame; 0 if there is none.
    pub first: Seq,
    /// Sequence number of the last frame; 0 if there is none.
    pub last: Seq,
    /// Epoch of the frames; 0 if there is none.
    pub epoch: Epoch,
    /// Where and how to go on.
    pub end: Resume,
}

/// Why [`collect`] stopped. Offsets are those of the segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Go on with the commit at this offset: the chunk is full, the bytes are used up, the
    /// epoch changes, or what comes there must be reported apart from the frames before it.
    NextAt {
        /// Where a commit starts.
        offset: u64,
    },
    /// The commit at this offset is not whole in the bytes given.
    NeedBytes {
        /// Where the commit starts.
        offset: u64,
        /// Bytes needed from there.
        need: usize,
    },
    /// No commit follows in this segment.
    SegmentEnd,
    /// Nothing was collected: the group's next run starts above the message asked for. Go on
    /// at the same offset, from `next`, after a GAP.
    Hole {
        /// Where the commit with that run starts.
        offset: u64,
        /// First message of that run.
        next: Seq,
    },
    /// Nothing was collected: the commit here is damaged. Go on at `skip_to`; if messages are
    /// missing, a hole follows.
    Bad {
        /// Where the damaged commit starts.
        offset: u64,
        /// The next place where a commit may start.
        skip_to: u64,
    },
}

/// Walks the commits in `bytes`, which start at a commit and at `base_offset` of the
/// segment, and takes the runs of `handle` from message `from` on.
///
/// Runs are taken whole (but for frames below `from`), so the result can be larger than
/// `bytes_max` by one run. The bytes must all have been synced: a write in flight looks like
/// damage.
#[must_use]
pub fn collect(
    bytes: &[u8],
    base_offset: u64,
    salt: u64,
    handle: Handle,
    from: Seq,
    bytes_max: usize,
) -> Collected {
    let mut out = Collected {
        frames: Vec::new(),
        first: Seq(0),
        last: Seq(0),
        epoch: Epoch(0),
        end: Resume::SegmentEnd,
    };
    let mut at = 0;
    out.end = loop {
        let offset = base_offset + at as u64;
        let rest = &bytes[at..];
        if rest.is_empty() {
            break Resume::NextAt { offset };
        }
        match decode_commit(rest, salt) {
            Ok(commit) => {
                let runs = commit.runs().filter(|run| run.handle == handle && run.has_messages());
                if let Err(stop) = take_runs(&mut out, runs, from, bytes_max) {
                    break stop.resume(out.frames.is_empty(), offset, commit.total_len);
                }
                at += commit.total_len;
            }
            Err(CommitFault::Incomplete { need }) => break Resume::NeedBytes { offset, need },
            Err(CommitFault::End) => break Resume::SegmentEnd,
            Err(CommitFault::Torn { total_len, .. } | CommitFault::Rotten { total_len, .. }) => {
                break Stop::Bad.resume(out.frames.is_empty(), offset, total_len);
            }
            Err(CommitFault::Headless | CommitFault::BadHeader { .. }) => {
                break Stop::Bad.resume(out.frames.is_empty(), offset, LOG_BLOCK);
            }
        }
    };
    out
}

enum Stop {
    Full,
    Hole(Seq),
    Bad,
}

impl Stop {
    /// What was collected goes out first; the next call then meets hole or damage at once.
    fn resume(self, nothing_collected: bool, offset: u64, commit_len: usize) -> Resume {
        match self {
            Self::Hole(next) if nothing_collected => Resume::Hole { offset, next },
            Self::Bad if nothing_collected => {
                Resume::Bad { offset, skip_to: offset + commit_len as u64 }
            }
            _ => Resume::NextAt { offset },
        }
    }
}

fn take_runs<'a>(
    out: &mut Collected,
    runs: impl Iterator<Item = Run<'a>>,
    from: Seq,
    bytes_max: usize,
) -> Result<(), Stop> {
    for run in runs {
        let wanted = if out.frames.is_empty() { from } else { out.last.next() };
        if run.last() < wanted {
            continue;
        }
        if run.first > wanted {
            return Err(Stop::Hole(run.first));
        }
        let frames = skip_frames(&run, wanted.0 - run.first.0).ok_or(Stop::Bad)?;
        if out.frames.is_empty() {
            out.first = wanted;
            out.epoch = run.epoch;
        } else if run.epoch != out.epoch || out.frames.len() + frames.len() > bytes_max {
            return Err(Stop::Full);
        }
        out.frames.extend_from_slice(frames);
        out.last = run.last();
    }
    Ok(())
}

/// The frames of `run` without the first `skip`; `None` if they are not as many as the run
/// says.
fn skip_frames<'a>(run: &Run<'a>, skip: u64) -> Option<&'a [u8]> {
    let mut rest = run.frames;
    for _ in 0..skip {
        let (_, len) = wire::split(rest, rest.len()).ok()??;
        rest = &rest[len..];
    }
    (!rest.is_empty()).then_some(rest)
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
