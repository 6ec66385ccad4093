//! permessage-deflate (RFC 7692) without context takeover: each message is compressed by itself, so
//! the same compressed bytes are right for every connection that agreed on it.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::Kind;
use super::encode::Header;

/// What ends a compressed block, and is left out of a message (RFC 7692, 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];
/// Messages that are shorter go out as they are: nothing would be gained.
const WORTH_BYTES: usize = 64;
/// Room that is made for output at once.
const STEP: usize = 16 * 1024;

/// The offer of a client that a server takes: all values of `Sec-WebSocket-Extensions`, and whether
/// one of them is permessage-deflate with parameters that can be kept. A window of the server that
/// is smaller than the usual one cannot.
#[must_use]
pub fn is_offered<'h>(mut offers: impl Iterator<Item = &'h [u8]>) -> bool {
    offers.any(|offer| {
        let mut parts = offer.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        if parts.next() != Some(b"permessage-deflate") {
            return false;
        }
        let mut seen = [false; 4];
        parts.all(|part| {
            let mut sides = part.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
            let name = sides.next().unwrap_or_default();
            let value = sides.next().map(|value| {
                value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value)
            });
            let (index, fits) = match name {
                b"server_no_context_takeover" => (0, value.is_none()),
                b"client_no_context_takeover" => (1, value.is_none()),
                b"server_max_window_bits" => (2, value == Some(b"15")),
                b"client_max_window_bits" => (3, value.is_none_or(is_window)),
                _ => return false,
            };
            fits && !std::mem::replace(&mut seen[index], true)
        })
    })
}

fn is_window(bits: &[u8]) -> bool {
    matches!(bits, b"8" | b"9" | b"10" | b"11" | b"12" | b"13" | b"14" | b"15")
}

/// What the server answers to an offer that it takes.
pub const ANSWER: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// Why a compressed message cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It is no compressed data.
    Broken,
    /// What comes out is longer than a message may be.
    TooBig,
}

/// Compresses and decompresses messages, one after the other, of any connection.
#[derive(Debug)]
pub struct Deflate {
    compress: Compress,
    decompress: Decompress,
    /// A message while it is compressed.
    compressed: Vec<u8>,
}

impl Default for Deflate {
    fn default() -> Self {
        Self {
            compress: Compress::new(Compression::fast(), false),
            decompress: Decompress::new(false),
            compressed: Vec::new(),
        }
    }
}

impl Deflate {
    /// Appends a WebSocket message, compressed if that makes it shorter.
    pub fn message(&mut self, kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
        let mut compressed = std::mem::take(&mut self.compressed);
        compressed.clear();
        if self.compress(payload, &mut compressed) {
            let header = Header::new(kind, compressed.len()).compressed();
            out.extend_from_slice(header.as_slice());
            out.extend_from_slice(&compressed);
        } else {
            out.extend_from_slice(Header::new(kind, payload.len()).as_slice());
            out.extend_from_slice(payload);
        }
        self.compressed = compressed;
    }

    /// Appends a message compressed, unless it would not get shorter; whether it was.
    pub fn compress(&mut self, message: &[u8], out: &mut Vec<u8>) -> bool {
        if message.len() < WORTH_BYTES {
            return false;
        }
        let start = out.len();
        self.compress.reset();
        let mut used = 0;
        let whole = loop {
            out.reserve(STEP.min(message.len() + 64));
            let before = self.compress.total_in();
            let done = self.compress.compress_vec(&message[used..], out, FlushCompress::Sync);
            used += (self.compress.total_in() - before) as usize;
            // Room that was not needed: the flush is whole.
            if done.is_ok() && used == message.len() && out.len() < out.capacity() {
                break out.ends_with(&TAIL);
            }
            if done.is_err() || out.len() - start >= message.len() + TAIL.len() {
                break false;
            }
        };
        let len = out.len() - start;
        if whole && len < message.len() + TAIL.len() {
            out.truncate(out.len() - TAIL.len());
            return true;
        }
        out.truncate(start);
        false
    }

    /// Puts what a compressed message says into `out`, in place of what is there.
    ///
    /// # Errors
    /// [`Unreadable`]; what came out so far is in `out`, never more than `max` bytes.
    pub fn decompress(
        &mut self,
        message: &[u8],
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Unreadable> {
        out.clear();
        self.decompress.reset(false);
        for mut rest in [message, &TAIL[..]] {
            loop {
                if out.len() == out.capacity() {
                    out.reserve(STEP.min(max + 1 - out.len().min(max)));
                }
                let before = (self.decompress.total_in(), out.len());
                let status = self.decompress.decompress_vec(rest, out, FlushDecompress::Sync);
                let taken = (self.decompress.total_in() - before.0) as usize;
                rest = &rest[taken..];
                if out.len() > max {
                    out.truncate(max);
                    return Err(Unreadable::TooBig);
                }
                match status {
                    Err(_) => return Err(Unreadable::Broken),
                    // A block that ends the stream: the message has nothing after it.
                    Ok(flate2::Status::StreamEnd) => {
                        self.decompress.reset(false);
                        if rest.is_empty() {
                            break;
                        }
                    }
                    Ok(_) => {}
                }
                let stands = taken == 0 && out.len() == before.1;
                if (rest.is_empty() || stands) && out.len() < out.capacity() {
                    break;
                }
            }
            if !rest.is_empty() {
                return Err(Unreadable::Broken);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "deflate_tests.rs"]
mod tests;
