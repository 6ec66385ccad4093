//! WebSocket connections. The upgrade stands before the native protocol, and messages are put
//! around its bytes. In `fanfare.binary.v1` what a write carries is one message, so a segment is
//! neither copied nor encoded again. In `fanfare.json.v1` a segment is encoded once for all members
//! of the shard that need it.

use super::conn::{Conn, ConnState};
use super::replies::Refusal;
use super::{ConnId, Shard};
use crate::fanout::{Form, Part, SegmentRef};
use crate::limits::{WS_ECHO_MAX, WS_MESSAGE_MAX};
use crate::wire::{self, ErrorCode};
use crate::ws::encode::{self, Header};
use crate::ws::json::{self, Framing};
use crate::ws::upgrade::{self, Protocol, Refused, Rules, Upgrade};
use crate::ws::{CloseCode, Decoder, Item, Kind, Violation};

/// What a connection keeps beside when it speaks WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    protocol: Protocol,
    decoder: Decoder,
    /// Bytes at the start of the control queue that are whole WebSocket frames, or the answer to
    /// the upgrade. What follows them are native frames without a message around them yet.
    wrapped: usize,
    /// Bytes of the pong at the end of them, if one is there.
    last_pong: usize,
}

impl WebSocket {
    /// What a member on the tail gets with a write of these segments, which have `native` bytes
    /// together. Returns the bytes of the write.
    pub fn share<'t>(
        &self,
        segments: impl Iterator<Item = &'t SegmentRef>,
        native: usize,
        parts: &mut Vec<Part>,
    ) -> u64 {
        if self.protocol == Protocol::Json {
            parts.extend(segments.map(|segment| Part::Frames(as_json(segment))));
            return parts.iter().map(|part| part.as_slice().len() as u64).sum();
        }
        let header = Header::new(Kind::Binary, native);
        parts.push(Part::Header(header));
        parts.extend(segments.cloned().map(Part::Frames));
        (header.as_slice().len() + native) as u64
    }

    /// Puts messages around everything that a write has: the control frames that wait, and the
    /// parts that follow them.
    pub fn wrap(&mut self, control: &mut Vec<u8>, parts: &mut Vec<Part>, scratch: &mut Vec<u8>) {
        if self.protocol == Protocol::Json {
            self.seal(control, scratch);
            for part in parts {
                if let Part::Frames(segment) = part {
                    *segment = as_json(segment);
                }
            }
        } else {
            let shared: usize = parts.iter().map(|part| part.as_slice().len()).sum();
            let len = control.len() - self.wrapped + shared;
            let header = Header::new(Kind::Binary, len);
            if control.is_empty() {
                parts.insert(0, Part::Header(header));
            } else if len > 0 {
                control.splice(self.wrapped..self.wrapped, header.as_slice().iter().copied());
            }
        }
        (self.wrapped, self.last_pong) = (0, 0);
    }

    /// Puts messages around the control frames that wait, so that others may follow them.
    fn seal(&mut self, control: &mut Vec<u8>, scratch: &mut Vec<u8>) {
        if control.len() == self.wrapped {
            return;
        }
        if self.protocol == Protocol::Json {
            scratch.clear();
            scratch.extend_from_slice(&control[self.wrapped..]);
            control.truncate(self.wrapped);
            json::from_native(scratch, Framing::WebSocket, control);
        } else {
            let header = Header::new(Kind::Binary, control.len() - self.wrapped);
            control.splice(self.wrapped..self.wrapped, header.as_slice().iter().copied());
        }
        (self.wrapped, self.last_pong) = (control.len(), 0);
    }
}

fn as_json(segment: &SegmentRef) -> SegmentRef {
    segment.encoded(Form::Json, |frames, out| json::from_native(frames, Framing::WebSocket, out))
}

impl Conn {
    /// Closes the WebSocket after what waits; the last that its peer gets.
    fn close_websocket(&mut self, code: Option<CloseCode>, reason: &str, scratch: &mut Vec<u8>) {
        if let Some(ws) = &mut self.ws
            && self.state != ConnState::Closing
        {
            ws.seal(&mut self.control, scratch);
            encode::close(&mut self.control, code, reason);
            ws.wrapped = self.control.len();
        }
    }
}

impl Shard {
    /// Handles the request that opens a WebSocket when it is whole; returns how many of the
    /// bytes are done with.
    pub(super) fn upgrade(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let len = match upgrade::request_len(bytes) {
            Ok(None) => return 0,
            Ok(Some(len)) => len,
            Err(refused) => {
                self.refuse_upgrade(id, refused);
                return bytes.len();
            }
        };
        let (request, rest) = bytes.split_at(len);
        let config = &self.config;
        let rules = Rules { origins: &config.websocket_origins, echo: config.websocket_echo };
        match upgrade::judge(request, rules) {
            Ok(upgrade) => {
                self.begin_websocket(id, &upgrade);
                self.messages(id, rest);
            }
            Err(refused) => self.refuse_upgrade(id, refused),
        }
        bytes.len()
    }

    fn begin_websocket(&mut self, id: ConnId, upgrade: &Upgrade) {
        self.control(id, |out| upgrade.respond(out));
        let Some(conn) = self.conn(id) else { return };
        let protocol = upgrade.protocol;
        let (decoder, state) = match protocol {
            Protocol::Binary => {
                (Decoder::new(Some(Kind::Binary), WS_MESSAGE_MAX), ConnState::Greeting)
            }
            Protocol::Json => (Decoder::new(Some(Kind::Text), WS_MESSAGE_MAX), ConnState::Greeting),
            Protocol::Echo => (Decoder::new(None, WS_ECHO_MAX), ConnState::Open),
        };
        let wrapped = conn.control.len();
        conn.ws = Some(Box::new(WebSocket { protocol, decoder, wrapped, last_pong: 0 }));
        conn.state = state;
        if state == ConnState::Open {
            self.begin_health(id.slot);
        }
    }

    /// Answers a request that is not granted, and ends the connection.
    fn refuse_upgrade(&mut self, id: ConnId, refused: Refused) {
        self.control(id, |out| refused.respond(out));
        self.end_after_control(id);
    }

    /// A reason to end a connection whose request is not whole.
    pub(super) fn refuse_begun_upgrade(&mut self, id: ConnId, code: ErrorCode) {
        let late = code == ErrorCode::HandshakeTimeout;
        self.refuse_upgrade(id, if late { Refused::TIMEOUT } else { Refused::BUSY });
    }

    /// Takes messages apart. Native frames are handled as soon as they are whole, whether their
    /// message is or not; what is kept of an unfinished one is what a native connection keeps.
    /// Of JSON it is the message.
    pub(super) fn messages(&mut self, id: ConnId, mut bytes: &[u8]) {
        let Some(conn) = self.conn(id) else { return };
        let kept = !conn.partial.is_empty();
        let partial = std::mem::take(&mut conn.partial);
        self.figures.partial_bytes -= partial.len() as u64;
        let mut frames = if kept { partial } else { std::mem::take(&mut self.unmasked) };
        while let Some(ws) = self.conn(id).and_then(|conn| conn.ws.as_deref_mut()) {
            let item = match ws.decoder.next(&mut bytes, &mut frames) {
                Ok(item) => item,
                Err(violation) => {
                    self.violated(id, violation);
                    break;
                }
            };
            match (ws.protocol, item) {
                (Protocol::Echo, Some(Item::Message(kind))) => self.echo(id, kind, &mut frames),
                (Protocol::Json, Some(Item::Message(_))) => {
                    self.take_json(id, &frames);
                    frames.clear();
                }
                (Protocol::Binary, None | Some(Item::Message(_))) if !frames.is_empty() => {
                    let used = self.frames(id, &frames);
                    frames.drain(..used);
                }
                _ => {}
            }
            match item {
                _ if self.conn(id).is_none_or(|conn| conn.state == ConnState::Closing) => break,
                None => break,
                Some(Item::Message(_)) if !frames.is_empty() => {
                    self.violated(id, Violation::CutOff);
                    break;
                }
                Some(Item::Message(_) | Item::Pong) => {}
                Some(Item::Ping) => self.pong(id),
                Some(Item::Close(code)) => {
                    self.close_websocket(id, code, "");
                    break;
                }
            }
        }
        self.keep_frames(id, frames, kept);
    }

    /// Keeps the start of a frame. A buffer that was the connection's stays its own, so that a
    /// long frame is not copied again with each of its pieces.
    fn keep_frames(&mut self, id: ConnId, mut frames: Vec<u8>, kept: bool) {
        if let Some(conn) = self.conns.get_mut(id.slot)
            && conn.id == id
            && conn.state != ConnState::Closing
            && !frames.is_empty()
        {
            self.figures.partial_bytes += frames.len() as u64;
            if kept {
                conn.partial = std::mem::take(&mut frames);
            } else {
                conn.partial.extend_from_slice(&frames);
            }
        }
        if !kept {
            frames.clear();
            self.unmasked = frames;
        }
    }

    fn take_json(&mut self, id: ConnId, text: &[u8]) {
        let mut native = std::mem::take(&mut self.native);
        native.clear();
        match json::to_native(text, &mut native) {
            // What is too long in a message of this length is told by an error of its own.
            Ok(()) => {
                if let Ok(Some((frame, _))) = wire::split(&native, usize::MAX) {
                    self.frame(id, frame);
                }
            }
            Err(wrong) => {
                let refusal = Refusal::new(wrong.code, &wrong.text).field(wrong.field.as_bytes());
                self.refuse(id, wrong.request, refusal);
                if self.conn(id).is_some_and(|conn| conn.state != ConnState::Open) {
                    self.close_after_control(id, wrong.code);
                }
            }
        }
        self.native = native;
    }

    fn echo(&mut self, id: ConnId, kind: Kind, message: &mut Vec<u8>) {
        let Some(conn) = self.conn(id) else { return };
        let Some(ws) = conn.ws.as_deref_mut() else { return };
        conn.control.extend_from_slice(Header::new(kind, message.len()).as_slice());
        conn.control.append(message);
        (ws.wrapped, ws.last_pong) = (conn.control.len(), 0);
        self.make_ready(id.slot);
    }

    /// Answers the ping that was just taken. Pongs count as control frames: a client that sends
    /// pings and does not read is not read either. Of the pings that came before that takes
    /// effect the last one is answered (RFC 6455, 5.5.3).
    fn pong(&mut self, id: ConnId) {
        let room = self.config.control_bytes_max as usize;
        let Some(conn) = self.conns.get_mut(id.slot).filter(|conn| conn.id == id) else { return };
        let Some(ws) = conn.ws.as_deref_mut() else { return };
        ws.seal(&mut conn.control, &mut self.native);
        if conn.control.len() > room {
            conn.control.truncate(conn.control.len() - ws.last_pong);
        }
        let at = conn.control.len();
        conn.control.extend(encode::pong(ws.decoder.control()));
        ws.wrapped = conn.control.len();
        ws.last_pong = ws.wrapped - at;
        self.make_ready(id.slot);
    }

    fn violated(&mut self, id: ConnId, violation: Violation) {
        self.close_websocket(id, Some(violation.code()), &violation.to_string());
    }

    fn close_websocket(&mut self, id: ConnId, code: Option<CloseCode>, reason: &str) {
        if let Some(conn) = self.conns.get_mut(id.slot).filter(|conn| conn.id == id) {
            conn.close_websocket(code, reason, &mut self.native);
        }
        self.end_after_control(id);
    }

    /// Lets what waits in the control queue go out, then closes with the code of an ERROR.
    pub(super) fn close_after_control(&mut self, id: ConnId, code: ErrorCode) {
        if self.conn(id).is_some_and(|conn| conn.ws.is_some()) {
            let reason = format!("{code:?}");
            return self.close_websocket(id, Some(CloseCode::of_error(code as u16)), &reason);
        }
        self.end_after_control(id);
    }
}
