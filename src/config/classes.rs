//! Classes of groups: what an operator sets for all groups whose names match.

use std::fmt;

use super::ShardConfig;
use crate::group::rates::PublishRates;
use crate::position::Level;

/// Which groups are served first. An order of groups, never of messages: the order in a
/// group is total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// Before everything else.
    Realtime = 0,
    /// What there is without classes.
    #[default]
    Normal = 1,
    /// With a small share beside the others.
    Bulk = 2,
}

impl Priority {
    /// Count of priorities.
    pub const COUNT: usize = 3;
    /// All, the first served first.
    pub const ALL: [Self; Self::COUNT] = [Self::Realtime, Self::Normal, Self::Bulk];

    /// Place in a table with one entry for each priority.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Normal => "normal",
            Self::Bulk => "bulk",
        }
    }

    /// The priority with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.name() == name)
    }
}

/// A class, as a group remembers it. 0 is the class of groups that no pattern names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClassId(pub u16);

/// Names that a class covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// This name.
    Exact(Box<[u8]>),
    /// Every name that starts like this; written with a `*` at the end.
    Prefix(Box<[u8]>),
}

impl Pattern {
    /// Reads a pattern; `None` if a `*` is not its last character.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (start, prefix) = text.strip_suffix('*').map_or((text, false), |start| (start, true));
        if start.contains('*') {
            return None;
        }
        let name = start.as_bytes().into();
        Some(if prefix { Self::Prefix(name) } else { Self::Exact(name) })
    }

    /// Whether it covers this name.
    #[must_use]
    pub fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Prefix(start) => name.starts_with(start),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(&String::from_utf8_lossy(name)),
            Self::Prefix(start) => write!(f, "{}*", String::from_utf8_lossy(start)),
        }
    }
}

/// What holds for the groups of a class. What is `None` is as for all groups of the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Names of its groups.
    pub groups: Vec<Pattern>,
    /// Which groups are served first.
    pub priority: Priority,
    /// Level of a publish that asks for none.
    pub level: Option<Level>,
    /// Bytes of its messages that a group keeps; more may be gone by the shard's retention.
    pub retention_bytes: Option<u64>,
    /// How long a group keeps messages; less if the shard's retention says so.
    pub retention_age_ms: Option<u64>,
    /// Whether a publisher may ask for receipts.
    pub receipts: bool,
    /// What a durable member does not acknowledge for this long may be sent again.
    pub ack_timeout_ms: Option<u32>,
    /// Redeliveries without any progress before the member is disconnected.
    pub redeliver_max: Option<u32>,
    /// Messages that a group takes in a second.
    pub publishes_per_s: Option<u32>,
    /// Bytes of their payloads.
    pub bytes_per_s: Option<u64>,
    /// Longest payload, if that is less than the shard's.
    pub payload_max: Option<u32>,
}

impl Class {
    /// A class that changes nothing.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            groups: Vec::new(),
            priority: Priority::Normal,
            level: None,
            retention_bytes: None,
            retention_age_ms: None,
            receipts: true,
            ack_timeout_ms: None,
            redeliver_max: None,
            publishes_per_s: None,
            bytes_per_s: None,
            payload_max: None,
        }
    }
}

/// All classes; the first is that of groups that no pattern names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    list: Vec<Class>,
    mixed: bool,
}

impl Default for Classes {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Classes {
    /// Name of the class of groups that no pattern names.
    pub const DEFAULT_NAME: &str = "default";

    /// These classes, the earlier ones first asked.
    #[must_use]
    pub fn new(named: Vec<Class>) -> Self {
        let mixed = named.iter().any(|class| class.priority != Priority::Normal);
        let mut list = vec![Class::named(Self::DEFAULT_NAME)];
        list.extend(named);
        Self { list, mixed }
    }

    /// The class of a group: the first that has a pattern for its name. Asked once when a
    /// group comes into being.
    #[must_use]
    pub fn of(&self, group: &[u8]) -> ClassId {
        let covers = |class: &Class| class.groups.iter().any(|pattern| pattern.matches(group));
        ClassId(self.list.iter().position(covers).unwrap_or(0) as u16)
    }

    /// The class with this number.
    #[must_use]
    pub fn get(&self, id: ClassId) -> &Class {
        self.list.get(usize::from(id.0)).unwrap_or(&self.list[0])
    }

    /// The classes that the configuration names.
    #[must_use]
    pub fn named(&self) -> &[Class] {
        &self.list[1..]
    }

    /// Whether there can be groups of several priorities. Without them nothing is held back
    /// for anyone.
    #[must_use]
    pub fn are_mixed(&self) -> bool {
        self.mixed
    }

    /// Whether a class keeps less than the shard does.
    #[must_use]
    pub fn trim(&self) -> bool {
        let trims = |c: &Class| c.retention_bytes.is_some() || c.retention_age_ms.is_some();
        self.list.iter().any(trims)
    }
}

impl ShardConfig {
    /// Notes whether any group is bounded in what it takes, so that a message of a server without
    /// such bounds costs one look. To be called when bounds or classes were set.
    pub fn note_bounds(&mut self) {
        let bounds = |class: &Class| {
            class.publishes_per_s.is_some()
                || class.bytes_per_s.is_some()
                || class.payload_max.is_some()
        };
        self.groups_are_bounded = self.group_publishes_per_s > 0
            || self.group_bytes_per_s > 0
            || self.classes.named().iter().any(bounds);
    }

    /// What a group of this class takes in a second.
    #[must_use]
    pub fn publish_rates_of(&self, class: ClassId) -> PublishRates {
        let class = self.classes.get(class);
        PublishRates {
            publishes_per_s: u64::from(class.publishes_per_s.unwrap_or(self.group_publishes_per_s)),
            bytes_per_s: class.bytes_per_s.unwrap_or(self.group_bytes_per_s),
        }
    }

    /// Longest payload of a message to a group of this class.
    #[must_use]
    pub fn payload_max_of(&self, class: ClassId) -> u32 {
        self.classes.get(class).payload_max.unwrap_or(self.payload_max)
    }

    /// Priority of the groups of a class.
    #[must_use]
    pub fn priority_of(&self, class: ClassId) -> Priority {
        self.classes.get(class).priority
    }

    /// Level of a publish to a group of this class that asks for none.
    #[must_use]
    pub fn level_of(&self, class: ClassId) -> Level {
        self.classes.get(class).level.unwrap_or(self.level)
    }

    /// Whether publishers to groups of this class may ask for receipts.
    #[must_use]
    pub fn receipts_of(&self, class: ClassId) -> bool {
        self.classes.get(class).receipts
    }

    /// What a durable member of a group of this class does not acknowledge for this long may
    /// be sent again.
    #[must_use]
    pub fn ack_timeout_ms_of(&self, class: ClassId) -> u32 {
        self.classes.get(class).ack_timeout_ms.unwrap_or(self.ack_timeout_ms)
    }

    /// Redeliveries without any progress before a member of a group of this class is
    /// disconnected.
    #[must_use]
    pub fn redeliver_max_of(&self, class: ClassId) -> u32 {
        self.classes.get(class).redeliver_max.unwrap_or(self.redeliver_max)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn class(name: &str, groups: &[&str]) -> Class {
        let groups = groups.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        Class { groups, ..Class::named(name) }
    }

    #[test]
    fn the_first_class_with_a_pattern_for_the_name_wins() {
        let classes = Classes::new(vec![
            class("one", &["alerts/fire", "x"]),
            class("two", &["alerts/*"]),
            class("three", &["*"]),
        ]);
        let of = |name: &str| classes.get(classes.of(name.as_bytes())).name.clone();
        assert_eq!(of("alerts/fire"), "one");
        assert_eq!(of("alerts/fires"), "two");
        assert_eq!(of("alerts/"), "two");
        assert_eq!(of("alerts"), "three");
        assert_eq!(of("xx"), "three");
        let few = Classes::new(vec![class("one", &["x"])]);
        assert_eq!(few.of(b"y"), ClassId(0));
        assert_eq!(few.get(ClassId(9)).name, Classes::DEFAULT_NAME);
    }

    #[test]
    fn a_star_is_only_allowed_at_the_end() {
        for text in ["*a", "a*b", "**"] {
            assert_eq!(Pattern::parse(text), None, "{text}");
        }
        assert_eq!(Pattern::parse("a*").unwrap().to_string(), "a*");
    }

    #[test]
    fn what_a_class_does_not_say_is_as_for_the_shard() {
        let mut said = class("said", &["s"]);
        said.level = Some(Level::Memory);
        said.ack_timeout_ms = Some(7);
        let classes = std::sync::Arc::new(Classes::new(vec![said]));
        let config = ShardConfig { classes, ..ShardConfig::default() };
        let (said, other) = (config.classes.of(b"s"), config.classes.of(b"t"));
        assert_eq!(config.level_of(said), Level::Memory);
        assert_eq!(config.level_of(other), config.level);
        assert_eq!(config.ack_timeout_ms_of(said), 7);
        assert_eq!(config.ack_timeout_ms_of(other), config.ack_timeout_ms);
        assert_eq!(config.redeliver_max_of(said), config.redeliver_max);
        assert!(!config.classes.are_mixed() && !config.classes.trim());
    }
}
