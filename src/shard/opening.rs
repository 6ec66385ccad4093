//! What a connection speaks, by its first bytes: the native protocol, HTTP that asks for a
//! WebSocket, or TLS with one of them within it.

use super::conn::ConnState;
use super::replies::Refusal;
use super::{ConnId, Shard};
use crate::tls::HANDSHAKE_RECORD;
use crate::wire::{self, ErrorCode};
use crate::ws::upgrade::{self, Refused};

impl Shard {
    /// Tells by its first bytes what a connection speaks; returns how many of them are done with.
    pub(super) fn opening(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let encrypted = self.conn(id).is_some_and(|conn| conn.tls.is_some());
        if bytes.first() == Some(&HANDSHAKE_RECORD) && !encrypted {
            self.begin_tls(id, bytes);
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
        if self.config.tls_required && !encrypted {
            if http {
                self.refuse_upgrade(id, Refused::TLS_REQUIRED);
            } else {
                let text = "this server is reached by TLS only; connect with it";
                self.refuse(id, 0, Refusal::new(ErrorCode::TlsRequired, text));
            }
            return bytes.len();
        }
        if let Some(conn) = self.conn(id) {
            conn.state = if http { ConnState::Upgrading } else { ConnState::Greeting };
        }
        if http { self.upgrade(id, bytes) } else { wire::MAGIC.len() }
    }
}
