//! `[[class]]` tables of the configuration file: read, checked, printed.

use std::fmt::Write;
use std::path::Path;

use super::ConfigError;
use super::classes::{Class, Classes, Pattern, Priority};
use super::keys::distance;
use super::print::{quoted, toml_text};
use crate::limits::{CLASS_PATTERNS_MAX, CLASSES_MAX, GROUP_NAME_MAX, PAYLOAD_MAX};
use crate::position::Level;

/// The key of the file that holds the tables.
pub(super) const CLASS: &str = "class";

const HOUR_MS: u64 = 3_600_000;
const NAME_MAX: usize = 32;
const KEYS: [(&str, &str); 12] = [
    ("name", "What the class is called."),
    ("groups", "Names of its groups; with a * at the end, every name that starts like this."),
    ("priority", "realtime is served first, bulk has a small share beside the others."),
    ("level", "Level of a publish that asks for none."),
    ("retention_bytes", "Bytes that each group keeps, within what the shard keeps."),
    ("retention_age_ms", "How long each group keeps messages, within what the shard keeps."),
    ("receipts", "Whether publishers may ask for receipts."),
    (
        "ack_timeout_ms",
        "What a durable member does not acknowledge for this long may be sent again.",
    ),
    ("redeliver_max", "Redeliveries without progress before the member is disconnected."),
    ("publishes_per_s", "Messages that each group takes in a second."),
    ("bytes_per_s", "Bytes of payloads that each group takes in a second."),
    ("payload_max", "Longest payload, if it is to be less than the shard's."),
];

/// Reads all `[[class]]` tables of a file.
pub(super) fn read(value: &toml::Value, path: &Path) -> Result<Classes, ConfigError> {
    let wrong = |class: String, what: String| ConfigError::Class { path: path.into(), class, what };
    let Some(tables) = value.as_array() else {
        return Err(wrong("`class`".into(), "it must be written as [[class]] tables".into()));
    };
    if tables.len() > CLASSES_MAX {
        let what = format!("there are {}; at most {CLASSES_MAX} are allowed", tables.len());
        return Err(wrong("`class`".into(), what));
    }
    let mut classes: Vec<Class> = Vec::new();
    for (at, table) in tables.iter().enumerate() {
        let named = table.get("name").and_then(toml::Value::as_str);
        let title =
            named.map_or_else(|| format!("class number {}", at + 1), |n| format!("class `{n}`"));
        let class = one(table).map_err(|what| wrong(title.clone(), what))?;
        if class.name == Classes::DEFAULT_NAME {
            let what = "this name is that of groups which no class covers; take another";
            return Err(wrong(title, what.into()));
        }
        if classes.iter().any(|before| before.name == class.name) {
            return Err(wrong(title, "there are two classes of this name; rename one".into()));
        }
        for pattern in &class.groups {
            if let Some(before) = classes.iter().find(|before| before.groups.contains(pattern)) {
                let what = format!(
                    "the pattern \"{pattern}\" is in class `{}` already, which wins; remove one",
                    before.name
                );
                return Err(wrong(title, what));
            }
        }
        classes.push(class);
    }
    Ok(Classes::new(classes))
}

fn one(table: &toml::Value) -> Result<Class, String> {
    let table = table.as_table().ok_or("it must be a table")?;
    let mut class = Class::named("");
    for (key, value) in table {
        let not = |allowed: &str| format!("{key} = {} must be {allowed}", toml_text(value));
        let int = |min: u64, max: u64| {
            let n = value.as_integer().and_then(|n| u64::try_from(n).ok());
            n.filter(|n| (min..=max).contains(n))
                .ok_or_else(|| not(&format!("a number from {min} to {max}")))
        };
        match key.as_str() {
            "name" => {
                let good = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
                let name = value.as_str().filter(|n| (1..=NAME_MAX).contains(&n.len()));
                let name = name.filter(|n| n.bytes().all(good));
                class.name = name
                    .ok_or_else(|| {
                        not(&format!(
                            "1 to {NAME_MAX} letters, digits, hyphens, underscores or dots"
                        ))
                    })?
                    .into();
            }
            "groups" => class.groups = patterns(value)?,
            "priority" => {
                let named = value.as_str().and_then(Priority::named);
                class.priority = named.ok_or_else(|| not("realtime, normal or bulk"))?;
            }
            "level" => {
                let named = value.as_str().and_then(Level::named);
                class.level = Some(named.ok_or_else(|| not("durable or memory"))?);
            }
            "retention_bytes" => class.retention_bytes = Some(int(1, 1 << 60)?),
            "retention_age_ms" => class.retention_age_ms = Some(int(1, 876_000 * HOUR_MS)?),
            "receipts" => class.receipts = value.as_bool().ok_or_else(|| not("true or false"))?,
            "ack_timeout_ms" => class.ack_timeout_ms = Some(int(100, HOUR_MS)? as u32),
            "redeliver_max" => class.redeliver_max = Some(int(1, 1_000_000)? as u32),
            "publishes_per_s" => class.publishes_per_s = Some(int(1, 100_000_000)? as u32),
            "bytes_per_s" => class.bytes_per_s = Some(int(1, 1 << 40)?),
            "payload_max" => class.payload_max = Some(int(1, PAYLOAD_MAX as u64)? as u32),
            other => return Err(unknown(other)),
        }
    }
    if class.name.is_empty() {
        return Err("`name` is missing".into());
    }
    if class.groups.is_empty() {
        return Err("`groups` is missing; name the groups, such as groups = [\"alerts/*\"]".into());
    }
    Ok(class)
}

fn unknown(key: &str) -> String {
    let near = KEYS.iter().map(|(name, _)| *name);
    let near = near.min_by_key(|name| distance(name.as_bytes(), key.as_bytes()));
    let near = near.filter(|name| distance(name.as_bytes(), key.as_bytes()) <= 3);
    let near = near.map_or_else(String::new, |near| format!(", did you mean `{near}`"));
    let all: Vec<_> = KEYS.iter().map(|(name, _)| *name).collect();
    format!("unknown key `{key}`{near}; a class may have {}", all.join(", "))
}

fn patterns(value: &toml::Value) -> Result<Vec<Pattern>, String> {
    let must = "groups must be a list of names, such as [\"alerts/*\", \"lobby\"]";
    let list = value.as_array().ok_or(must)?;
    if list.len() > CLASS_PATTERNS_MAX {
        return Err(format!(
            "groups has {} names; at most {CLASS_PATTERNS_MAX} are allowed",
            list.len()
        ));
    }
    let mut patterns = Vec::new();
    for text in list {
        let text = text.as_str().ok_or(must)?;
        if text.is_empty() {
            return Err("a name in groups is empty; write \"*\" for all groups".into());
        }
        let pattern = Pattern::parse(text).ok_or_else(|| {
            format!("the name {} in groups may have a * only at its end", quoted(text))
        })?;
        if text.len() > GROUP_NAME_MAX + usize::from(matches!(pattern, Pattern::Prefix(_))) {
            return Err(format!(
                "the name {} in groups is longer than the {GROUP_NAME_MAX} bytes of a group's name",
                quoted(text)
            ));
        }
        if patterns.contains(&pattern) {
            return Err(format!("the name {} is twice in groups", quoted(text)));
        }
        patterns.push(pattern);
    }
    Ok(patterns)
}

/// What a class says under each key, if it says something.
fn values(class: &Class) -> [Option<toml::Value>; KEYS.len()] {
    let int = |n: u64| toml::Value::Integer(n as i64);
    let small = |n: Option<u32>| n.map(|n| int(n.into()));
    let groups: Vec<_> = class.groups.iter().map(ToString::to_string).collect();
    [
        Some(class.name.clone().into()),
        Some(groups.into()),
        Some(class.priority.name().into()),
        class.level.map(|level| level.name().into()),
        class.retention_bytes.map(int),
        class.retention_age_ms.map(int),
        Some(class.receipts.into()),
        small(class.ack_timeout_ms),
        small(class.redeliver_max),
        small(class.publishes_per_s),
        class.bytes_per_s.map(int),
        small(class.payload_max),
    ]
}

/// The classes as JSON; what a class does not say is null.
pub(super) fn json(classes: &Classes) -> serde_json::Value {
    let class = |class| {
        let entry = |((name, _), value)| (String::from(name), serde_json::json!(value));
        KEYS.into_iter().zip(values(class)).map(entry).collect::<serde_json::Map<_, _>>()
    };
    classes.named().iter().map(class).collect()
}

/// Appends the classes as tables that can be read again.
pub(super) fn print(classes: &Classes, out: &mut String) {
    out.push_str(
        "\n# Classes of groups: what holds for groups by their names. The first class with a\n",
    );
    out.push_str("# pattern for the name wins; what a class does not say is as above. Keys:\n");
    for (name, about) in KEYS {
        let _ = writeln!(out, "# {name}: {about}");
    }
    for class in classes.named() {
        out.push_str("\n[[class]]\n");
        for ((name, _), value) in KEYS.into_iter().zip(values(class)) {
            if let Some(value) = value {
                let _ = writeln!(out, "{name} = {}", toml_text(&value));
            }
        }
    }
}
