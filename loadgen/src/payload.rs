//! What messages contain, such that any damage shows.

use std::path::Path;

use bytes::BufMut;

use crate::error::LoadError;

/// Run id, channel and producer sequence, intended send time: the start of a payload that is
/// long enough to have it.
pub const STAMP_BYTES: usize = 24;
/// Different places in the pattern at which the rest of a payload starts.
const PATTERN_STARTS: usize = 4096;

/// Makes the payload of every message of a run, and checks one that came back.
pub enum Payloads {
    /// Stamped (if there is room) and filled from a random pattern.
    Generated {
        /// Identity of the run.
        run_id: u64,
        /// Bytes of a payload.
        len: usize,
        /// The pattern.
        pattern: Vec<u8>,
    },
    /// Lines of a file, in turn.
    Lines(Vec<Vec<u8>>),
}

/// What names a message, apart from its place in the group.
#[derive(Clone, Copy)]
pub struct Key {
    /// The pair of publisher and group.
    pub channel: u32,
    /// The producer's number of it.
    pub producer_seq: u64,
    /// When it should have been sent.
    pub intended: u64,
}

impl Payloads {
    /// Payloads of `len` bytes.
    pub fn generated(run_id: u64, len: usize) -> Self {
        // xorshift: any pattern in which a shift by one is visible will do.
        let mut x = run_id | 1;
        let pattern = std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        });
        Self::Generated { run_id, len, pattern: pattern.take(len + PATTERN_STARTS).collect() }
    }

    /// The lines of `path`.
    pub fn from_file(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read(path).map_err(LoadError::file(path))?;
        let lines: Vec<Vec<u8>> =
            text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec).collect();
        let longest = lines.iter().map(Vec::len).max().unwrap_or(0);
        if longest == 0 || longest > fanfare::limits::PAYLOAD_MAX {
            return Err(LoadError::Usage(format!(
                "{}: the longest line has {longest} bytes; messages have 1 to {} bytes",
                path.display(),
                fanfare::limits::PAYLOAD_MAX
            )));
        }
        Ok(Self::Lines(lines))
    }

    /// Longest payload of the run.
    pub fn longest(&self) -> usize {
        match self {
            Self::Generated { len, .. } => *len,
            Self::Lines(lines) => lines.iter().map(Vec::len).max().unwrap_or(0),
        }
    }

    /// The part of the message `key` that does not depend on time, and whether a stamp
    /// comes before it.
    fn body(&self, key: Key) -> (&[u8], bool) {
        match self {
            Self::Generated { len, pattern, .. } => {
                let start = (key.producer_seq.wrapping_mul(31) + u64::from(key.channel) * 17)
                    as usize
                    % PATTERN_STARTS;
                let stamped = *len >= STAMP_BYTES;
                let rest = if stamped { len - STAMP_BYTES } else { *len };
                (&pattern[start..start + rest], stamped)
            }
            Self::Lines(lines) => {
                let at = (key.producer_seq + u64::from(key.channel)) as usize % lines.len();
                (&lines[at], false)
            }
        }
    }

    fn stamp(&self, key: Key) -> [u8; STAMP_BYTES] {
        let run_id = if let Self::Generated { run_id, .. } = self { *run_id } else { 0 };
        let mut stamp = [0; STAMP_BYTES];
        let mut out = &mut stamp[..];
        out.put_u64_le(run_id);
        out.put_u32_le(key.channel);
        out.put_u32_le(key.producer_seq as u32);
        out.put_u64_le(key.intended);
        stamp
    }

    /// Appends the payload of `key` to `out`.
    pub fn put(&self, key: Key, out: &mut Vec<u8>) {
        let (body, stamped) = self.body(key);
        if stamped {
            out.extend_from_slice(&self.stamp(key));
        }
        out.extend_from_slice(body);
    }

    /// Whether `payload` is what [`Payloads::put`] made for `key`.
    pub fn is(&self, key: Key, payload: &[u8]) -> bool {
        let (body, stamped) = self.body(key);
        if !stamped {
            return payload == body;
        }
        payload
            .split_at_checked(STAMP_BYTES)
            .is_some_and(|(stamp, rest)| stamp == self.stamp(key) && rest == body)
    }

    /// Whether a payload names its channel and its number there.
    pub fn is_stamped(&self) -> bool {
        matches!(self, Self::Generated { len, .. } if *len >= STAMP_BYTES)
    }

    /// Channel and producer sequence in a payload of this run, if it has a stamp.
    pub fn stamp_of(&self, payload: &[u8]) -> Option<(u32, u32)> {
        let Self::Generated { run_id, len, .. } = self else { return None };
        if payload.len() != *len {
            return None;
        }
        let stamp: &[u8; STAMP_BYTES] = payload.first_chunk()?;
        let (run, rest) = stamp.split_first_chunk::<8>()?;
        let (of, rest) = rest.split_first_chunk::<4>()?;
        let (seq, _) = rest.split_first_chunk::<4>()?;
        let ours = u64::from_le_bytes(*run) == *run_id;
        ours.then(|| (u32::from_le_bytes(*of), u32::from_le_bytes(*seq)))
    }

    /// The producer sequence in a payload of this run and channel, if it has a stamp.
    pub fn producer_seq_of(&self, channel: u32, payload: &[u8]) -> Option<u32> {
        self.stamp_of(payload).filter(|(of, _)| *of == channel).map(|(_, seq)| seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        for len in [1, 23, 24, 25, 128] {
            let payloads = Payloads::generated(77, len);
            let key = Key { channel: 3, producer_seq: 9, intended: 1234 };
            let mut bytes = Vec::new();
            payloads.put(key, &mut bytes);
            assert_eq!(bytes.len(), len);
            assert!(payloads.is(key, &bytes));
            for bit in 0..len * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!payloads.is(key, &bytes));
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}
