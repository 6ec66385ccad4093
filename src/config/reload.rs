//! What becomes of a running server's configuration when it is read again.

use super::load::{Loaded, build};
use super::{ConfigError, keys};

/// A configuration that was read again.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// What is in force from now on.
    pub loaded: Loaded,
    /// Keys that have another value than before.
    pub changed: Vec<&'static str>,
    /// Keys that were given another value and keep the one they had until the server is started
    /// again; `class` among them if the classes differ.
    pub needs_restart: Vec<&'static str>,
}

impl Loaded {
    /// Takes over from `new` what can change while a server runs.
    ///
    /// # Errors
    /// What of both is in force then does not go together.
    pub fn reload(&self, new: Self) -> Result<Reloaded, ConfigError> {
        let mut values = self.values.clone();
        let (mut changed, mut needs_restart) = (Vec::new(), Vec::new());
        for key in keys::all() {
            let value = |of: &Self| of.values.get(key.name).map(|(value, _)| value.clone());
            let differs = value(self) != value(&new);
            if differs && !key.is_live() {
                needs_restart.push(key.name);
                continue;
            }
            if differs {
                changed.push(key.name);
            }
            match new.values.get(key.name) {
                Some(set) => values.insert(key.name, set.clone()),
                None => values.remove(key.name),
            };
        }
        if new.config.shard.classes != self.config.shard.classes {
            needs_restart.push(super::class_keys::CLASS);
        }
        let config = build(&values, self.config.shard.classes.clone())?;
        let loaded = Self { config, unknown_env: new.unknown_env, values };
        Ok(Reloaded { loaded, changed, needs_restart })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::super::{Layers, Origin, load};
    use super::*;

    fn file(text: &str) -> Loaded {
        load(&Layers { file: Some(("f.toml".into(), text.into())), ..Layers::default() }).unwrap()
    }

    #[test]
    fn live_keys_are_taken_over_and_others_are_named() {
        let before = file("ack_every = 1\nheartbeat_ms = 1000\nlog = \"debug\"");
        let new = "ack_every = 2\nheartbeat_ms = 2000\nhttp = \"127.0.0.1:7411\"\n\
                   [[class]]\nname = \"a\"\ngroups = [\"a\"]";
        let Reloaded { loaded, changed, needs_restart } = before.reload(file(new)).unwrap();
        assert_eq!(changed, ["log", "ack_every"]);
        assert_eq!(needs_restart, ["http", "heartbeat_ms", "class"]);
        let config = &loaded.config;
        assert_eq!((config.shard.ack_every, config.shard.heartbeat_ms), (2, 1000));
        assert_eq!((config.log.as_str(), config.http), ("info", None));
        assert!(config.shard.classes.named().is_empty());
        assert_eq!(loaded.origin("log"), Origin::Default);
        // Asked again, the same is still to be done.
        assert_eq!(loaded.reload(file(new)).unwrap().needs_restart, needs_restart);
    }

    #[test]
    fn bounds_of_groups_outlive_a_reload() {
        let class = "[[class]]\nname = \"a\"\ngroups = [\"a\"]\npayload_max = 10";
        for bound in ["group_publishes_per_s = 5", class] {
            let again = file(bound).reload(file(bound)).unwrap().loaded;
            assert!(again.config.shard.groups_are_bounded, "{bound}");
        }
    }

    #[test]
    fn what_is_in_force_together_is_checked() {
        let before = file("segment_bytes = 67108864");
        let new = file("segment_bytes = 33554432\nretention_bytes = 33554432");
        let error = before.reload(new).unwrap_err();
        assert!(error.to_string().contains("retention_bytes"), "{error}");
    }

    #[test]
    fn every_live_key_is_a_key() {
        for name in keys::LIVE_KEYS {
            assert!(keys::find(name).is_some(), "{name}");
        }
    }
}
