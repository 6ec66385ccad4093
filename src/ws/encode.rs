//! Frames of the server: never masked, never fragmented.

use super::{COMPRESSED, CONTROL_PAYLOAD_MAX, CloseCode, FIN, Kind, Opcode};

/// Longest header of a server: it has no mask.
const HEADER_MAX: usize = 10;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; HEADER_MAX],
    used: u8,
}

impl Header {
    /// The header of a message of `len` bytes.
    #[must_use]
    pub fn new(kind: Kind, len: usize) -> Self {
        let mut bytes = [0; HEADER_MAX];
        bytes[0] = FIN | Opcode::from(kind) as u8;
        let used = match len {
            0..=125 => {
                bytes[1] = len as u8;
                2
            }
            126..=0xFFFF => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..].copy_from_slice(&(len as u64).to_be_bytes());
                10
            }
        };
        Self { bytes, used }
    }

    /// The same for a message that is compressed.
    #[must_use]
    pub fn compressed(mut self) -> Self {
        self.bytes[0] |= COMPRESSED;
        self
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.used)]
    }
}

/// A ping without anything in it.
#[must_use]
pub fn ping() -> [u8; 2] {
    [FIN | Opcode::Ping as u8, 0]
}

/// A pong with what the ping said; `payload` is at most 125 bytes.
pub fn pong(payload: &[u8]) -> impl Iterator<Item = u8> {
    debug_assert!(payload.len() <= CONTROL_PAYLOAD_MAX);
    [FIN | Opcode::Pong as u8, payload.len() as u8].into_iter().chain(payload.iter().copied())
}

/// Appends a close. The reason is cut to what fits; `None` closes without a code.
pub fn close(out: &mut Vec<u8>, code: Option<CloseCode>, reason: &str) {
    let Some(code) = code else { return control(out, Opcode::Close, 0) };
    let mut end = reason.len().min(CONTROL_PAYLOAD_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    control(out, Opcode::Close, 2 + end);
    out.extend_from_slice(&code.0.to_be_bytes());
    out.extend_from_slice(&reason.as_bytes()[..end]);
}

fn control(out: &mut Vec<u8>, opcode: Opcode, len: usize) {
    debug_assert!(len <= CONTROL_PAYLOAD_MAX);
    out.extend_from_slice(&[FIN | opcode as u8, len as u8]);
}
