//! Bytes that came and were not taken yet.

use crate::limits::FRAME_MAX;
use crate::wire::{FRAME_HEADER, Frame, WireError, split};

/// Longest frame that is accepted, after the length field, whatever WELCOME says.
pub(super) const SERVER_FRAME_MAX: usize = FRAME_MAX + 64 * 1024;
/// Longest frame before WELCOME: an ERROR with its text.
const FIRST_FRAME_MAX: usize = 1024;
/// With more than this waiting there is no need to receive.
const ENOUGH: usize = 256 * 1024;

/// A buffer of received bytes that gives out whole frames.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Vec<u8>,
    used: usize,
    frame_max: usize,
}

impl Input {
    pub fn new() -> Self {
        Self { bytes: Vec::new(), used: 0, frame_max: FIRST_FRAME_MAX }
    }

    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// The server's limit is known.
    pub fn set_frame_max(&mut self, frame_max: u32) {
        self.frame_max = (frame_max as usize).clamp(FIRST_FRAME_MAX, SERVER_FRAME_MAX);
    }

    /// Whether more should be received before frames are taken.
    pub fn wants_more(&self) -> bool {
        self.bytes.len() - self.used < ENOUGH.max(self.frame_max + FRAME_HEADER)
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.used == self.bytes.len() {
            self.bytes.clear();
            self.used = 0;
        } else if self.used > ENOUGH || self.used > self.bytes.len() / 2 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, WireError> {
        let rest = self.bytes.get(self.used..).unwrap_or_default();
        let Some((frame, len)) = split(rest, self.frame_max)? else { return Ok(None) };
        self.used += len;
        Ok(Some(frame))
    }
}
