//! Frames of the client from JSON.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::DEPTH_MAX;
use super::values::{Big, Group, GroupFields, List, Text, Token, decimal};
use crate::limits::{GROUP_NAME_MAX, MEMBER_ID_MAX, STATE_KEY_MAX, TOKEN_MAX};
use crate::position::{Epoch, Handle, Level, ProducerId, Seq};
use crate::wire::{
    Ack, Acks, Auth, ClientFrame, ErrorCode, Expected, Fetch, Hello, Join, JoinEntry, Leave, Mode,
    Publish, RosterQuery, SetState, Start, SyncState, VERSION,
};

/// Why a message is not a frame; what the ERROR that answers it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// [`ErrorCode::Malformed`] or [`ErrorCode::UnknownFrame`].
    pub code: ErrorCode,
    /// The request of the message, if it was read before the mistake; else 0.
    pub request: u32,
    /// The field concerned, or empty.
    pub field: &'static str,
    /// What is wrong with it.
    pub text: String,
}

/// Appends the native frame that a message stands for.
///
/// # Errors
/// [`Wrong`]: the message is no JSON object, or not one that PROTOCOL.md describes. Nothing was
/// appended.
pub fn to_native(text: &[u8], out: &mut Vec<u8>) -> Result<(), Wrong> {
    let wrong =
        |request, field, text: String| Wrong { code: ErrorCode::Malformed, request, field, text };
    if depth_exceeds(text, DEPTH_MAX) {
        return Err(wrong(0, "", format!("the message is nested deeper than {DEPTH_MAX}")));
    }
    let (at, request) = (Cell::new(""), Cell::new(0));
    let mut json = serde_json::Deserializer::from_slice(text);
    let message = Reading { at: &at, request: &request }
        .deserialize(&mut json)
        .and_then(|message| json.end().map(|()| message));
    let request = &request;
    let message = message.map_err(|error| wrong(request.get(), at.get(), error.to_string()))?;
    message.encode(out).map_err(|bad| match bad {
        Bad::Field(field, why) => wrong(request.get(), field, format!("`{field}` {why}")),
        Bad::Type => Wrong {
            code: ErrorCode::UnknownFrame,
            request: request.get(),
            field: "type",
            text: "this server does not know messages of this type; see PROTOCOL.md".to_owned(),
        },
    })
}

/// Whether arrays and objects are nested deeper than `max`, be the rest right or wrong.
fn depth_exceeds(text: &[u8], max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// A group of a request: its name, and what else is said of it.
type NamedGroup<'a> = (Cow<'a, [u8]>, &'a GroupFields<'a>);

#[derive(Deserialize)]
struct AckFields {
    handle: Big,
    seq: Big,
    epoch: u32,
}

macro_rules! message {
    ($($key:literal => $name:ident: $type:ty,)*) => {
        /// Every field that a message may have; which ones it must have says its type.
        #[derive(Default)]
        struct Message<'a> {
            $($name: Option<$type>,)*
        }

        impl<'a> Message<'a> {
            /// Takes the value of a field, and notes where it is; unknown fields are passed over.
            fn take<M: MapAccess<'a>>(
                &mut self,
                map: &mut M,
                name: &str,
                at: &Cell<&'static str>,
            ) -> Result<(), M::Error> {
                match name {
                    $($key => {
                        at.set($key);
                        if self.$name.is_some() {
                            return Err(M::Error::duplicate_field($key));
                        }
                        self.$name = map.next_value::<Option<$type>>()?;
                    })*
                    _ => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                at.set("");
                Ok(())
            }
        }
    };
}

message! {
    "type" => kind: Text<'a>,
    "request" => request: u32,
    "version_min" => version_min: u16,
    "version_max" => version_max: u16,
    "flags" => flags: u16,
    "producer" => producer: Text<'a>,
    "member" => member: Text<'a>,
    "member_base64" => member_base64: Text<'a>,
    "groups" => groups: List<Group<'a>>,
    "group" => group: Text<'a>,
    "group_base64" => group_base64: Text<'a>,
    "level" => level: Text<'a>,
    "receipt" => receipt: u8,
    "producer_seq" => producer_seq: Big,
    "payload" => payload: Text<'a>,
    "payload_base64" => payload_base64: Text<'a>,
    "acks" => acks: List<AckFields>,
    "token" => token: Token<'a>,
    "quiet" => quiet: bool,
    "from" => from: Big,
    "to" => to: Big,
    "count_max" => count_max: u32,
    "bytes_max" => bytes_max: u32,
    "key" => key: Text<'a>,
    "key_base64" => key_base64: Text<'a>,
    "expected" => expected: Big,
    "data" => data: Text<'a>,
    "data_base64" => data_base64: Text<'a>,
    "delete" => delete: bool,
    "known" => known: Big,
    "after" => after: u32,
    "limit" => limit: u32,
}

/// What reads a message, and says how far it came if that fails.
struct Reading<'c> {
    at: &'c Cell<&'static str>,
    request: &'c Cell<u32>,
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Message<'de>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Message<'de>, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = Message<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Message<'de>, M::Error> {
        let mut message = Message::default();
        while let Some(Text(name)) = map.next_key()? {
            message.take(&mut map, &name, self.at)?;
            self.request.set(message.request.unwrap_or_default());
        }
        Ok(message)
    }
}

/// Why an object is not a frame.
enum Bad {
    /// A field, and what is wrong with it.
    Field(&'static str, &'static str),
    /// There is no frame of this type.
    Type,
}

const MISSING: Bad = Bad::Field("type", "is missing");

fn present<T>(value: Option<T>, field: &'static str) -> Result<T, Bad> {
    value.ok_or(Bad::Field(field, "is missing"))
}

/// Bytes that are given as text or in base64.
fn bytes<'m>(
    text: &'m Option<Text<'_>>,
    base64: &Option<Text<'_>>,
    field: &'static str,
) -> Result<Option<Cow<'m, [u8]>>, Bad> {
    match (text, base64) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(Cow::Borrowed(text.0.as_bytes()))),
        (None, Some(base64)) => match BASE64.decode(base64.0.as_bytes()) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(_) => Err(Bad::Field(field, "is not in base64")),
        },
        (Some(_), Some(_)) => Err(Bad::Field(field, "is there twice")),
    }
}

/// A name or id of 1 to `max` bytes.
fn name<'m>(
    text: &'m Option<Text<'_>>,
    base64: &Option<Text<'_>>,
    max: usize,
    field: &'static str,
) -> Result<Cow<'m, [u8]>, Bad> {
    let name = present(bytes(text, base64, field)?, field)?;
    if !(1..=max).contains(&name.len()) {
        return Err(Bad::Field(field, "is empty or too long"));
    }
    Ok(name)
}

/// 16 bytes as 32 hexadecimal digits, with dashes as in a UUID or without.
fn producer(text: &str) -> Option<ProducerId> {
    let mut id = ProducerId::default();
    let mut digits = text.bytes().filter(|byte| *byte != b'-');
    for byte in &mut id {
        let high = char::from(digits.next()?).to_digit(16)?;
        let low = char::from(digits.next()?).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    digits.next().is_none().then_some(id)
}

fn big(value: &Option<Big>) -> Option<u64> {
    value.as_ref().map(|big| big.0)
}

fn word<'m>(value: &'m Option<Text<'_>>) -> Option<&'m str> {
    value.as_ref().map(|text| &*text.0)
}

impl GroupFields<'_> {
    fn entry<'e>(&self, group: &'e [u8]) -> Result<JoinEntry<'e>, Bad> {
        let mode = match word(&self.mode) {
            None | Some("live") => Mode::Live,
            Some("durable") => Mode::Durable,
            Some(_) => return Err(Bad::Field("mode", "is neither live nor durable")),
        };
        let start = match (word(&self.start), big(&self.from), mode) {
            (None, Some(from), _) => Start::Seq(Seq(from.max(1))),
            (None, None, Mode::Durable) | (Some("cursor"), None, Mode::Durable) => Start::Cursor,
            (None, None, Mode::Live) | (Some("tail"), None, _) => Start::Tail,
            _ => return Err(Bad::Field("start", "is none that this mode has")),
        };
        Ok(JoinEntry { group, mode, start, roster: self.roster })
    }
}

impl Message<'_> {
    fn group(&self) -> Result<Cow<'_, [u8]>, Bad> {
        name(&self.group, &self.group_base64, GROUP_NAME_MAX, "group")
    }

    /// The names of `groups`, and their other fields.
    fn groups(&self) -> Result<Vec<NamedGroup<'_>>, Bad> {
        let groups = present(self.groups.as_ref(), "groups")?;
        if groups.0.is_empty() {
            return Err(Bad::Field("groups", "is empty"));
        }
        groups
            .0
            .iter()
            .map(|Group(g)| Ok((name(&g.group, &g.group_base64, GROUP_NAME_MAX, "group")?, g)))
            .collect()
    }

    fn request(&self) -> Result<u32, Bad> {
        present(self.request, "request")
    }

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), Bad> {
        match word(&self.kind).ok_or(MISSING)? {
            "hello" => self.hello(out),
            "join" => self.join(out),
            "leave" => {
                let groups = self.groups()?;
                let names: Vec<&[u8]> = groups.iter().map(|(name, _)| &**name).collect();
                Leave::encode(out, self.request()?, &names);
                Ok(())
            }
            "publish" => self.publish(out),
            "ack" => self.ack(out),
            "ping" => {
                let token = self.number()?.unwrap_or_default();
                match self.quiet {
                    Some(true) => ClientFrame::encode_quiet_ping(out, token),
                    _ => ClientFrame::encode_ping(out, token),
                }
                Ok(())
            }
            "probed" => {
                ClientFrame::encode_probed(out, present(self.number()?, "token")?);
                Ok(())
            }
            "auth" => {
                let Some(Token::Text(token)) = &self.token else {
                    return Err(Bad::Field("token", "is missing or no text"));
                };
                if !(1..=TOKEN_MAX).contains(&token.len()) {
                    return Err(Bad::Field("token", "is empty or too long"));
                }
                Auth { request: self.request()?, token: token.as_bytes() }.encode(out);
                Ok(())
            }
            "fetch" => self.fetch(out),
            "set_state" => self.set_state(out),
            "sync" => {
                let group = self.group()?;
                let known = big(&self.known).unwrap_or_default();
                SyncState { request: self.request()?, known, group: &group }.encode(out);
                Ok(())
            }
            "roster_query" => {
                let query = RosterQuery {
                    request: self.request()?,
                    known: big(&self.known).unwrap_or_default(),
                    after: self.after.unwrap_or_default(),
                    limit: self.limit.unwrap_or_default(),
                    group: &self.group()?,
                };
                query.encode(out);
                Ok(())
            }
            _ => Err(Bad::Type),
        }
    }

    /// `token` of PING and PROBED.
    fn number(&self) -> Result<Option<u64>, Bad> {
        let number = match &self.token {
            None => return Ok(None),
            Some(Token::Number(number)) => Some(*number),
            Some(Token::Text(text)) => decimal(text),
        };
        number.map(Some).ok_or(Bad::Field("token", "is not a number of 64 bits in decimal"))
    }

    fn hello(&self, out: &mut Vec<u8>) -> Result<(), Bad> {
        let producer = producer(present(word(&self.producer), "producer")?)
            .ok_or(Bad::Field("producer", "is not 16 bytes in hexadecimal digits"))?;
        let hello = Hello {
            version_min: self.version_min.unwrap_or(VERSION),
            version_max: self.version_max.unwrap_or(VERSION),
            encoding: 0,
            flags: self.flags.unwrap_or_default(),
            producer,
            member: &name(&self.member, &self.member_base64, MEMBER_ID_MAX, "member")?,
        };
        hello.encode(out);
        Ok(())
    }

    fn join(&self, out: &mut Vec<u8>) -> Result<(), Bad> {
        let (request, groups) = (self.request()?, self.groups()?);
        let entries: Result<Vec<_>, _> =
            groups.iter().map(|(name, fields)| fields.entry(name)).collect();
        Join::encode(out, request, &entries?);
        Ok(())
    }

    fn publish(&self, out: &mut Vec<u8>) -> Result<(), Bad> {
        let level = match word(&self.level) {
            None => None,
            Some(name) => match Level::named(name) {
                Some(level) => Some(level),
                None => return Err(Bad::Field("level", "is neither durable nor memory")),
            },
        };
        let receipt = self.receipt.unwrap_or_default();
        if receipt > 100 {
            return Err(Bad::Field("receipt", "is more than 100 percent"));
        }
        let payload = bytes(&self.payload, &self.payload_base64, "payload")?;
        let publish = Publish {
            request: self.request()?,
            level,
            receipt,
            producer_seq: present(big(&self.producer_seq), "producer_seq")?,
            group: &self.group()?,
            payload: &present(payload, "payload")?,
        };
        publish.encode(out);
        Ok(())
    }

    fn ack(&self, out: &mut Vec<u8>) -> Result<(), Bad> {
        let acks = present(self.acks.as_ref(), "acks")?;
        if acks.0.is_empty() {
            return Err(Bad::Field("acks", "is empty"));
        }
        let acks = acks.0.iter().map(|ack| Ack {
            handle: Handle(ack.handle.0),
            seq: Seq(ack.seq.0),
            epoch: Epoch(ack.epoch),
        });
        Acks::encode(out, &acks.collect::<Vec<_>>());
        Ok(())
    }

    fn fetch(&self, out: &mut Vec<u8>) -> Result<(), Bad> {
        let from = Seq(big(&self.from).unwrap_or_default().max(1));
        let to = big(&self.to).filter(|to| *to > 0).map(Seq);
        if to.is_some_and(|to| to < from) {
            return Err(Bad::Field("to", "is before `from`"));
        }
        let fetch = Fetch {
            request: self.request()?,
            from,
            to,
            count_max: self.count_max.unwrap_or_default(),
            bytes_max: self.bytes_max.unwrap_or_default(),
            group: &self.group()?,
        };
        fetch.encode(out);
        Ok(())
    }

    fn set_state(&self, out: &mut Vec<u8>) -> Result<(), Bad> {
        let data = bytes(&self.data, &self.data_base64, "data")?;
        if data.is_some() == self.delete.unwrap_or_default() {
            return Err(Bad::Field("data", "is missing, or there beside `delete`"));
        }
        let set = SetState {
            request: self.request()?,
            expected: match big(&self.expected) {
                None => Expected::Any,
                Some(0) => Expected::Absent,
                Some(version) => Expected::Version(version),
            },
            group: &self.group()?,
            key: &name(&self.key, &self.key_base64, STATE_KEY_MAX, "key")?,
            data: data.as_deref(),
        };
        set.encode(out);
        Ok(())
    }
}
