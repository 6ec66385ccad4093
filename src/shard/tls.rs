//! TLS connections: decrypting what comes, encrypting what goes, and whose turn it is to go on
//! with a handshake. A handshake takes as long as many writes, so a turn has time for few.

use std::collections::VecDeque;
use std::sync::Arc;

use rustls::ServerConfig;
use tracing::{debug, warn};

use super::conn::ConnState;
use super::take::SPARE_CONTROL_MAX;
use super::{ConnId, Io, Shard};
use crate::fanout::Part;
use crate::limits::{TLS_STEPS_PER_TURN, TLS_WRITE_BYTES_MAX};
use crate::position::Nanos;
use crate::tls::{REFUSED, Tls, TlsError};

/// Room of the shared buffers that is kept.
const SCRATCH_KEPT_MAX: usize = 4 * TLS_WRITE_BYTES_MAX;

/// What the TLS connections of a shard share.
#[derive(Debug)]
pub(super) struct Handshakes {
    config: Option<Arc<ServerConfig>>,
    /// Connections that can go on with their handshake, once each, in the order in which they
    /// could.
    waiting: VecDeque<ConnId>,
    /// Where records are decrypted.
    records: Vec<u8>,
    /// Plaintext: what came, or what is about to be encrypted. Empty between two uses.
    plain: Vec<u8>,
}

impl Handshakes {
    pub fn new(config: Option<Arc<ServerConfig>>) -> Self {
        Self { config, waiting: VecDeque::new(), records: Vec::new(), plain: Vec::new() }
    }

    /// Serves connections that begin from now on by other certificates.
    pub fn serve_by(&mut self, config: Arc<ServerConfig>) {
        self.config = Some(config);
    }

    /// Whether no connection can go on.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn take_plain(&mut self) -> Vec<u8> {
        debug_assert!(self.plain.is_empty(), "what is left would go to another connection");
        std::mem::take(&mut self.plain)
    }

    fn put_plain_back(&mut self, mut plain: Vec<u8>) {
        plain.clear();
        plain.shrink_to(SCRATCH_KEPT_MAX);
        self.plain = plain;
    }
}

impl Shard {
    /// A connection opened with a TLS record.
    pub(super) fn begin_tls(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(config) = &self.handshakes.config else {
            debug!(slot = id.slot, "a connection opened with TLS, which is not configured");
            self.figures.tls_refused += 1;
            self.control(id, |out| out.extend_from_slice(&REFUSED));
            return self.end_after_control(id);
        };
        match Tls::new(config.clone()) {
            Ok(tls) => {
                if let Some(conn) = self.conn(id) {
                    conn.tls = Some(Box::new(tls));
                }
                self.keep_handshake(id, bytes);
            }
            Err(error) => {
                warn!(%error, "no connection with TLS can be begun");
                self.figures.tls_refused += 1;
                self.control(id, |out| out.extend_from_slice(&REFUSED));
                self.end_after_control(id);
            }
        }
    }

    /// Bytes came on a TLS connection.
    pub(super) fn decrypt(&mut self, id: ConnId, bytes: &[u8], now: Nanos) {
        let Some(conn) = self.conns.get_mut(id.slot) else { return };
        if conn.state == ConnState::Closing {
            return;
        }
        if conn.is_in_tls_handshake() {
            return self.keep_handshake(id, bytes);
        }
        let Some(tls) = conn.tls.as_deref_mut() else { return };
        let mut plain = self.handshakes.take_plain();
        let kept = tls.kept() as u64;
        let result = tls.receive(bytes, &mut self.handshakes.records, &mut plain);
        self.figures.partial_bytes = self.figures.partial_bytes + tls.kept() as u64 - kept;
        self.decrypted(id, plain, result, now);
    }

    /// A handshake gets its turn when there is a whole record of it.
    fn keep_handshake(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(tls) = self.conn(id).and_then(|conn| conn.tls.as_deref_mut()) else { return };
        if tls.keep(bytes) && !tls.queued {
            tls.queued = true;
            self.handshakes.waiting.push_back(id);
        }
        self.figures.partial_bytes += bytes.len() as u64;
    }

    /// Stage 1b: the next connections that wait go on with their handshakes.
    pub(super) fn shake_hands(&mut self, io: &mut impl Io) {
        let mut steps = TLS_STEPS_PER_TURN;
        while steps > 0
            && let Some(id) = self.handshakes.waiting.pop_front()
        {
            let Some(conn) = self.conns.get_mut(id.slot).filter(|conn| conn.id == id) else {
                continue;
            };
            let closing = conn.state == ConnState::Closing;
            let Some(tls) = conn.tls.as_deref_mut() else { continue };
            tls.queued = false;
            if closing {
                continue;
            }
            steps -= 1;
            let mut plain = self.handshakes.take_plain();
            let kept = tls.kept() as u64;
            let result = tls.step(&mut plain);
            self.figures.partial_bytes = self.figures.partial_bytes + tls.kept() as u64 - kept;
            if tls.is_open() {
                self.figures.tls_handshakes += 1;
                self.figures.tls_resumed += u64::from(tls.is_resumed());
            }
            self.decrypted(id, plain, result, io.now());
            self.resume_if_possible(id, io);
        }
    }

    /// What a connection has after bytes were decrypted.
    fn decrypted(&mut self, id: ConnId, plain: Vec<u8>, result: Result<(), TlsError>, now: Nanos) {
        if !plain.is_empty() {
            self.readable(id, &plain, now);
        }
        self.handshakes.put_plain_back(plain);
        let Some(conn) = self.conn(id) else { return };
        let Some(tls) = conn.tls.as_deref_mut() else { return };
        match result {
            Err(error) => {
                debug!(slot = id.slot, %error, "a TLS connection ends");
                // What waits cannot be encrypted any more.
                conn.control.clear();
                self.figures.tls_refused += 1;
                self.end_after_control(id);
            }
            // As with a socket that ends: nothing is left that it waits for.
            Ok(()) if tls.is_peer_closed() && conn.state != ConnState::Closing => {
                conn.control.clear();
                tls.end();
                self.end_after_control(id);
            }
            Ok(()) => self.make_ready(id.slot),
        }
    }

    /// The handshake of a connection is given up: it took too long, or its memory is needed.
    pub(super) fn refuse_handshake(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        let Some(tls) = conn.tls.as_deref_mut() else { return };
        let kept = tls.kept() as u64;
        tls.refuse();
        self.figures.partial_bytes -= kept;
        self.figures.tls_refused += 1;
        self.end_after_control(id);
    }

    /// Puts ciphertext in place of the parts of a write; `false` if the connection is over.
    ///
    /// Shared bytes are encrypted for each connection, so what is sent is its own from here on.
    pub(super) fn encrypt(&mut self, slot: u32) -> bool {
        let Some(conn) = self.conns.get_mut(slot) else { return false };
        let closing = conn.state == ConnState::Closing;
        let Some(tls) = conn.tls.as_deref_mut() else { return false };
        let mut out = tls.take_output();
        if out.capacity() == 0 {
            out = self.spare_control.pop().unwrap_or_default();
        }
        if tls.is_open() {
            let mut plain = self.handshakes.take_plain();
            let bytes = match &self.parts[..] {
                [part] => part.as_slice(),
                parts => {
                    // One record costs less than one for each part.
                    parts.iter().for_each(|part| plain.extend_from_slice(part.as_slice()));
                    &plain[..]
                }
            };
            let encrypted = if bytes.is_empty() { Ok(()) } else { tls.encrypt(bytes, &mut out) };
            self.handshakes.put_plain_back(plain);
            if let Err(error) = encrypted {
                debug!(slot, %error, "a TLS connection ends");
                self.figures.tls_refused += 1;
                return false;
            }
            if closing && !tls.is_peer_closed() {
                // Without it the peer takes the end for a cut; there is nothing else to do then.
                let _ = tls.close(&mut out);
            }
        }
        for part in self.parts.drain(..) {
            if let Part::Control(mut buf) = part
                && self.spare_control.len() < SPARE_CONTROL_MAX
            {
                buf.clear();
                self.spare_control.push(buf);
            }
        }
        if !out.is_empty() {
            tls.in_flight = out.len();
            self.pins.pin(out.len());
            self.parts.push(Part::Control(out));
        }
        true
    }
}
