//! Which groups a token allows what in. Patterns are read once per token; what they say of a group
//! is remembered per connection, so that a publish costs one look-up.

use serde_json::{Map, Value};
use twox_hash::XxHash3_64;

use crate::config::Pattern;
use crate::limits::GROUP_NAME_MAX;

/// Patterns of one list.
const PATTERNS_MAX: usize = 64;
/// Groups of a connection whose rights are remembered.
const REMEMBERED_MAX: usize = 64;

/// What a token may allow in a group; the numbers are those of PROTOCOL.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Right {
    /// To be a member, and to see who is one.
    Join = 1,
    /// To publish.
    Publish = 2,
    /// To read what was published before.
    History = 3,
    /// To set the group's state.
    State = 4,
}

impl Right {
    const ALL: [Self; 4] = [Self::Join, Self::Publish, Self::History, Self::State];

    /// Name of its list in a token.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Publish => "publish",
            Self::History => "history",
            Self::State => "state",
        }
    }
}

/// The rights in one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed(u8);

impl Allowed {
    /// Whether this right is among them.
    #[must_use]
    pub fn has(self, right: Right) -> bool {
        self.0 & (1 << right as u8) != 0
    }

    fn with(self, right: Right) -> Self {
        Self(self.0 | 1 << right as u8)
    }
}

/// The lists of a token.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    lists: [Box<[Pattern]>; 4],
    /// The rights that hold whatever the group.
    everywhere: Allowed,
    /// There are no others.
    uniform: bool,
}

impl Rights {
    /// Reads the claim; `None` if it is not as PROTOCOL.md says. Without it nothing is allowed.
    #[must_use]
    pub fn read(claim: Option<&Value>) -> Option<Self> {
        let mut rights = Self { uniform: true, ..Self::default() };
        let Some(claim) = claim else { return Some(rights) };
        let claim = claim.as_object()?;
        for (right, list) in Right::ALL.into_iter().zip(&mut rights.lists) {
            *list = match patterns(claim, right.name())? {
                None if right == Right::History => patterns(claim, "join")?.unwrap_or_default(),
                list => list.unwrap_or_default(),
            };
            if list.iter().any(|pattern| *pattern == Pattern::Prefix(Box::default())) {
                rights.everywhere = rights.everywhere.with(right);
            } else {
                rights.uniform &= list.is_empty();
            }
        }
        Some(rights)
    }

    /// What is allowed in the group of this name.
    #[must_use]
    pub fn of(&self, group: &[u8]) -> Allowed {
        let mut allowed = self.everywhere;
        for (right, list) in Right::ALL.into_iter().zip(&self.lists) {
            if list.iter().any(|pattern| pattern.matches(group)) {
                allowed = allowed.with(right);
            }
        }
        allowed
    }
}

/// A list of the claim, if it is there; the outer `None` is a malformed one.
fn patterns(claim: &Map<String, Value>, name: &str) -> Option<Option<Box<[Pattern]>>> {
    let Some(list) = claim.get(name) else { return Some(None) };
    let list = list.as_array().filter(|list| list.len() <= PATTERNS_MAX)?;
    let pattern = |value: &Value| {
        let text =
            value.as_str().filter(|text| !text.is_empty() && text.len() <= GROUP_NAME_MAX)?;
        Pattern::parse(text)
    };
    Some(Some(list.iter().map(pattern).collect::<Option<_>>()?))
}

/// The rights of a connection, with what they said of the groups it used last.
#[derive(Debug)]
pub struct CachedRights {
    rights: Rights,
    /// A power of two of places; a group has one of them, by the hash of its name.
    remembered: Vec<Option<(Box<[u8]>, Allowed)>>,
}

impl CachedRights {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(rights: Rights) -> Self {
        Self { rights, remembered: Vec::new() }
    }

    /// What is allowed in the group of this name.
    pub fn of(&mut self, group: &[u8]) -> Allowed {
        if self.rights.uniform {
            return self.rights.everywhere;
        }
        let hash = XxHash3_64::oneshot(group) as usize;
        let places = self.remembered.len();
        if let Some(Some((name, allowed))) = self.remembered.get(hash & places.wrapping_sub(1))
            && **name == *group
        {
            return *allowed;
        }
        let allowed = self.rights.of(group);
        self.remember(group, hash, allowed);
        allowed
    }

    /// Takes the place of the group; more places are made as long as another group has it.
    fn remember(&mut self, group: &[u8], hash: usize, allowed: Allowed) {
        loop {
            let places = self.remembered.len();
            let place = hash & places.wrapping_sub(1);
            match self.remembered.get_mut(place) {
                Some(free @ None) => break *free = Some((group.into(), allowed)),
                Some(taken) if places >= REMEMBERED_MAX => {
                    break *taken = Some((group.into(), allowed));
                }
                _ => self.grow((2 * places).max(1)),
            }
        }
    }

    fn grow(&mut self, places: usize) {
        let before = std::mem::replace(&mut self.remembered, vec![None; places]);
        for (name, allowed) in before.into_iter().flatten() {
            let place = XxHash3_64::oneshot(&name) as usize & (places - 1);
            self.remembered[place] = Some((name, allowed));
        }
    }
}
