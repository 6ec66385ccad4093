//! From flags, environment, file and defaults to one checked configuration. Pure: whoever
//! calls reads the file and the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::class_keys::{self, CLASS};
use super::keys::{self, Key, Kind, SHARD_KEYS};
use super::{Classes, ConfigError, ShardConfig};
use crate::auth::Expected;
use crate::position::Level;
use crate::tls::files::TlsFiles;
use crate::ws::Origins;

/// Where names of the environment begin.
pub(super) const ENV_PREFIX: &str = "FANFARE_";
/// Names the file; not a key, since the file cannot name itself.
pub(super) const ENV_CONFIG: &str = "FANFARE_CONFIG";

const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);

/// Who set a value. Later ones win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// The file.
    File(PathBuf),
    /// This variable of the environment.
    Env(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::Flag => f.write_str("the command line"),
        }
    }
}

/// A value of the right kind and within its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    Int(u64),
    Bool(bool),
    Text(String),
    Cores(Vec<usize>),
}

/// What a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// Name and text of the file, if there is one.
    pub file: Option<(PathBuf, String)>,
    /// The environment; names that do not begin with `FANFARE_` are ignored.
    pub env: Vec<(String, String)>,
    /// Keys and values of the command line.
    pub flags: Vec<(String, String)>,
}

/// What `fanfare serve` starts from.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Address that every shard listens on.
    pub listen: SocketAddr,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Number of shards; `None` takes the data directory's, or one per core.
    pub shards: Option<u16>,
    /// Cores for the shards; `None` takes all.
    pub cores: Option<Vec<usize>>,
    /// Filter of the log.
    pub log: String,
    /// How often a line of figures is logged.
    pub stats_interval: Option<Duration>,
    /// Address of the HTTP interface.
    pub http: Option<SocketAddr>,
    /// File with the token that it asks for.
    pub http_token_file: Option<PathBuf>,
    /// Where the keys of tokens are; without them nobody is asked for one.
    pub auth: Option<AuthConfig>,
    /// Whether an address beyond loopback is allowed without keys.
    pub insecure_no_auth: bool,
    /// Certificate and key, if there is TLS.
    pub tls: Option<TlsFiles>,
    /// What each shard must know.
    pub shard: ShardConfig,
}

/// Who may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// The key file.
    pub keys: PathBuf,
    /// What tokens must say.
    pub expected: Expected,
}

/// A configuration and where its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: ServeConfig,
    /// Variables that look meant for Fanfare but name no key.
    pub unknown_env: Vec<String>,
    pub(super) values: BTreeMap<&'static str, (Setting, Origin)>,
}

impl Loaded {
    /// Who set `key`.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        self.values.get(key).map_or(Origin::Default, |(_, origin)| origin.clone())
    }
}

/// Puts the layers over each other and checks every value.
///
/// # Errors
/// [`ConfigError`] for the first thing that is wrong.
pub fn load(layers: &Layers) -> Result<Loaded, ConfigError> {
    let mut values = BTreeMap::new();
    let mut classes = Classes::default();
    defaults(&mut values)?;
    if let Some((path, text)) = &layers.file {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            ConfigError::Syntax { path: path.clone(), message: e.to_string() }
        })?;
        for (name, value) in &table {
            if name == CLASS {
                classes = class_keys::read(value, path)?;
                continue;
            }
            let origin = Origin::File(path.clone());
            let key = known(name, &origin)?;
            values.insert(key.name, (from_toml(key, value, &origin)?, origin));
        }
    }
    let mut unknown_env = Vec::new();
    for (variable, text) in &layers.env {
        let Some(name) = variable.strip_prefix(ENV_PREFIX) else { continue };
        // Container managers put names of their own here, so an unknown one is no error.
        let Some(key) = keys::find(&name.to_ascii_lowercase()) else {
            if variable != ENV_CONFIG {
                unknown_env.push(variable.clone());
            }
            continue;
        };
        let origin = Origin::Env(variable.clone());
        values.insert(key.name, (from_text(key, text, &origin)?, origin));
    }
    for (name, text) in &layers.flags {
        let key = known(name, &Origin::Flag)?;
        let setting = from_text(key, text, &Origin::Flag)?;
        if let Some((_, Origin::Flag)) = values.insert(key.name, (setting, Origin::Flag)) {
            return Err(ConfigError::Twice(key.name.into()));
        }
    }
    let config = build(&values, Arc::new(classes))?;
    Ok(Loaded { config, unknown_env, values })
}

type Values = BTreeMap<&'static str, (Setting, Origin)>;

fn known(name: &str, origin: &Origin) -> Result<&'static Key, ConfigError> {
    keys::find(name).ok_or_else(|| ConfigError::Unknown {
        key: name.into(),
        origin: origin.clone(),
        near: keys::nearest(name),
    })
}

fn defaults(values: &mut Values) -> Result<(), ConfigError> {
    let node = [
        ("listen", "127.0.0.1:7400"),
        ("data_dir", "./fanfare-data"),
        ("log", "info"),
        ("stats_interval", "off"),
        ("http", "off"),
        ("auth_leeway_s", "5"),
        ("insecure_no_auth", "false"),
    ];
    for (name, text) in node {
        let key = known(name, &Origin::Default)?;
        values.insert(key.name, (from_text(key, text, &Origin::Default)?, Origin::Default));
    }
    let shard = toml::Value::try_from(ShardConfig::default()).ok();
    for (name, value) in shard.iter().filter_map(toml::Value::as_table).flatten() {
        let key = known(name, &Origin::Default)?;
        values.insert(key.name, (from_toml(key, value, &Origin::Default)?, Origin::Default));
    }
    Ok(())
}

fn refused(key: &Key, value: impl fmt::Display, origin: &Origin) -> ConfigError {
    ConfigError::Value {
        key: key.name,
        value: value.to_string(),
        origin: origin.clone(),
        allowed: key.kind.allowed(),
    }
}

/// A value of the file.
fn from_toml(key: &Key, value: &toml::Value, origin: &Origin) -> Result<Setting, ConfigError> {
    let setting = match value {
        toml::Value::Integer(n) => int(key.kind, i128::from(*n)),
        toml::Value::Boolean(b) if matches!(key.kind, Kind::Bool) => Some(Setting::Bool(*b)),
        toml::Value::String(text) if !is_number(key.kind) => text_setting(key.kind, text),
        toml::Value::Array(list) if matches!(key.kind, Kind::Cores) => list
            .iter()
            .map(|core| core.as_integer().and_then(|n| usize::try_from(n).ok()))
            .collect::<Option<Vec<_>>>()
            .and_then(cores),
        toml::Value::Array(list) if matches!(key.kind, Kind::Origins) => list
            .iter()
            .map(toml::Value::as_str)
            .collect::<Option<Vec<_>>>()
            .and_then(|list| text_setting(key.kind, &list.join(", "))),
        _ => None,
    };
    setting.ok_or_else(|| refused(key, super::print::toml_text(value), origin))
}

/// A value of the environment or the command line.
fn from_text(key: &Key, text: &str, origin: &Origin) -> Result<Setting, ConfigError> {
    let text = text.trim();
    let setting = match key.kind {
        kind if is_number(kind) => text.replace('_', "").parse().ok().and_then(|n| int(kind, n)),
        Kind::Bool => match text {
            "true" | "1" | "yes" | "on" => Some(Setting::Bool(true)),
            "false" | "0" | "no" | "off" => Some(Setting::Bool(false)),
            _ => None,
        },
        kind => text_setting(kind, text),
    };
    setting.ok_or_else(|| refused(key, format!("{text:?}"), origin))
}

fn is_number(kind: Kind) -> bool {
    matches!(kind, Kind::Int(..) | Kind::IntOrZero(..) | Kind::PowerOfTwo(..) | Kind::Multiple(..))
}

fn int(kind: Kind, value: i128) -> Option<Setting> {
    let n = u64::try_from(value).ok()?;
    let fits = match kind {
        Kind::Int(min, max) => (min..=max).contains(&n),
        Kind::IntOrZero(min, max) => n == 0 || (min..=max).contains(&n),
        Kind::PowerOfTwo(min, max) => n.is_power_of_two() && (min..=max).contains(&n),
        Kind::Multiple(of, min, max) => n.is_multiple_of(of) && (min..=max).contains(&n),
        _ => false,
    };
    fits.then_some(Setting::Int(n))
}

fn text_setting(kind: Kind, text: &str) -> Option<Setting> {
    let fits = match kind {
        Kind::Text => !text.is_empty(),
        Kind::Address => text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0),
        Kind::AddressOrOff => text == "off" || text_setting(Kind::Address, text).is_some(),
        Kind::Level => Level::named(text).is_some(),
        Kind::SecondConnection => matches!(text, "takeover" | "allow"),
        Kind::Origins => Origins::try_from(text.to_owned()).is_ok(),
        Kind::Interval => text == "off" || interval(text).is_some(),
        Kind::Cores => {
            let list: Result<Vec<_>, _> = text.split(',').map(|n| n.trim().parse()).collect();
            return list.ok().and_then(cores);
        }
        _ => false,
    };
    fits.then(|| Setting::Text(text.into()))
}

fn cores(list: Vec<usize>) -> Option<Setting> {
    let once = list.iter().enumerate().all(|(i, core)| !list[..i].contains(core));
    (once && !list.is_empty()).then_some(Setting::Cores(list))
}

/// Reads a time with its unit, such as `500ms`; from 10 ms to a day.
#[must_use]
pub fn interval(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let time = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
    (INTERVAL_MIN..=INTERVAL_MAX).contains(&time).then_some(time)
}

/// The configuration that the values and classes make, checked as a whole.
pub(super) fn build(values: &Values, classes: Arc<Classes>) -> Result<ServeConfig, ConfigError> {
    let mut shard = toml::Table::new();
    for key in SHARD_KEYS {
        let value = match values.get(key.name) {
            Some((Setting::Int(n), _)) => toml::Value::Integer(*n as i64),
            Some((Setting::Text(text), _)) => toml::Value::String(text.clone()),
            Some((Setting::Bool(b), _)) => toml::Value::Boolean(*b),
            _ => continue,
        };
        shard.insert(key.name.into(), value);
    }
    // Every range lies within its field, so this fails only if a key and its field disagree.
    let mut shard: ShardConfig = shard.try_into().map_err(|e: toml::de::Error| {
        ConfigError::Syntax { path: "the effective configuration".into(), message: e.to_string() }
    })?;
    let text = |name| match values.get(name) {
        Some((Setting::Text(text), _)) => text.as_str(),
        _ => "",
    };
    let listen: SocketAddr = text("listen").parse().map_err(|_| ConfigError::Value {
        key: "listen",
        value: text("listen").into(),
        origin: Origin::Default,
        allowed: Kind::Address.allowed(),
    })?;
    let given = |name| Some(text(name)).filter(|text| !text.is_empty()).map(str::to_owned);
    let auth = given("auth_keys").map(|keys| AuthConfig {
        keys: keys.into(),
        expected: Expected {
            audience: given("auth_audience"),
            issuer: given("auth_issuer"),
            leeway_s: match values.get("auth_leeway_s") {
                Some((Setting::Int(n), _)) => *n,
                _ => 0,
            },
        },
    });
    let tls = tls_files(values)?;
    // Who has to show a certificate must not get in without one, and there is none in plain.
    shard.tls_required |= tls.as_ref().is_some_and(|files| files.client_ca.is_some());
    shard.tls_required &= !listen.ip().to_canonical().is_loopback();
    shard.classes = classes;
    shard.note_bounds();
    let config = ServeConfig {
        listen,
        data_dir: text("data_dir").into(),
        shards: match values.get("shards") {
            Some((Setting::Int(n), _)) => u16::try_from(*n).ok(),
            _ => None,
        },
        cores: match values.get("cores") {
            Some((Setting::Cores(list), _)) => Some(list.clone()),
            _ => None,
        },
        log: text("log").into(),
        stats_interval: interval(text("stats_interval")),
        http: text("http").parse().ok(),
        http_token_file: Some(text("http_token_file")).filter(|p| !p.is_empty()).map(Into::into),
        auth,
        tls,
        insecure_no_auth: matches!(values.get("insecure_no_auth"), Some((Setting::Bool(true), _))),
        shard,
    };
    check_together(&config, values)?;
    Ok(config)
}

/// The files of TLS: certificate and key come together, and the rest is of no use without them.
fn tls_files(values: &Values) -> Result<Option<TlsFiles>, ConfigError> {
    let path = |name| match values.get(name) {
        Some((Setting::Text(text), _)) => Some(PathBuf::from(text)),
        _ => None,
    };
    let required = matches!(values.get("tls_required"), Some((Setting::Bool(true), _)));
    match (path("tls_cert"), path("tls_key"), path("tls_client_ca")) {
        (Some(cert), Some(key), client_ca) => Ok(Some(TlsFiles { cert, key, client_ca })),
        (None, None, None) if !required => Ok(None),
        _ => Err(ConfigError::TlsFiles),
    }
}

/// What one value alone cannot show.
fn check_together(config: &ServeConfig, values: &Values) -> Result<(), ConfigError> {
    let closed = config.auth.is_some() || config.insecure_no_auth;
    if !config.listen.ip().to_canonical().is_loopback() && !closed {
        return Err(ConfigError::NotLoopback(config.listen));
    }
    if let Some(http) = config.http
        && !http.ip().to_canonical().is_loopback()
        && config.http_token_file.is_none()
    {
        return Err(ConfigError::HttpNeedsToken(http));
    }
    let shard = &config.shard;
    if shard.retention_bytes < shard.segment_bytes {
        let origin = values.get("retention_bytes").map_or(Origin::Default, |(_, o)| o.clone());
        return Err(ConfigError::Value {
            key: "retention_bytes",
            value: shard.retention_bytes.to_string(),
            origin,
            allowed: format!("at least segment_bytes, which is {}", shard.segment_bytes),
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
