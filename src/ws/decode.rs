//! Frames of the client, cut into messages as their bytes come.

use super::utf8::Utf8;
use super::{COMPRESSED, CONTROL_PAYLOAD_MAX, CloseCode, FIN, Kind, Opcode, Violation};

/// Longest header: two bytes, eight of length, four of mask.
const HEAD_MAX: usize = 14;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What ended with the bytes that were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A message. Its bytes were appended to the output as they came.
    Message(Kind),
    /// A ping, to be answered with a pong of [`Decoder::control`].
    Ping,
    /// A pong.
    Pong,
    /// A close with its code, if it has one. Nothing follows it.
    Close(Option<CloseCode>),
}

/// The frame whose payload is being taken.
#[derive(Clone, Copy, Debug)]
struct Body {
    opcode: Opcode,
    fin: bool,
    left: u64,
}

/// Takes the bytes of one client, cut anywhere.
#[derive(Debug)]
pub struct Decoder {
    /// Start of a header whose end has not come.
    head: [u8; HEAD_MAX],
    head_len: u8,
    body: Option<Body>,
    /// Mask of the frame, turned so that its first byte is for the next one that comes.
    mask: [u8; 4],
    /// The message that has begun, and its bytes so far with those of the frame in hand.
    message: Option<Kind>,
    message_len: u64,
    message_max: u64,
    utf8: Utf8,
    /// Whether messages may be compressed, and whether the last one that began is.
    deflate: bool,
    compressed: bool,
    /// The kinds of messages that are taken; `None` takes both.
    only: Option<Kind>,
    /// Payload of the control frame that is being taken or was taken last.
    control: Vec<u8>,
}

impl Decoder {
    /// A decoder of messages up to `message_max` bytes; of one kind only, or of both.
    #[must_use]
    pub fn new(only: Option<Kind>, message_max: u64) -> Self {
        Self {
            head: [0; HEAD_MAX],
            head_len: 0,
            body: None,
            mask: [0; 4],
            message: None,
            message_len: 0,
            message_max,
            utf8: Utf8::default(),
            deflate: false,
            compressed: false,
            only,
            control: Vec::new(),
        }
    }

    /// Messages may be compressed: that was agreed on.
    #[must_use]
    pub fn with_deflate(self, deflate: bool) -> Self {
        Self { deflate, ..self }
    }

    /// Longest message that is taken, in bytes.
    #[must_use]
    pub fn message_max(&self) -> u64 {
        self.message_max
    }

    /// Whether the message that began last is compressed. Its bytes come as they are, and are not
    /// looked at.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// Payload of the last control frame, unmasked.
    #[must_use]
    pub fn control(&self) -> &[u8] {
        &self.control
    }

    /// Takes bytes off `input` up to where something ends, and appends those of messages to
    /// `out`, unmasked. `None`: all was taken and nothing has ended.
    ///
    /// # Errors
    /// [`Violation`]: the connection has to be closed with its code.
    pub fn next(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Item>, Violation> {
        loop {
            let mut body = match self.body {
                Some(body) => body,
                None => match self.take_head(input)? {
                    Some(body) => body,
                    None => return Ok(None),
                },
            };
            let len = usize::try_from(body.left).map_or(input.len(), |left| left.min(input.len()));
            let (bytes, rest) = input.split_at(len);
            *input = rest;
            body.left -= len as u64;
            self.body = (body.left > 0).then_some(body);
            if body.opcode.is_control() {
                unmask_into(&mut self.control, bytes, &mut self.mask);
            } else {
                let at = out.len();
                unmask_into(out, bytes, &mut self.mask);
                if self.message == Some(Kind::Text)
                    && !self.compressed
                    && !self.utf8.push(&out[at..])
                {
                    return Err(Violation::NotUtf8);
                }
            }
            if body.left > 0 {
                return Ok(None);
            }
            if let Some(item) = self.ended(body)? {
                return Ok(Some(item));
            }
        }
    }

    /// Takes the bytes of a header; its frame, when the header is whole.
    fn take_head(&mut self, input: &mut &[u8]) -> Result<Option<Body>, Violation> {
        loop {
            let have = usize::from(self.head_len);
            let need = match self.head {
                _ if have < 2 => 2,
                [_, second, ..] => match second & !MASKED {
                    126 => 8,
                    127 => 14,
                    _ => 6,
                },
            };
            let len = (need - have).min(input.len());
            let (bytes, rest) = input.split_at(len);
            *input = rest;
            self.head[have..have + len].copy_from_slice(bytes);
            self.head_len += len as u8;
            if have + len < need {
                return Ok(None);
            }
            if need == 2 {
                self.check_start()?;
                continue;
            }
            self.head_len = 0;
            return self.open(need).map(Some);
        }
    }

    /// What the first two bytes of a frame show.
    fn check_start(&self) -> Result<(), Violation> {
        let [first, second, ..] = self.head;
        let number = first & 0x0F;
        let opcode = Opcode::from_number(number);
        let begins = matches!(opcode, Some(Opcode::Text | Opcode::Binary));
        let allowed = if self.deflate && begins { COMPRESSED } else { 0 };
        if first & RESERVED & !allowed != 0 {
            return Err(Violation::ReservedBits);
        }
        let opcode = opcode.ok_or(Violation::ReservedOpcode(number))?;
        if second & MASKED == 0 {
            return Err(Violation::Unmasked);
        }
        let kind = match opcode {
            Opcode::Text => Kind::Text,
            Opcode::Binary => Kind::Binary,
            Opcode::Continuation if self.message.is_none() => {
                return Err(Violation::NothingToContinue);
            }
            Opcode::Continuation => return Ok(()),
            _ if first & FIN == 0 => return Err(Violation::ControlFragmented),
            _ => {
                let len = u64::from(second & !MASKED);
                let fits = len <= CONTROL_PAYLOAD_MAX as u64;
                return if fits { Ok(()) } else { Err(Violation::ControlTooLong(len)) };
            }
        };
        if self.message.is_some() {
            return Err(Violation::MessageInMessage);
        }
        if self.only.is_some_and(|only| only != kind) {
            return Err(Violation::Kind);
        }
        Ok(())
    }

    /// The frame of a header of `len` bytes.
    fn open(&mut self, len: usize) -> Result<Body, Violation> {
        let head = self.head;
        let left = match (len, head) {
            (8, [_, _, a, b, ..]) => u64::from(u16::from_be_bytes([a, b])),
            (14, [_, _, a, b, c, d, e, f, g, h, ..]) => {
                u64::from_be_bytes([a, b, c, d, e, f, g, h])
            }
            _ => u64::from(head[1] & !MASKED),
        };
        let longest_shorter_form = match len {
            8 => 125,
            14 => 0xFFFF,
            _ => 0,
        };
        if len > 6 && left <= longest_shorter_form || left > i64::MAX as u64 {
            return Err(Violation::LengthForm);
        }
        self.mask.copy_from_slice(&head[len - 4..len]);
        let opcode =
            Opcode::from_number(head[0] & 0x0F).ok_or(Violation::ReservedOpcode(head[0]))?;
        match opcode {
            Opcode::Text | Opcode::Binary => {
                let text = opcode == Opcode::Text;
                self.message = Some(if text { Kind::Text } else { Kind::Binary });
                self.message_len = 0;
                self.compressed = head[0] & COMPRESSED != 0;
                self.utf8 = Utf8::default();
            }
            Opcode::Continuation => {}
            Opcode::Close | Opcode::Ping | Opcode::Pong => self.control.clear(),
        }
        if !opcode.is_control() {
            self.message_len = self.message_len.saturating_add(left);
            if self.message_len > self.message_max {
                return Err(Violation::TooBig { max: self.message_max });
            }
        }
        Ok(Body { opcode, fin: head[0] & FIN != 0, left })
    }

    /// All bytes of a frame are here.
    fn ended(&mut self, body: Body) -> Result<Option<Item>, Violation> {
        match body.opcode {
            Opcode::Ping => Ok(Some(Item::Ping)),
            Opcode::Pong => Ok(Some(Item::Pong)),
            Opcode::Close => close_code(&self.control).map(|code| Some(Item::Close(code))),
            _ if !body.fin => Ok(None),
            _ => {
                let Some(kind) = self.message.take() else { return Ok(None) };
                if kind == Kind::Text && !self.compressed && !self.utf8.is_whole() {
                    return Err(Violation::NotUtf8);
                }
                Ok(Some(Item::Message(kind)))
            }
        }
    }
}

/// The code in the payload of a Close, whose rest must be UTF-8.
fn close_code(payload: &[u8]) -> Result<Option<CloseCode>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(Violation::CloseCode) };
    };
    let code = CloseCode(u16::from_be_bytes(*code));
    if !code.is_sendable() {
        return Err(Violation::CloseCode);
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation::NotUtf8);
    }
    Ok(Some(code))
}

/// Appends `bytes` unmasked, and turns the mask for what follows them.
fn unmask_into(out: &mut Vec<u8>, bytes: &[u8], mask: &mut [u8; 4]) {
    let at = out.len();
    out.extend_from_slice(bytes);
    let [a, b, c, d] = *mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = out[at..].chunks_exact_mut(8);
    for word in &mut words {
        if let Some(word) = word.first_chunk_mut::<8>() {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    mask.rotate_left(bytes.len() % 4);
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
