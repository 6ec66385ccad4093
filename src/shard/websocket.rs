//! WebSocket connections. The upgrade stands before the native protocol, and messages are put
//! around its bytes. In `fanfare.binary.v1` what a write carries is one message, so a segment is
//! neither copied nor encoded again. In `fanfare.json.v1`, and when messages are compressed, a
//! segment is encoded once for all members of the shard that need it (see codec.rs).

use super::codec::{self, Codec};
use super::conn::{Conn, ConnState};
use super::replies::Refusal;
use super::{ConnId, Shard};
use crate::fanout::Form;
use crate::limits::{WS_ECHO_MAX, WS_MESSAGE_MAX};
use crate::wire::{self, ErrorCode};
use crate::ws::upgrade::{self, Protocol, Refused, Rules, Upgrade};
use crate::ws::{CloseCode, Decoder, Item, Kind, Violation, encode, json};

/// Room that an unfinished frame may have beside twice its length.
const KEPT_ROOM: usize = 4096;

/// What a connection keeps beside when it speaks WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    pub protocol: Protocol,
    /// Messages may be compressed.
    deflate: bool,
    decoder: Decoder,
    /// Bytes at the start of the control queue that are whole WebSocket frames, or the answer to
    /// the upgrade. What follows them are native frames without a message around them yet.
    pub wrapped: usize,
    /// What is left for another turn. The connection is not read meanwhile.
    waiting: Option<Left>,
    /// Bytes of the pong at the end of them, if one is there.
    pub last_pong: usize,
}

/// Where the messages of a connection that waits go on.
#[derive(Debug)]
struct Left {
    /// What was taken apart last, if that was whole: a message whose AUTH is to be checked, or one that
    /// is to be decompressed.
    item: Option<Item>,
    /// It is still to be decompressed.
    compressed: bool,
    /// What came behind it.
    behind: Vec<u8>,
}

impl WebSocket {
    /// The encoding of what members share; none if that is the native frames.
    pub fn form(&self) -> Option<Form> {
        match (self.protocol, self.deflate) {
            (Protocol::Json, false) => Some(Form::Json),
            (Protocol::Json, true) => Some(Form::JsonDeflated),
            (Protocol::Binary, true) => Some(Form::BinaryDeflated),
            (Protocol::Binary | Protocol::Echo, _) => None,
        }
    }
}

impl Conn {
    /// Closes the WebSocket after what waits; the last that its peer gets.
    pub(super) fn close_websocket(
        &mut self,
        code: Option<CloseCode>,
        reason: &str,
        codec: &mut Codec,
    ) {
        if let Some(ws) = &mut self.ws
            && self.state != ConnState::Closing
        {
            codec.seal(ws, &mut self.control);
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
        let rules = Rules {
            origins: &config.websocket_origins,
            echo: config.websocket_echo,
            deflate: config.websocket_deflate,
        };
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
        let Upgrade { protocol, deflate, .. } = *upgrade;
        let (decoder, state) = match protocol {
            Protocol::Binary => {
                (Decoder::new(Some(Kind::Binary), WS_MESSAGE_MAX), ConnState::Greeting)
            }
            Protocol::Json => (Decoder::new(Some(Kind::Text), WS_MESSAGE_MAX), ConnState::Greeting),
            Protocol::Echo => (Decoder::new(None, WS_ECHO_MAX), ConnState::Open),
        };
        let wrapped = conn.control.len();
        let decoder = decoder.with_deflate(deflate);
        conn.ws = Some(Box::new(WebSocket {
            protocol,
            deflate,
            decoder,
            wrapped,
            waiting: None,
            last_pong: 0,
        }));
        conn.state = state;
        if state == ConnState::Open {
            self.begin_health(id.slot);
        }
    }

    /// Answers a request that is not granted, and ends the connection.
    pub(super) fn refuse_upgrade(&mut self, id: ConnId, refused: Refused) {
        self.figures.upgrades_refused += 1;
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
    pub(super) fn messages(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conn(id) else { return };
        let waits = conn.waits();
        let mut left = match conn.ws.as_deref_mut().map(|ws| &mut ws.waiting) {
            Some(Some(left)) if waits => return left.behind.extend_from_slice(bytes),
            Some(waiting) => waiting.take(),
            None => return,
        };
        let behind = left.as_mut().map(|left| {
            left.behind.extend_from_slice(bytes);
            std::mem::take(&mut left.behind)
        });
        let mut bytes = behind.as_deref().unwrap_or(bytes);
        let kept = !conn.partial.is_empty();
        let partial = std::mem::take(&mut conn.partial);
        self.figures.partial_bytes -= partial.len() as u64;
        let mut frames = if kept { partial } else { std::mem::take(&mut self.unmasked) };
        while let Some(ws) = self.conn(id).and_then(|conn| conn.ws.as_deref_mut()) {
            let resumes = left.is_some();
            let next = match left.take() {
                Some(left) => Ok((left.item, left.compressed)),
                None => ws
                    .decoder
                    .next(&mut bytes, &mut frames)
                    .map(|item| (item, ws.decoder.is_compressed())),
            };
            let (item, compressed) = match next {
                Ok(next) => next,
                Err(violation) => {
                    self.violated(id, violation);
                    break;
                }
            };
            let protocol = ws.protocol;
            if compressed && let Some(Item::Message(kind)) = item {
                let max = ws.decoder.message_max();
                match self.inflate(id, kind, max, &mut frames) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.wait_with(id, Left { item, compressed, behind: bytes.to_vec() });
                        break;
                    }
                    Err(violation) => {
                        self.violated(id, violation);
                        break;
                    }
                }
            }
            match (protocol, item) {
                (Protocol::Echo, Some(Item::Message(kind))) => self.echo(id, kind, &mut frames),
                (Protocol::Json, Some(Item::Message(_))) => {
                    self.take_json(id, &frames);
                    if !self.conn(id).is_some_and(|conn| conn.waits()) {
                        frames.clear();
                    }
                }
                (Protocol::Binary, None) if compressed => {}
                (Protocol::Binary, None | Some(Item::Message(_))) if !frames.is_empty() => {
                    let used = self.frames(id, &frames);
                    frames.drain(..used);
                }
                _ => {}
            }
            if self.conn(id).is_some_and(|conn| conn.waits()) {
                self.wait_with(id, Left { item, compressed: false, behind: bytes.to_vec() });
                break;
            }
            match item {
                _ if self.conn(id).is_none_or(|conn| conn.state == ConnState::Closing) => break,
                None if resumes => {}
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

    fn wait_with(&mut self, id: ConnId, left: Left) {
        if let Some(ws) = self.conn(id).and_then(|conn| conn.ws.as_deref_mut()) {
            ws.waiting = Some(left);
        }
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
                // What is counted is its length, and a message that was decompressed in it was long.
                if frames.capacity() > KEPT_ROOM + 2 * frames.len() {
                    frames.shrink_to_fit();
                }
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
        let mut native = std::mem::take(&mut self.codec.native);
        native.clear();
        match json::to_native(text, &mut native) {
            // What is too long in a message of this length is told by an error of its own.
            Ok(()) => {
                if let Ok(Some((frame, _))) = wire::split(&native, usize::MAX)
                    && !self.must_wait(id, frame)
                {
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
        self.codec.native = native;
    }

    fn echo(&mut self, id: ConnId, kind: Kind, message: &mut Vec<u8>) {
        let Some(conn) = self.conns.get_mut(id.slot).filter(|conn| conn.id == id) else { return };
        let Some(ws) = conn.ws.as_deref_mut() else { return };
        if ws.deflate {
            self.codec.deflate().message(kind, message, &mut conn.control);
        } else {
            codec::message(kind, message, &mut conn.control);
        }
        message.clear();
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
        self.codec.seal(ws, &mut conn.control);
        if conn.control.len() > room {
            conn.control.truncate(conn.control.len() - ws.last_pong);
        }
        let at = conn.control.len();
        conn.control.extend(encode::pong(ws.decoder.control()));
        ws.wrapped = conn.control.len();
        ws.last_pong = ws.wrapped - at;
        self.make_ready(id.slot);
    }

    /// Asks whether the client is still there. Browsers answer also for a page that they let run no
    /// timers.
    pub(super) fn ask_by_ping(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id.slot).filter(|conn| conn.id == id) else { return };
        let Some(ws) = conn.ws.as_deref_mut() else { return };
        self.codec.seal(ws, &mut conn.control);
        conn.control.extend(encode::ping());
        (ws.wrapped, ws.last_pong) = (conn.control.len(), 0);
        self.make_ready(id.slot);
    }

    fn violated(&mut self, id: ConnId, violation: Violation) {
        self.figures.websocket_violations += 1;
        self.close_websocket(id, Some(violation.code()), &violation.to_string());
    }

    fn close_websocket(&mut self, id: ConnId, code: Option<CloseCode>, reason: &str) {
        if let Some(conn) = self.conns.get_mut(id.slot).filter(|conn| conn.id == id) {
            conn.close_websocket(code, reason, &mut self.codec);
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
