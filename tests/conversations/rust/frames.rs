//! The frames of tests/conversations/frames.json, written and read by its tables alone: the client's
//! own codec is not used on the server's side of a conversation.

use serde_json::{Map, Value, json};

/// The tables.
pub struct Frames(Map<String, Value>);

/// A value of a conversation as bytes: text, `{"hex": ...}` or `{"zeros": n}`.
pub fn bytes_of(value: &Value) -> Vec<u8> {
    if let Some(hex) = value["hex"].as_str() {
        let digits = hex.as_bytes().chunks(2);
        return digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
    }
    if let Some(zeros) = value["zeros"].as_u64() {
        return vec![0; zeros as usize];
    }
    value.as_str().unwrap_or_default().as_bytes().to_vec()
}

/// Bytes as a value: text where they are, otherwise `{"hex": ...}`.
pub fn of_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "hex": bytes.iter().map(|b| format!("{b:02x}")).collect::<String>() }),
    }
}

fn size(how: &str) -> usize {
    match how {
        "u8" | "len8" => 1,
        "u16" | "len16" | "count" => 2,
        "u32" | "len32" => 4,
        "u64" => 8,
        other => panic!("type {other}"),
    }
}

fn read_number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, after) = rest.split_at(len);
    *rest = after;
    taken
}

impl Frames {
    pub fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conversations/frames.json");
        Self(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    /// A frame with these fields; those that are missing have their default.
    pub fn encode(&self, name: &str, values: &Value) -> Vec<u8> {
        let table = self.0.get(name).unwrap_or_else(|| panic!("no frame {name}"));
        let mut body = Vec::new();
        self.encode_fields(&table["fields"], &table["entry"], values, &mut body);
        let mut out = u32::try_from(4 + body.len()).unwrap().to_le_bytes().to_vec();
        out.push(table["kind"].as_u64().unwrap() as u8);
        out.push(values["header_flags"].as_u64().unwrap_or(0) as u8);
        out.extend([0, 0]);
        out.extend(body);
        out
    }

    fn encode_fields(&self, fields: &Value, entry: &Value, values: &Value, out: &mut Vec<u8>) {
        let fields = fields.as_array().unwrap();
        let value = |name: &str| {
            let default = fields.iter().find(|field| field[0] == name).map(|field| &field[2]);
            values.get(name).or(default).unwrap_or(&Value::Null)
        };
        let empty = Vec::new();
        let list = |name: &str| values[name].as_array().unwrap_or(&empty);
        for field in fields {
            let (name, how) = (field[0].as_str().unwrap(), field[1].as_str().unwrap());
            let (how, arg) = how.split_once(':').unwrap_or((how, ""));
            let mut number = |how: &str, n: u64| out.extend(&n.to_le_bytes()[..size(how)]);
            match how {
                "pad" => out.extend(vec![0; arg.parse().unwrap()]),
                "raw" => {
                    let mut bytes = bytes_of(value(name));
                    bytes.resize(arg.parse().unwrap(), 0);
                    out.extend(bytes);
                }
                "len8" | "len16" | "len32" => number(how, bytes_of(value(arg)).len() as u64),
                "count" => number(how, list("entries").len() as u64),
                "data" | "rest" => out.extend(bytes_of(value(name))),
                "entries" => {
                    list(name)
                        .iter()
                        .for_each(|one| self.encode_fields(entry, &Value::Null, one, out));
                }
                "frames" => {
                    for one in list(name) {
                        out.extend(self.encode(one["frame"].as_str().unwrap(), one));
                    }
                }
                _ => number(how, value(name).as_u64().unwrap_or(0)),
            }
        }
    }

    /// The name of a whole frame and its fields.
    pub fn decode(&self, frame: &[u8]) -> (String, Value) {
        let kind = u64::from(frame[4]);
        let (name, table) =
            self.0.iter().find(|(_, table)| table["kind"] == kind).expect("a known kind");
        let mut rest = &frame[8..];
        let mut values = self.decode_fields(&table["fields"], &table["entry"], &mut rest);
        values["header_flags"] = frame[5].into();
        (name.clone(), values)
    }

    fn decode_fields(&self, fields: &Value, entry: &Value, rest: &mut &[u8]) -> Value {
        let (mut values, mut lens, mut count) = (json!({}), Map::new(), 0);
        for field in fields.as_array().unwrap() {
            let (name, how) = (field[0].as_str().unwrap(), field[1].as_str().unwrap());
            let (how, arg) = how.split_once(':').unwrap_or((how, ""));
            let len = |name: &str| lens[name].as_u64().unwrap() as usize;
            match how {
                "pad" => drop(take(rest, arg.parse().unwrap())),
                "raw" => values[name] = of_bytes(take(rest, arg.parse().unwrap())),
                "len8" | "len16" | "len32" => {
                    lens.insert(arg.to_owned(), read_number(take(rest, size(how))).into());
                }
                "count" => count = read_number(take(rest, 2)),
                "data" => values[name] = of_bytes(take(rest, len(name))),
                "rest" => values[name] = of_bytes(take(rest, rest.len())),
                "entries" => {
                    let one = |_| self.decode_fields(entry, &Value::Null, rest);
                    values[name] = (0..count).map(one).collect();
                }
                "frames" => {
                    let mut frames = Vec::new();
                    while !rest.is_empty() {
                        let len = 4 + read_number(&rest[..4]) as usize;
                        let (kind, mut fields) = self.decode(take(rest, len));
                        fields["frame"] = kind.into();
                        frames.push(fields);
                    }
                    values[name] = frames.into();
                }
                _ => values[name] = read_number(take(rest, size(how))).into(),
            }
        }
        values
    }
}
