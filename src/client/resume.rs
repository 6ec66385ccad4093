//! What a client needs from its former life.

use super::event::GroupName;
use crate::limits::GROUP_NAME_MAX;
use crate::position::{Epoch, Handle, ProducerId, Seq};

/// What an application may keep and give back, to go on where it was after a restart: how far
/// it is in each group, and the numbers of its publishes.
///
/// Keep it after messages were handled. Publishes that had no answer are not part of it: publish
/// them again, in the same order, before new ones. They get the numbers that they had, so that
/// the server keeps one copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Identity under which the client publishes.
    pub producer: ProducerId,
    /// The groups that it has joined or published to.
    pub groups: Vec<ResumeGroup>,
}

/// One group of a [`Resume`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeGroup {
    /// The group.
    pub name: GroupName,
    /// The server's number of it, 0 if it is not known.
    pub handle: Handle,
    /// Epoch and place of the last message that was handled, if it was joined.
    pub handled: Option<(Epoch, Seq)>,
    /// Number of the first publish without an answer.
    pub unanswered: u64,
    /// First number that was never used.
    pub unused: u64,
}

const MAGIC: [u8; 4] = *b"FRS1";

impl Resume {
    /// As bytes, to be kept in a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.producer);
        for group in &self.groups {
            let (epoch, seq) = group.handled.unwrap_or_default();
            out.push(group.name.len() as u8);
            out.push(u8::from(group.handled.is_some()));
            out.extend_from_slice(&epoch.0.to_le_bytes());
            for number in [group.handle.0, seq.0, group.unanswered, group.unused] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&group.name);
        }
        out
    }

    /// From those bytes; `None` if they are none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (producer, mut rest) = rest.split_first_chunk::<16>()?;
        let mut groups = Vec::new();
        while let Some(([len, placed], fields)) = rest.split_first_chunk::<2>() {
            let (epoch, fields) = fields.split_first_chunk::<4>()?;
            let (numbers, fields) = fields.split_first_chunk::<32>()?;
            let number = |at: usize| {
                numbers
                    .get(8 * at..)
                    .and_then(|n| n.first_chunk())
                    .map_or(0, |n| u64::from_le_bytes(*n))
            };
            let (name, after) = fields.split_at_checked(usize::from(*len))?;
            if !(1..=GROUP_NAME_MAX).contains(&name.len()) {
                return None;
            }
            let place = (Epoch(u32::from_le_bytes(*epoch)), Seq(number(1)));
            groups.push(ResumeGroup {
                name: name.into(),
                handle: Handle(number(0)),
                handled: (*placed != 0).then_some(place),
                unanswered: number(2),
                unused: number(3),
            });
            rest = after;
        }
        rest.is_empty().then_some(Self { producer: *producer, groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_give_back_what_was_kept_and_cut_bytes_give_nothing() {
        let resume = Resume {
            producer: *b"0123456789abcdef",
            groups: vec![
                ResumeGroup {
                    name: b"news"[..].into(),
                    handle: Handle(7),
                    handled: Some((Epoch(2), Seq(300))),
                    unanswered: 4,
                    unused: 9,
                },
                ResumeGroup {
                    name: b"a"[..].into(),
                    handle: Handle(0),
                    handled: None,
                    unanswered: 1,
                    unused: 1,
                },
            ],
        };
        let bytes = resume.to_bytes();
        assert_eq!(Resume::from_bytes(&bytes), Some(resume));
        let whole = [20, 20 + 38 + 4, bytes.len()];
        for cut in 0..bytes.len() {
            let read = Resume::from_bytes(&bytes[..cut]);
            assert_eq!(read.is_some(), whole.contains(&cut), "cut at {cut}");
        }
    }
}
