//! Stage 1: what finished. Bytes become frames, frames become requests; writes that ended
//! free their connection for the next.

use tracing::debug;

use super::conn::{Conn, ConnState, WAITS};
use super::expire::ask_after_ms;
use super::replies::{LAST_WORDS_MS, Refusal};
use super::{ConnId, Event, Io, RecvEnd, Shard};
use crate::position::Nanos;
use crate::wire::{self, ClientFrame, ErrorCode, Hello, ServerFrame, Welcome, WireError};

/// Control buffers kept for reuse.
pub(super) const SPARE_CONTROL_MAX: usize = 256;

impl Shard {
    pub(super) fn take(&mut self, io: &mut impl Io) {
        self.check_tokens(io);
        self.inflate_waiting(io);
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                Event::Accepted { conn } => self.accepted(conn, io),
                Event::Received { conn, buf } => {
                    self.figures.read_bytes += u64::from(buf.len);
                    self.received(conn, io.bytes(&buf), io.now());
                    io.release(buf);
                    self.pause_if_needed(conn, io);
                }
                Event::RecvEnded { conn, why } => self.recv_ended(conn, why, io),
                Event::SendProgress { conn } => {
                    let now = io.now();
                    if let Some(conn) = self.conn(conn) {
                        conn.progress_at = now;
                    }
                }
                Event::Sent { conn, result } => self.sent(conn, result, io),
                // The shard forgot the connection when it closed it.
                Event::Closed { .. } => {}
                Event::Unsent { conn, result } => self.unsent(conn, result),
                Event::LogWritten { result, buf } => self.log_written(result, buf),
                Event::LogRead { token, result } => self.history_read(token, result),
                Event::JobDone { job, result } => self.job_done(job, result, io.now()),
            }
        }
        self.events = events;
        self.take_control_bufs(io);
    }

    /// Takes the buffers of control frames back that were written.
    fn take_control_bufs(&mut self, io: &mut impl Io) {
        while self.spare_control.len() < SPARE_CONTROL_MAX {
            let buf = io.control_buf();
            if buf.capacity() == 0 {
                return;
            }
            self.spare_control.push(buf);
        }
    }

    fn accepted(&mut self, id: ConnId, io: &mut impl Io) {
        self.conns.put(id.slot, Conn::new(id, io.now()));
        self.figures.connections += 1;
        self.figures.accepted += 1;
        if self.figures.connections > u64::from(self.config.connections_max) {
            let text = "this shard holds as many connections as it may; try again later";
            let refusal = Refusal::new(ErrorCode::TooManyConnections, text)
                .limit(u64::from(self.config.connections_max));
            self.refuse(id, 0, refusal);
        }
        let first_look_ms = match ask_after_ms(self.config.heartbeat_ms) {
            0 => u64::from(self.config.handshake_timeout_ms),
            ask_ms => ask_ms.min(u64::from(self.config.handshake_timeout_ms)),
        };
        self.wheel.arm(id, io.now().plus_ms(first_look_ms));
    }

    fn received(&mut self, id: ConnId, bytes: &[u8], now: Nanos) {
        if self.conn(id).is_some_and(|conn| conn.tls.is_some()) {
            self.decrypt(id, bytes, now);
        } else {
            self.readable(id, bytes, now);
        }
    }

    /// Takes up a connection that had to wait; what it sent is in its unfinished bytes.
    pub(super) fn go_on(&mut self, id: ConnId, io: &mut impl Io) {
        let Some(conn) = self.conn(id) else { return };
        conn.throttled &= !WAITS;
        self.readable(id, &[], io.now());
        self.pause_if_needed(id, io);
        self.resume_if_possible(id, io);
    }

    /// Cuts the bytes into frames. Only the end of an unfinished frame is copied.
    pub(super) fn readable(&mut self, id: ConnId, bytes: &[u8], now: Nanos) {
        let Some(conn) = self.conn(id) else { return };
        if conn.state == ConnState::Closing {
            return;
        }
        if conn.ws.is_some() {
            self.messages(id, bytes);
        } else if conn.partial.is_empty() {
            let used = self.frames(id, bytes);
            self.keep_partial(id, &bytes[used..]);
        } else {
            let mut whole = std::mem::take(&mut conn.partial);
            self.figures.partial_bytes -= whole.len() as u64;
            whole.extend_from_slice(bytes);
            let used = self.frames(id, &whole);
            whole.drain(..used);
            if let Some(conn) = self.conn(id)
                && conn.state != ConnState::Closing
                && !whole.is_empty()
            {
                let bytes = whole.len() as u64;
                conn.partial = whole;
                self.figures.partial_bytes += bytes;
            }
        }
        // Not before HELLO: dripping bytes must not move the handshake deadline.
        if let Some(conn) = self.conn(id)
            && conn.state == ConnState::Open
        {
            conn.heard_at = now;
        }
    }

    fn keep_partial(&mut self, id: ConnId, rest: &[u8]) {
        if let Some(conn) = self.conn(id)
            && conn.state != ConnState::Closing
            && !rest.is_empty()
        {
            conn.partial.extend_from_slice(rest);
            self.figures.partial_bytes += rest.len() as u64;
        }
    }

    /// Handles every whole frame at the start of `bytes`; returns how many bytes they took.
    pub(super) fn frames(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let mut used = 0;
        match self.conn(id).map(|conn| conn.state) {
            Some(ConnState::Opening) => {
                used = self.opening(id, bytes);
                if self.conn(id).is_none_or(|conn| conn.state != ConnState::Greeting) {
                    return used;
                }
            }
            Some(ConnState::Upgrading) => return self.upgrade(id, bytes),
            _ => {}
        }
        loop {
            let frame_max = self.frame_max_of(id);
            match wire::split(&bytes[used..], frame_max) {
                Ok(Some((frame, _))) if self.must_wait(id, frame) => return used,
                Ok(Some((frame, len))) => {
                    self.frame(id, frame);
                    used += len;
                }
                Ok(None) => return used,
                Err(error) => {
                    let text = error.to_string();
                    let refusal = match error {
                        WireError::TooShort { .. } => Refusal::new(ErrorCode::FrameTooShort, &text),
                        _ => Refusal::new(ErrorCode::FrameTooLong, &text).limit(frame_max as u64),
                    };
                    self.refuse(id, 0, refusal);
                    return bytes.len();
                }
            }
            if self.conn(id).is_none_or(|conn| conn.state == ConnState::Closing) {
                return bytes.len();
            }
        }
    }

    pub(super) fn frame(&mut self, id: ConnId, frame: wire::Frame<'_>) {
        let decoded = match ClientFrame::decode(frame) {
            Ok(decoded) => decoded,
            Err(error) => return self.malformed(id, frame, error),
        };
        let state = self.conn(id).map_or(ConnState::Closing, |conn| conn.state);
        let (open, proving) = (state == ConnState::Open, state == ConnState::Proving);
        match decoded {
            ClientFrame::Hello(hello) if !open && !proving => self.hello(id, &hello),
            ClientFrame::Auth(auth) if proving => self.authenticate(id, &auth),
            _ if !open && !proving => {
                let text = "the first frame of a connection must be HELLO";
                self.refuse(id, 0, Refusal::new(ErrorCode::OutOfState, text));
            }
            ClientFrame::Hello(_) => {
                let text = "HELLO came twice on one connection";
                self.refuse(id, 0, Refusal::new(ErrorCode::OutOfState, text));
            }
            _ if proving => {
                let text = "this server takes nobody without a token; send AUTH behind HELLO";
                self.refuse(id, 0, Refusal::new(ErrorCode::AuthRequired, text));
            }
            ClientFrame::Join(join) => self.join(id, &join),
            ClientFrame::Leave(leave) => self.leave(id, &leave),
            ClientFrame::Publish(publish) => self.enqueue(id, &publish),
            ClientFrame::Ack(acks) => self.ack(id, &acks),
            // That it was heard is all it is for.
            ClientFrame::QuietPing { .. } => {}
            ClientFrame::Ping { token } => {
                self.control(id, |out| ServerFrame::encode_pong(out, token));
            }
            ClientFrame::Probed { token } => self.probed(id, token),
            ClientFrame::Fetch(fetch) => self.ask_fetch(id, &fetch),
            ClientFrame::SetState(set) => self.ask_set(id, &set),
            ClientFrame::Sync(sync) => self.ask_sync(id, &sync),
            ClientFrame::RosterQuery(query) => self.ask_roster(id, &query),
            ClientFrame::Auth(auth) => self.authenticate(id, &auth),
            ClientFrame::Unknown { kind } => self.unknown(id, 0, kind),
        }
    }

    fn unknown(&mut self, id: ConnId, request: u32, kind: u8) {
        let text = "this server does not know frames of this kind; see PROTOCOL.md";
        let refusal = Refusal::new(ErrorCode::UnknownFrame, text).limit(u64::from(kind));
        self.refuse(id, request, refusal);
    }

    fn malformed(&mut self, id: ConnId, frame: wire::Frame<'_>, error: WireError) {
        let field = match error {
            WireError::Malformed { field, .. } => field,
            _ => "",
        };
        let text = error.to_string();
        let refusal = Refusal::new(ErrorCode::Malformed, &text).field(field.as_bytes());
        self.refuse(id, frame.request(), refusal);
        if self.conn(id).is_some_and(|conn| conn.state != ConnState::Open) {
            self.close_after_control(id, ErrorCode::Malformed);
        }
    }

    fn hello(&mut self, id: ConnId, hello: &Hello<'_>) {
        if hello.version_min > wire::VERSION || hello.version_max < wire::VERSION {
            let text = format!(
                "the client speaks versions {} to {}, this server speaks {}",
                hello.version_min,
                hello.version_max,
                wire::VERSION
            );
            let refusal =
                Refusal::new(ErrorCode::VersionUnsupported, &text).limit(u64::from(wire::VERSION));
            return self.refuse(id, 0, refusal);
        }
        if hello.encoding != 0 {
            let text = format!("encoding {} is not served; use 0, the native one", hello.encoding);
            let refusal = Refusal::new(ErrorCode::EncodingUnsupported, &text).field(b"encoding");
            return self.refuse(id, 0, refusal);
        }
        let asked = self.tokens.are_asked_for();
        if let Some(conn) = self.conn(id) {
            conn.state = ConnState::Proving;
            conn.member = hello.member.into();
            conn.producer = hello.producer;
        }
        if !asked {
            self.welcome(id);
        }
    }

    /// Opens a connection whose HELLO, and token if one is asked for, were accepted.
    pub(super) fn welcome(&mut self, id: ConnId) {
        if !self.may_connect(id) {
            return;
        }
        let moment = self.heartbeats.take(self.now);
        let welcome = Welcome {
            version: wire::VERSION,
            node: self.node,
            shard: self.id,
            heartbeat_ms: self.config.heartbeat_ms,
            payload_max: self.config.payload_max,
            frame_max: self.config.frame_max() as u32,
            groups_per_member_max: self.config.groups_per_member_max,
            ack_every: self.config.ack_every,
            ack_interval_ms: self.config.ack_interval_ms,
            ack_timeout_ms: self.config.ack_timeout_ms,
            publish_window: self.config.publish_window,
            heartbeat_slot_ms: moment.map_or(0, |(_, after_ms)| after_ms),
            producer_ttl_ms: u32::try_from(self.config.producer_ttl_ms).unwrap_or(u32::MAX),
        };
        if let Some(conn) = self.conn(id) {
            conn.state = ConnState::Open;
            conn.moment = moment.map(|(moment, _)| moment);
        }
        self.begin_health(id.slot);
        self.control(id, |out| welcome.encode(out));
        self.tell_drain(id);
    }

    fn recv_ended(&mut self, id: ConnId, why: RecvEnd, io: &mut impl Io) {
        let Some(conn) = self.conn(id) else { return };
        match why {
            RecvEnd::Paused => {
                conn.recv_off = true;
                self.resume_if_possible(id, io);
            }
            RecvEnd::Eof => self.close(id, io),
            RecvEnd::Failed(errno) => {
                debug!(slot = id.slot, errno, "connection failed");
                self.close(id, io);
            }
        }
    }

    fn sent(&mut self, id: ConnId, result: Result<(), i32>, io: &mut impl Io) {
        let slow_ns = self.normal.slow_ns();
        let Some(conn) = self.conns.get_mut(id.slot) else { return };
        if conn.id != id || !conn.in_flight {
            return;
        }
        conn.in_flight = false;
        self.writes_in_flight -= 1;
        let closing = conn.state == ConnState::Closing;
        if let Err(errno) = result {
            debug!(slot = id.slot, errno, "write failed");
            return self.close(id, io);
        }
        if conn.drainage.finished(io.now(), slow_ns) {
            self.judge(id.slot);
        } else if conn.is_at_rest() && !closing && !conn.recv_off && conn.parked.is_none() {
            return;
        }
        let Some(conn) = self.conns.get_mut(id.slot) else { return };
        if let Some(tls) = &mut conn.tls {
            self.pins.unpin(std::mem::take(&mut tls.in_flight));
        }
        if closing && conn.control.is_empty() && !conn.has_tls_output() {
            io.shutdown_write(id);
            self.wheel.arm(id, io.now().plus_ms(LAST_WORDS_MS));
            return;
        }
        let has_parked = conn.parked.is_some();
        if conn.has_output() {
            self.make_ready(id.slot);
        }
        if has_parked {
            self.unpark(id);
        }
        self.resume_if_possible(id, io);
    }

    pub(super) fn pause_if_needed(&mut self, id: ConnId, io: &mut impl Io) {
        let Some(conn) = self.conns.get(id.slot) else { return };
        if conn.id == id && !conn.paused && self.must_pause(conn) {
            io.pause_recv(id);
            if let Some(conn) = self.conn(id) {
                conn.paused = true;
            }
        }
    }

    pub(super) fn resume_if_possible(&mut self, id: ConnId, io: &mut impl Io) {
        let Some(conn) = self.conns.get(id.slot) else { return };
        if conn.id == id && conn.recv_off && !self.must_pause(conn) {
            io.resume_recv(id);
            let now = io.now();
            if let Some(conn) = self.conn(id) {
                conn.paused = false;
                conn.recv_off = false;
                conn.heard_at = now;
            }
        }
    }

    /// Ends a connection now: its memberships go, what is in flight is cancelled. Its slot
    /// is free after [`Event::Closed`].
    pub(super) fn close(&mut self, id: ConnId, io: &mut impl Io) {
        self.leave_all(id);
        if self.conn(id).is_some() {
            self.end_health(id.slot);
        }
        let Some(conn) = self.conn(id) else { return };
        let (partial, moment) = (conn.unfinished() as u64, conn.moment);
        let encrypted = conn.tls.as_ref().map_or(0, |tls| tls.in_flight);
        if conn.in_flight {
            self.writes_in_flight -= 1;
        }
        self.pins.unpin(encrypted);
        // It goes at once: later events of this name find nothing and are ignored.
        if let Some(conn) = self.conns.remove(id.slot) {
            self.rates.leave(id, &conn.member, self.now);
        }
        self.tokens.forget(id);
        if let Some(moment) = moment {
            self.heartbeats.give_back(moment);
        }
        self.figures.partial_bytes -= partial;
        self.figures.connections -= 1;
        io.close(id);
    }
}
