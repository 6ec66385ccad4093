//! What a connection speaks, by its first bytes: the native protocol, HTTP that asks for a
//! WebSocket, or TLS, which is not served.

use tracing::debug;

use super::conn::ConnState;
use super::replies::Refusal;
use super::{ConnId, Shard};
use crate::wire::{self, ErrorCode};
use crate::ws::upgrade;

/// First byte of a TLS connection: a record of the handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// A TLS record with the fatal alert `handshake_failure` (RFC 8446, 6.2), which TLS clients
/// report as such.
const TLS_REFUSED: [u8; 7] = [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 40];

impl Shard {
    /// Tells by its first bytes what a connection speaks; returns how many of them are done with.
    pub(super) fn opening(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        if bytes.first() == Some(&TLS_HANDSHAKE) {
            debug!(slot = id.slot, "a connection opened with TLS, which is not served");
            self.control(id, |out| out.extend_from_slice(&TLS_REFUSED));
            self.end_after_control(id);
            return bytes.len();
        }
        let seen = bytes.len().min(wire::MAGIC.len());
        let http = upgrade::may_begin(bytes);
        if bytes[..seen] != wire::MAGIC[..seen] && !http {
            let text = "the connection opened neither with FNFR nor with an HTTP request";
            self.refuse(id, 0, Refusal::new(ErrorCode::BadMagic, text));
            return bytes.len();
        }
        if seen < wire::MAGIC.len() {
            return 0;
        }
        if let Some(conn) = self.conn(id) {
            conn.state = if http { ConnState::Upgrading } else { ConnState::Greeting };
        }
        if http { self.upgrade(id, bytes) } else { wire::MAGIC.len() }
    }
}
