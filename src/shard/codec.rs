//! What goes to WebSockets: messages around native frames, or native frames as JSON, compressed or
//! not. What members share is made once, and kept by its segment.

use super::websocket::WebSocket;
use crate::fanout::{Form, Part, SegmentRef};
use crate::ws::deflate::Deflate;
use crate::ws::encode::Header;
use crate::ws::upgrade::Protocol;
use crate::ws::{Kind, json};

/// Where the frames of a shard's WebSockets are translated.
#[derive(Debug, Default)]
pub struct Codec {
    /// Native frames that are translated to JSON, or that one was translated to.
    pub native: Vec<u8>,
    /// A message as JSON.
    text: Vec<u8>,
    /// A message as it was before it was compressed.
    pub inflated: Vec<u8>,
    /// Made when the first message is compressed or decompressed.
    deflate: Option<Box<Deflate>>,
}

impl Codec {
    /// What a member on the tail gets with a write of these segments, which have `native` bytes
    /// together. Returns the bytes of the write.
    pub fn share<'t>(
        &mut self,
        ws: &WebSocket,
        segments: impl Iterator<Item = &'t SegmentRef>,
        native: usize,
        parts: &mut Vec<Part>,
    ) -> u64 {
        if let Some(form) = ws.form() {
            parts.extend(segments.map(|segment| Part::Frames(self.encoded(segment, form))));
            return parts.iter().map(|part| part.as_slice().len() as u64).sum();
        }
        let header = Header::new(Kind::Binary, native);
        parts.push(Part::Header(header));
        parts.extend(segments.cloned().map(Part::Frames));
        (header.as_slice().len() + native) as u64
    }

    /// Puts messages around everything that a write has: the control frames that wait, and the
    /// parts that follow them.
    pub fn wrap(&mut self, ws: &mut WebSocket, control: &mut Vec<u8>, parts: &mut Vec<Part>) {
        if let Some(form) = ws.form() {
            self.seal(ws, control);
            for part in parts {
                if let Part::Frames(segment) = part {
                    *segment = self.encoded(segment, form);
                }
            }
        } else {
            let shared: usize = parts.iter().map(|part| part.as_slice().len()).sum();
            let len = control.len() - ws.wrapped + shared;
            let header = Header::new(Kind::Binary, len);
            if len > 0 && control.is_empty() {
                parts.insert(0, Part::Header(header));
            } else if len > 0 {
                control.splice(ws.wrapped..ws.wrapped, header.as_slice().iter().copied());
            }
        }
        (ws.wrapped, ws.last_pong) = (0, 0);
    }

    /// Puts messages around the control frames that wait, so that others may follow them. They
    /// are not compressed: nobody shares them.
    pub fn seal(&mut self, ws: &mut WebSocket, control: &mut Vec<u8>) {
        if control.len() == ws.wrapped {
            return;
        }
        if ws.protocol == Protocol::Json {
            self.native.clear();
            self.native.extend_from_slice(&control[ws.wrapped..]);
            control.truncate(ws.wrapped);
            json::from_native(&self.native, &mut self.text, &mut |text| {
                message(Kind::Text, text, control);
            });
        } else {
            let header = Header::new(Kind::Binary, control.len() - ws.wrapped);
            control.splice(ws.wrapped..ws.wrapped, header.as_slice().iter().copied());
        }
        (ws.wrapped, ws.last_pong) = (control.len(), 0);
    }

    /// The state of the compression.
    pub fn deflate(&mut self) -> &mut Deflate {
        self.deflate.get_or_insert_default()
    }

    /// A segment in another encoding.
    fn encoded(&mut self, segment: &SegmentRef, form: Form) -> SegmentRef {
        segment.encoded(form, |frames, out| match form {
            Form::Json => json::from_native(frames, &mut self.text, &mut |text| {
                message(Kind::Text, text, out);
            }),
            Form::JsonDeflated => {
                let deflate = self.deflate.get_or_insert_default();
                json::from_native(frames, &mut self.text, &mut |text| {
                    deflate.message(Kind::Text, text, out);
                });
            }
            Form::BinaryDeflated => self.deflate().message(Kind::Binary, frames, out),
        })
    }
}

/// Appends a message.
pub fn message(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(Header::new(kind, payload.len()).as_slice());
    out.extend_from_slice(payload);
}
