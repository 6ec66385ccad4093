//! TLS between the socket and the protocols. Pure: bytes in, bytes out; who calls has the
//! sockets and the clock.
//!
//! ```text
//!  socket ──► Tls::receive ──► plaintext ──► native frames or WebSocket
//!  socket ◄── ciphertext   ◄── Tls::encrypt ◄── the parts of one write
//!         ◄── Tls::take_output: handshake, alerts, key updates
//! ```

pub mod files;

use std::fmt;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncryptError};
use rustls::{HandshakeKind, ServerConfig};

use crate::limits::TLS_HANDSHAKE_BYTES_MAX;

/// First byte of a TLS connection: the type of a handshake record (RFC 8446, 5.1).
pub const HANDSHAKE_RECORD: u8 = 0x16;
/// A record with the fatal alert `handshake_failure` (RFC 8446, 6.2), which TLS clients report as
/// such.
pub const REFUSED: [u8; 7] = [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 40];
/// Type, version and length.
const RECORD_HEADER: usize = 5;
/// Longest plaintext of a record (RFC 8446, 5.1).
const RECORD_PLAINTEXT_MAX: usize = 16 * 1024;
/// What encryption adds to a record at most: header, explicit nonce, content type and tag.
const RECORD_EXTRA: usize = RECORD_HEADER + 8 + 1 + 16;

/// What the peer must not have done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The protocol was broken, or the peer could not show who it is.
    #[error(transparent)]
    Protocol(#[from] rustls::Error),
    /// The handshake is longer than any that is meant.
    #[error("a handshake of more than {TLS_HANDSHAKE_BYTES_MAX} bytes")]
    HandshakeTooLong,
    /// A connection may encrypt so much with one key, and it cannot get another (TLS 1.2).
    #[error("the keys of the connection are used up")]
    KeysUsedUp,
}

/// Where a TLS connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    Open,
    /// The peer has ended its direction.
    PeerClosed,
    /// Nothing is to be expected of it any more.
    Failed,
}

/// The server's side of one TLS connection.
pub struct Tls {
    conn: UnbufferedServerConnection,
    /// Records that are not handled yet, or not whole.
    incoming: Vec<u8>,
    /// What the layer itself has to say.
    output: Vec<u8>,
    stage: Stage,
    /// Something of the handshake went out. From then on a peer of TLS 1.3 takes encrypted records
    /// alone.
    answered: bool,
    /// The connection waits for its turn to go on with the handshake.
    pub queued: bool,
    /// Ciphertext of the write in flight.
    pub in_flight: usize,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Tls {
    /// A connection of which nothing has come.
    ///
    /// # Errors
    /// The configuration is of no use; those of [`files`] are.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        Ok(Self {
            conn: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            output: Vec::new(),
            stage: Stage::Handshake,
            answered: false,
            queued: false,
            in_flight: 0,
        })
    }

    /// Whether the handshake is not finished.
    #[must_use]
    pub fn is_handshake(&self) -> bool {
        self.stage == Stage::Handshake
    }

    /// Whether the peer has said that it sends nothing more.
    #[must_use]
    pub fn is_peer_closed(&self) -> bool {
        self.stage == Stage::PeerClosed
    }

    /// Whether so much waits for its turn to be handled that no more should come.
    #[must_use]
    pub fn waits_with_much(&self) -> bool {
        self.queued && self.incoming.len() > RECORD_PLAINTEXT_MAX
    }

    /// Whether what is sent can be encrypted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::PeerClosed)
    }

    /// Whether the session of an earlier connection was taken up.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Ends a connection whose handshake is not finished: with an alert if nothing was answered yet,
    /// else without a word.
    pub fn refuse(&mut self) {
        self.fail(TlsError::HandshakeTooLong);
    }

    /// Bytes kept of what came.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.incoming.len()
    }

    /// Whether the layer itself has something to send.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes that. It goes before everything that is encrypted later.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.answered |= !self.output.is_empty();
        std::mem::take(&mut self.output)
    }

    /// Keeps bytes of a handshake for [`Tls::step`]; whether that can do something with them.
    pub fn keep(&mut self, bytes: &[u8]) -> bool {
        self.incoming.extend_from_slice(bytes);
        let [_, _, _, high, low, rest @ ..] = &self.incoming[..] else { return false };
        rest.len() >= usize::from(u16::from_be_bytes([*high, *low]))
    }

    /// Goes on with the handshake. Appends what follows it to `plain`.
    ///
    /// # Errors
    /// The connection is over when [`Tls::take_output`] was sent, which says why.
    pub fn step(&mut self, plain: &mut Vec<u8>) -> Result<(), TlsError> {
        let mut records = std::mem::take(&mut self.incoming);
        let result = self.process(&mut records, plain);
        if !records.is_empty() {
            self.incoming = records;
        }
        result?;
        if self.is_handshake() && self.incoming.len() > TLS_HANDSHAKE_BYTES_MAX {
            return Err(self.fail(TlsError::HandshakeTooLong));
        }
        Ok(())
    }

    /// Decrypts what came after the handshake and appends it to `plain`. Records are decrypted
    /// in `scratch`, so that only the start of an unfinished one is kept.
    ///
    /// # Errors
    /// As [`Tls::step`]. What `plain` has by then is good.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        scratch: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        scratch.clear();
        if self.incoming.is_empty() {
            scratch.extend_from_slice(bytes);
            let result = self.process(scratch, plain);
            self.incoming.extend_from_slice(scratch);
            result
        } else {
            self.incoming.extend_from_slice(bytes);
            self.step(plain)
        }
    }

    /// Has the end of this direction said. What was not encrypted before cannot follow.
    pub fn end(&mut self) {
        let mut output = std::mem::take(&mut self.output);
        // A connection that is over has nothing to say.
        let _ = self.close(&mut output);
        self.output = output;
    }

    /// Handles whole records and leaves the others in `records`.
    fn process(&mut self, records: &mut Vec<u8>, plain: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.stage == Stage::Failed {
            records.clear();
            return Ok(());
        }
        let mut used = 0;
        let result = loop {
            let status = self.conn.process_tls_records(&mut records[used..]);
            let mut discard = status.discard;
            match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        plain.extend_from_slice(record.payload);
                        discard += record.discard;
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.output, |out| data.encode(out))
                }
                Ok(ConnectionState::TransmitTlsData(sent)) => sent.done(),
                Ok(ConnectionState::PeerClosed) => self.stage = Stage::PeerClosed,
                Ok(ConnectionState::WriteTraffic(_)) => {
                    if self.stage == Stage::Handshake {
                        self.stage = Stage::Open;
                    }
                    used += discard;
                    break Ok(());
                }
                // Early data is off, so it is none of the others.
                Ok(_) => {
                    used += discard;
                    break Ok(());
                }
                Err(error) => break Err(error),
            }
            used += discard;
        };
        let Err(error) = result else {
            records.drain(..used);
            return Ok(());
        };
        // The alert that says so. The same bytes are shown again: rustls may remember where in
        // them a message begins.
        if let Ok(ConnectionState::EncodeTlsData(mut data)) =
            self.conn.process_tls_records(&mut records[used..]).state
        {
            encode(&mut self.output, |out| data.encode(out));
        }
        records.clear();
        Err(self.fail(error.into()))
    }

    /// Appends `plain` to `out` in as few records as it fits into.
    ///
    /// # Errors
    /// The connection is over, or not open.
    pub fn encrypt(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.write(Some(plain), out)
    }

    /// Appends the end of this direction to `out`, so that the peer can tell it from a cut.
    ///
    /// # Errors
    /// As [`Tls::encrypt`].
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.write(None, out)
    }

    fn write(&mut self, plain: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if !self.is_open() {
            return Err(rustls::Error::HandshakeNotComplete.into());
        }
        // What is kept has to be shown, since a handshake message may be spread over records.
        let status = self.conn.process_tls_records(&mut self.incoming);
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state else {
            return Err(rustls::Error::HandshakeNotComplete.into());
        };
        let mut encode = |out: &mut [u8]| match plain {
            Some(plain) => traffic.encrypt(plain, out),
            None => traffic.queue_close_notify(out),
        };
        let (at, len) = (out.len(), plain.map_or(0, <[u8]>::len));
        out.resize(at + len + RECORD_EXTRA * (len / RECORD_PLAINTEXT_MAX + 1), 0);
        let mut written = encode(&mut out[at..]);
        // A message of the layer goes before.
        if let Err(EncryptError::InsufficientSize(size)) = &written {
            out.resize(at + size.required_size, 0);
            written = encode(&mut out[at..]);
        }
        out.truncate(at + written.as_ref().copied().unwrap_or(0));
        written.map(|_| ()).map_err(|_| TlsError::KeysUsedUp)
    }

    fn fail(&mut self, error: TlsError) -> TlsError {
        if self.is_handshake() && self.output.is_empty() && !self.answered {
            self.output.extend_from_slice(&REFUSED);
        }
        self.stage = Stage::Failed;
        self.incoming = Vec::new();
        error
    }
}

/// Appends what `encode` writes when it is given room for it.
fn encode(
    output: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, rustls::unbuffered::EncodeError>,
) {
    use rustls::unbuffered::EncodeError::InsufficientSize;
    let at = output.len();
    let mut written = encode(&mut []);
    if let Err(InsufficientSize(size)) = &written {
        output.resize(at + size.required_size, 0);
        written = encode(&mut output[at..]);
    }
    output.truncate(at + written.unwrap_or(0));
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
