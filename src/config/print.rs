//! The effective configuration as a file that can be loaded again.

use std::fmt::Write;

use super::keys::{Key, NODE_KEYS, SHARD_KEYS};
use super::load::{Loaded, Origin, Setting};

impl Loaded {
    /// All keys with what they mean, what they may be, their values and who set them, as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::from("# The effective configuration of `fanfare serve`.\n");
        out.push_str("\n# The server.\n");
        self.section(NODE_KEYS, &mut out);
        out.push_str("\n# Each shard. Sizes are bytes, times milliseconds.\n");
        self.section(SHARD_KEYS, &mut out);
        super::class_keys::print(&self.config.shard.classes, &mut out);
        out
    }

    /// The same as JSON: each key with its value and who set it, and the classes.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::Map::new();
        for key in super::keys::all() {
            let (value, origin) = match self.values.get(key.name) {
                None => (serde_json::Value::Null, Origin::Default),
                Some((setting, origin)) => (setting_json(setting), origin.clone()),
            };
            let said = serde_json::json!({
                "value": value,
                "set_by": origin.to_string(),
                "live": key.is_live(),
            });
            json.insert(key.name.into(), said);
        }
        let classes = super::class_keys::json(&self.config.shard.classes);
        serde_json::json!({ "keys": json, "classes": classes })
    }

    fn section(&self, keys: &[Key], out: &mut String) {
        for key in keys {
            let live = if key.is_live() { " SIGHUP takes it over." } else { "" };
            let allowed = key.kind.allowed();
            let _ = writeln!(out, "\n# {}\n# Must be {allowed}.{live}", key.about);
            let _ = match self.values.get(key.name) {
                Some((value, origin)) => {
                    writeln!(out, "{} = {} # {origin}", key.name, setting_text(value))
                }
                None => writeln!(out, "# {} is not set.", key.name),
            };
        }
    }
}

fn setting_json(setting: &Setting) -> serde_json::Value {
    match setting {
        Setting::Int(n) => (*n).into(),
        Setting::Bool(b) => (*b).into(),
        Setting::Text(text) => text.as_str().into(),
        Setting::Cores(list) => list.clone().into(),
    }
}

fn setting_text(setting: &Setting) -> String {
    match setting {
        Setting::Int(n) => n.to_string(),
        Setting::Bool(b) => b.to_string(),
        Setting::Text(text) => quoted(text),
        Setting::Cores(list) => format!("{list:?}"),
    }
}

/// A value of a file as it is written there, for messages.
pub(super) fn toml_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => quoted(text),
        toml::Value::Integer(n) => n.to_string(),
        toml::Value::Float(n) => n.to_string(),
        toml::Value::Boolean(b) => b.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(list) => {
            format!("[{}]", list.iter().map(toml_text).collect::<Vec<_>>().join(", "))
        }
        toml::Value::Table(_) => "a table".into(),
    }
}

/// A JSON string is a TOML basic string too.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
