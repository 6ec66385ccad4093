//! What the fields of a message may hold, and how it is read.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::limits::FRAME_ENTRIES_MAX;

/// Text, borrowed unless it has escapes.
pub(super) struct Text<'a>(pub Cow<'a, str>);

/// A number of 64 bits, in quotes or as it is.
pub(super) struct Big(pub u64);

/// The number of PING and PROBED, or the text of AUTH.
pub(super) enum Token<'a> {
    Number(u64),
    Text(Cow<'a, str>),
}

/// A list of at most [`FRAME_ENTRIES_MAX`] entries.
pub(super) struct List<T>(pub Vec<T>);

/// A group in JOIN or LEAVE: its name, or an object.
pub(super) struct Group<'a>(pub GroupFields<'a>);

/// What may be said of a group.
#[derive(Default, Deserialize)]
pub(super) struct GroupFields<'a> {
    #[serde(borrow, default)]
    pub group: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub group_base64: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub mode: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub start: Option<Text<'a>>,
    #[serde(default)]
    pub from: Option<Big>,
    #[serde(default)]
    pub roster: bool,
}

/// A number of 64 bits from its decimal digits.
pub(super) fn decimal(text: &str) -> Option<u64> {
    // `parse` alone takes a sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Visit)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Token<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Token<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of 64 bits in decimal, in quotes, or a token")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Token<'de>, E> {
                Ok(Token::Number(number))
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Token<'de>, E> {
                Ok(Token::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Token<'de>, E> {
                Ok(Token::Text(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_any(Visit)
    }
}

impl<'de> Deserialize<'de> for Big {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl Visitor<'_> for Visit {
            type Value = Big;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of 64 bits in decimal, in quotes")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Big, E> {
                Ok(Big(number))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Big, E> {
                let number = decimal(text).map(Big);
                number.ok_or_else(|| E::custom("this is not a number of 64 bits"))
            }
        }
        from.deserialize_any(Visit)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Visit<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<List<T>, S::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if list.len() == FRAME_ENTRIES_MAX {
                        return Err(S::Error::custom(format_args!(
                            "there are more than {FRAME_ENTRIES_MAX} entries"
                        )));
                    }
                    list.push(item);
                }
                Ok(List(list))
            }
        }
        from.deserialize_seq(Visit(PhantomData))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Group<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Group<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a group, or an object")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Group<'de>, E> {
                let group = Some(Text(Cow::Borrowed(name)));
                Ok(Group(GroupFields { group, ..GroupFields::default() }))
            }

            fn visit_str<E>(self, name: &str) -> Result<Group<'de>, E> {
                let group = Some(Text(Cow::Owned(name.to_owned())));
                Ok(Group(GroupFields { group, ..GroupFields::default() }))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Group<'de>, M::Error> {
                GroupFields::deserialize(MapAccessDeserializer::new(map)).map(Group)
            }
        }
        from.deserialize_any(Visit)
    }
}
