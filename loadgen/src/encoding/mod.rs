//! How frames go to a Fanfare server and come from it: as they are, or in WebSocket messages, and
//! either by TLS or not. What
//! members are verified against is the native frames whatever they speak, so that members of all
//! encodings must have the same messages in the same order, byte for byte.

pub mod json;

use clap::ValueEnum;
use fanfare::limits::FRAME_MAX;
use fanfare::wire::{ClientFrame, MAGIC, split};

use crate::target::codec::{Event, Found};
use crate::target::ws;

/// Longest message that is accepted from a server: one write.
const MESSAGE_MAX: u64 = 64 << 20;

/// An encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    /// Native frames over TCP.
    #[default]
    Native,
    /// Native frames in binary messages.
    WsBinary,
    /// JSON in text messages.
    WsJson,
    /// Native frames by TLS.
    Tls,
    /// Native frames in binary messages by TLS.
    WssBinary,
    /// JSON in text messages by TLS.
    WssJson,
}

impl Encoding {
    /// Name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::WsBinary => "ws-binary",
            Self::WsJson => "ws-json",
            Self::Tls => "tls",
            Self::WssBinary => "wss-binary",
            Self::WssJson => "wss-json",
        }
    }

    /// Whether it goes by TLS.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::WssBinary | Self::WssJson)
    }

    fn subprotocol(self) -> &'static str {
        match self {
            Self::Native | Self::Tls => "",
            Self::WsBinary | Self::WssBinary => "fanfare.binary.v1",
            Self::WsJson | Self::WssJson => "fanfare.json.v1",
        }
    }
}

/// The messages of one connection.
pub struct Messages {
    json: bool,
    /// What is to be sent before the first message.
    greeting: Vec<u8>,
    /// Start of a message whose end has not come.
    carry: Vec<u8>,
    native: Vec<u8>,
}

impl Messages {
    /// Those of a connection to `host`; `None` if frames go as they are.
    pub fn new(encoding: Encoding, host: &str) -> Option<Self> {
        if encoding.subprotocol().is_empty() {
            return None;
        }
        let mut greeting = Vec::new();
        ws::greet(host, "", encoding.subprotocol(), &mut greeting);
        let json = matches!(encoding, Encoding::WsJson | Encoding::WssJson);
        Some(Self { json, greeting, carry: Vec::new(), native: Vec::new() })
    }

    /// The messages that carry these frames of a client, which are whole.
    pub fn wrap(&mut self, frames: &[u8]) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.greeting);
        let mut rest = frames;
        if !out.is_empty() {
            rest = rest.strip_prefix(&MAGIC).unwrap_or(rest);
        }
        if !self.json {
            ws::publish(rest, &mut out);
            return out;
        }
        while let Ok(Some((frame, len))) = split(rest, FRAME_MAX) {
            rest = &rest[len..];
            if let Some(text) = ClientFrame::decode(frame).ok().and_then(|f| json::from_native(&f))
            {
                ws::text(text.as_bytes(), &mut out);
            }
        }
        out
    }

    /// Calls `on` with native frames of the server as their messages end.
    pub fn unwrap<E: From<&'static str>>(
        &mut self,
        bytes: &[u8],
        on: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.carry.is_empty() {
            let used = self.take(bytes, on)?;
            self.carry.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(bytes);
        let used = self.take(&carry, on)?;
        carry.drain(..used);
        self.carry = carry;
        Ok(())
    }

    fn take<E: From<&'static str>>(
        &mut self,
        bytes: &[u8],
        on: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut at = 0;
        loop {
            match ws::next_within(&bytes[at..], MESSAGE_MAX) {
                Ok(Found::Need(_)) => return Ok(at),
                Ok(Found::Frame(event, len)) => {
                    at += len;
                    match event {
                        Event::Message { payload, .. } if self.json => {
                            self.native.clear();
                            json::to_native(payload, &mut self.native)
                                .ok_or("JSON that is not in PROTOCOL.md")?;
                            on(&self.native)?;
                        }
                        Event::Message { payload, .. } => on(payload)?,
                        Event::Refused(_) => return Err("a refused upgrade or a close".into()),
                        _ => {}
                    }
                }
                Err(malformed) => return Err(malformed.0.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use fanfare::ws::json::{from_native, to_native};

    /// The frames of the golden blocks in PROTOCOL.md.
    fn golden(client: bool) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        for block in include_str!("../../../PROTOCOL.md").split("```golden ").skip(1) {
            let mut lines = block.lines();
            let name = lines.next().unwrap().to_owned();
            let hex = lines.take_while(|line| *line != "```").filter(|line| !line.contains(" ="));
            let hex: String = hex.map(|line| line.split(';').next().unwrap()).collect();
            let bytes: Vec<u8> =
                hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            if (bytes[4] < 0x80) == client {
                found.push((name, bytes));
            }
        }
        found
    }

    #[test]
    fn client_and_server_mean_the_same_by_a_message() {
        let (mut asked, mut answered) = (0, 0);
        for (name, frame) in golden(true) {
            let (decoded, _) = split(&frame, FRAME_MAX).unwrap().unwrap();
            let text = json::from_native(&ClientFrame::decode(decoded).unwrap());
            let text = text.unwrap_or_else(|| panic!("{name}"));
            let mut again = Vec::new();
            to_native(text.as_bytes(), &mut again).unwrap();
            // This client says version 1, whatever the example does.
            assert!(again == frame || name == "HELLO", "{name}: {text}");
            asked += 1;
        }
        for (name, frame) in golden(false) {
            let (mut text, mut again) = (Vec::new(), Vec::new());
            from_native(&frame, &mut Vec::new(), &mut |message| text.extend_from_slice(message));
            json::to_native(&text, &mut again).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(again, frame, "{name}");
            answered += 1;
        }
        assert_eq!((asked, answered), (19, 22));
    }

    #[test]
    fn messages_may_be_cut_anywhere() {
        let frames: Vec<u8> = golden(false).into_iter().take(6).flat_map(|(_, f)| f).collect();
        let mut stream =
            b"HTTP/1.1 101 a\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                .to_vec();
        from_native(&frames, &mut Vec::new(), &mut |message| {
            stream.extend_from_slice(&[0x81, 126]);
            stream.extend_from_slice(&(message.len() as u16).to_be_bytes());
            stream.extend_from_slice(message);
        });
        for piece in [1, 7, 100, stream.len()] {
            let mut messages = Messages::new(Encoding::WsJson, "a").unwrap();
            let mut got = Vec::new();
            for bytes in stream.chunks(piece) {
                messages
                    .unwrap::<&'static str>(bytes, &mut |native| {
                        got.extend_from_slice(native);
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(got, frames);
        }
    }
}
