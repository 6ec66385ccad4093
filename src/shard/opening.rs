//! What a connection speaks, by its first bytes: the native protocol, HTTP that asks for a
//! WebSocket, or TLS with one of them within it.

use super::conn::ConnState;
use super::replies::Refusal;
use super::{ConnId, Shard};
use crate::auth::{OWN_MARK, OWN_OPENING_LEN, is_own_opening};
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
        if bytes.first() == Some(&OWN_MARK) && !encrypted {
            return self.open_own(id, bytes);
        }
        let seen = bytes.len().min(wire::MAGIC.len());
        let http = upgrade::may_begin(bytes);
        if bytes[..seen] != wire::MAGIC[..seen] && !http {
            return self.refuse_opening(id, bytes);
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

    /// A client of this process shows that it is one, and then speaks the native protocol, in plain
    /// also where TLS is required.
    fn open_own(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let len = OWN_OPENING_LEN + wire::MAGIC.len();
        let Some((own, magic)) = bytes.get(..len).map(|all| all.split_at(OWN_OPENING_LEN)) else {
            return 0;
        };
        if magic != wire::MAGIC || !is_own_opening(own) {
            return self.refuse_opening(id, bytes);
        }
        if let Some(conn) = self.conn(id) {
            conn.state = ConnState::Greeting;
        }
        len
    }

    fn refuse_opening(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let text = "the connection opened neither with FNFR nor with an HTTP request";
        self.refuse(id, 0, Refusal::new(ErrorCode::BadMagic, text));
        bytes.len()
    }
}
