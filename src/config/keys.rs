//! Every key of the configuration: one name in the file, in the environment (`FANFARE_` and
//! capitals) and on the command line (`--set`, some with a flag of their own).

use crate::limits::{
    DESCRIPTORS_SPARE, FRAME_MAX, LOG_BLOCK, PAYLOAD_MAX, PRODUCERS_KEPT_MAX, PUBLISH_WINDOW_MAX,
    SEGMENT_BYTES_MIN, SHARDS_MAX,
};

/// What a value must be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A number from the first to the second.
    Int(u64, u64),
    /// The same, or 0.
    IntOrZero(u64, u64),
    /// A power of two from the first to the second.
    PowerOfTwo(u64, u64),
    /// A multiple of the first from the second to the third.
    Multiple(u64, u64, u64),
    /// true or false.
    Bool,
    /// Text that is checked where it is used.
    Text,
    /// IP address and port.
    Address,
    /// IP address and port, or `off`.
    AddressOrOff,
    /// Numbers of cores: a list in the file, `0,1` elsewhere.
    Cores,
    /// `500ms`, `1s`, `2m`, or `off`.
    Interval,
    /// `durable` or `memory`.
    Level,
    /// `takeover` or `allow`.
    SecondConnection,
    /// Origins of web pages with commas between them, or a list of them in the file.
    Origins,
}

impl Kind {
    /// What is allowed, in words that follow "must be".
    pub fn allowed(self) -> String {
        match self {
            Self::Int(min, max) => format!("a number from {min} to {max}"),
            Self::IntOrZero(min, max) => format!("0, or a number from {min} to {max}"),
            Self::PowerOfTwo(min, max) => format!("a power of two from {min} to {max}"),
            Self::Multiple(of, min, max) => format!("a multiple of {of} from {min} to {max}"),
            Self::Bool => "true or false".into(),
            Self::Text => "text that is not empty".into(),
            Self::Address => {
                "an IP address with a port above 0, such as 127.0.0.1:7400 or [::1]:7400".into()
            }
            Self::AddressOrOff => {
                "an IP address with a port above 0, such as 127.0.0.1:7411, or off".into()
            }
            Self::Cores => "numbers of cores, each once, such as 0,1 ([0, 1] in the file)".into(),
            Self::Interval => {
                "a time from 10ms to 24h with its unit, such as 500ms, 1s or 2m, or off".into()
            }
            Self::Level => "durable or memory".into(),
            Self::SecondConnection => "takeover or allow".into(),
            Self::Origins => {
                "origins such as https://chat.example, https://a.example:8443, or * for all".into()
            }
        }
    }
}

/// A key.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What its value must be.
    pub kind: Kind,
    /// What it does, for `--print-config`.
    pub about: &'static str,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const HOUR_MS: u64 = 3_600_000;
/// The kernel's bound on direct descriptors (IORING_MAX_FIXED_FILES).
const DESCRIPTORS_MAX: u64 = 1 << 20;
const CONNECTIONS_MAX: u64 = DESCRIPTORS_MAX - DESCRIPTORS_SPARE as u64;
const SEGMENT_STEP: u64 = LOG_BLOCK as u64;

macro_rules! keys {
    ($($name:ident: $kind:expr, $about:literal;)*) => {
        &[$(Key { name: stringify!($name), kind: $kind, about: $about }),*]
    };
}

/// Keys of the server as a whole, in the order in which they are printed.
pub const NODE_KEYS: &[Key] = keys! {
    listen: Kind::Address, "Address that every shard listens on.";
    data_dir: Kind::Text, "Where the logs are. Made if it is not there.";
    shards: Kind::Int(1, SHARDS_MAX as u64), "Number of shards. A data directory keeps its number unless another one is given.";
    cores: Kind::Cores, "Cores for the shards, in their order. With fewer cores than shards they share.";
    log: Kind::Text, "What is logged: error, warn, info, debug, trace, or a filter such as info,fanfare::shard=debug.";
    stats_interval: Kind::Interval, "A line of figures this often.";
    http: Kind::AddressOrOff, "Address of the HTTP interface for operators: /metrics, /healthz, /readyz, /api/v1.";
    http_token_file: Kind::Text, "File with the token that /metrics and /api/v1 ask for; mode 0600. Without one http must be a loopback address.";
    tls_cert: Kind::Text, "PEM file with the certificate for TLS and those up to its authority. Read again when it changes.";
    tls_key: Kind::Text, "PEM file with its private key.";
    tls_client_ca: Kind::Text, "PEM file with authorities of clients. With it, clients without a certificate of theirs are refused, and those without TLS as by tls_required.";
    auth_keys: Kind::Text, "File with the keys of tokens: a JWKS, public keys in PEM, or a secret. With it nobody is served without a token. Read again when it changes.";
    auth_audience: Kind::Text, "Tokens must be for this audience (aud). Unless set, they must not name any.";
    auth_issuer: Kind::Text, "Tokens must be from this issuer (iss). Unless set, that is not looked at.";
    auth_leeway_s: Kind::Int(0, 3_600), "How far clocks may differ, in seconds, when times of tokens are compared.";
    insecure_no_auth: Kind::Bool, "Allows an address beyond loopback although there are no keys.";
};

/// Keys of each shard; the fields of [`super::ShardConfig`].
pub const SHARD_KEYS: &[Key] = keys! {
    level: Kind::Level, "Level of a publish that asks for none.";
    heartbeat_ms: Kind::IntOrZero(100, HOUR_MS), "Clients say something this often; one silent for twice as long is closed. 0: never.";
    handshake_timeout_ms: Kind::Int(100, HOUR_MS), "HELLO must have come by then.";
    stall_timeout_ms: Kind::Int(100, HOUR_MS), "A write without progress for this long ends the connection.";
    drain_grace_ms: Kind::Int(0, HOUR_MS), "After DRAIN, connections are closed after this time.";
    connections_max: Kind::Int(1, CONNECTIONS_MAX), "Connections per shard. Unless set, the limit of open files may lower it.";
    groups_max: Kind::Int(1, 100_000_000), "Groups per shard.";
    members_per_group_max: Kind::Int(1, 100_000_000), "Members per group.";
    groups_per_member_max: Kind::Int(1, 1_000_000), "Groups per member.";
    publish_window: Kind::Int(1, PUBLISH_WINDOW_MAX as u64), "Publishes per producer and group that are recognised when they are sent again.";
    producers_per_group_max: Kind::Int(1, PRODUCERS_KEPT_MAX as u64), "Producers per group that are remembered.";
    producer_ttl_ms: Kind::Int(1_000, 24 * HOUR_MS), "A producer that published within this time is not forgotten for another one.";
    payload_max: Kind::Int(1, PAYLOAD_MAX as u64), "Longest payload, in bytes.";
    tail_bytes_max: Kind::Int(64 * KIB, TIB), "Newest messages kept in memory, per shard, in bytes.";
    pinned_bytes_max: Kind::Int(64 * KIB, TIB), "Older messages held only by unfinished writes, per shard, in bytes.";
    partial_bytes_max: Kind::Int(FRAME_MAX as u64, TIB), "Unfinished frames of all connections of a shard, in bytes.";
    inbox_bytes_max: Kind::Int(4 * KIB, TIB), "Publishes that wait to be sequenced, per shard, in bytes.";
    roster_interval_ms: Kind::Int(10, HOUR_MS), "Who joined, left, came or went is announced at most this often.";
    state_bytes_max: Kind::Int(KIB, GIB), "The state of one group, keys and values, in bytes.";
    send_bytes_max: Kind::Int(4 * KIB, 64 * MIB), "Most bytes in one socket write.";
    control_bytes_max: Kind::Int(4 * KIB, 64 * MIB), "Replies waiting on one connection, in bytes; when full it is not read.";
    socket_send_buffer: Kind::Int(4 * KIB, GIB), "SO_SNDBUF of member sockets; the kernel doubles it and caps it at net.core.wmem_max.";
    socket_notsent_lowat: Kind::IntOrZero(KIB, GIB), "TCP_NOTSENT_LOWAT of member sockets; 0 leaves the system's value.";
    recv_buffers: Kind::PowerOfTwo(2, 32 * KIB), "Receive buffers per shard.";
    recv_buffer_bytes: Kind::Int(256, MIB), "Bytes of each of them.";
    spin_us: Kind::Int(0, 100_000), "A shard with nothing to do looks again for this long before it sleeps: the next message comes sooner, for a core that is busy while idle.";
    segment_bytes: Kind::Multiple(SEGMENT_STEP, SEGMENT_BYTES_MIN, 16 * GIB), "Size of a log file.";
    retention_bytes: Kind::Int(SEGMENT_BYTES_MIN, 1024 * TIB), "Log kept per shard, in bytes; the oldest files go first.";
    retention_age_ms: Kind::Int(0, 100 * 365 * 24 * HOUR_MS), "Log files older than this go; 0 keeps them.";
    ack_every: Kind::Int(1, 1_000_000), "Clients are told to acknowledge after this many messages ...";
    ack_interval_ms: Kind::Int(1, HOUR_MS), "... or after this time.";
    ack_timeout_ms: Kind::Int(100, HOUR_MS), "What a durable member does not acknowledge for this long may be sent again.";
    cursor_flush_ms: Kind::Int(1, HOUR_MS), "Acknowledged cursors are written to the log after this time, or with what is written anyway.";
    second_connection: Kind::SecondConnection, "When a durable member joins on another connection: takeover closes the older one, allow serves both.";
    receipts_max: Kind::Int(1, MIB), "Receipts that wait, per group.";
    redeliver_window: Kind::Int(1, MIB), "Messages that are sent again to a durable member until it acknowledges some.";
    member_connections_max: Kind::IntOrZero(1, 1_000_000), "Connections of one member, on each shard; 0: no bound.";
    member_publishes_per_s: Kind::IntOrZero(1, 100_000_000), "Messages that a member may publish in a second, on each shard; 0: no bound.";
    member_bytes_per_s: Kind::IntOrZero(1, TIB), "Bytes of their payloads; 0: no bound.";
    member_joins_per_s: Kind::IntOrZero(1, 100_000_000), "Groups that a member may join in a second, on each shard; 0: no bound.";
    group_publishes_per_s: Kind::IntOrZero(1, 100_000_000), "Messages that a group may take in a second, unless its class says; 0: no bound.";
    group_bytes_per_s: Kind::IntOrZero(1, TIB), "Bytes of their payloads, unless its class says; 0: no bound.";
    redeliver_max: Kind::Int(1, 1_000_000), "Redeliveries without progress before a durable member is disconnected.";
    websocket_origins: Kind::Origins, "Web pages that may connect by WebSocket, beside those of the server's own address.";
    websocket_deflate: Kind::Bool, "Compresses messages of WebSockets whose clients offer it, once for all members.";
    tls_required: Kind::Bool, "Refuses connections without TLS, unless the server listens on a loopback address.";
    websocket_echo: Kind::Bool, "Serves /echo, which sends every WebSocket message back. For conformance tests.";
};

/// Keys whose values a running server takes over when it reads its configuration again. All
/// others are built into something at the start (a table, a timetable, a file's size, a listener),
/// or agreed with clients or between shards.
pub const LIVE_KEYS: &[&str] = &[
    "log",
    "stats_interval",
    "http_token_file",
    "level",
    "handshake_timeout_ms",
    "stall_timeout_ms",
    "drain_grace_ms",
    "groups_max",
    "members_per_group_max",
    "groups_per_member_max",
    "producers_per_group_max",
    "tail_bytes_max",
    "pinned_bytes_max",
    "partial_bytes_max",
    "roster_interval_ms",
    "state_bytes_max",
    "send_bytes_max",
    "control_bytes_max",
    "retention_bytes",
    "retention_age_ms",
    "ack_every",
    "ack_interval_ms",
    "ack_timeout_ms",
    "cursor_flush_ms",
    "second_connection",
    "receipts_max",
    "redeliver_window",
    "redeliver_max",
    "member_connections_max",
    "member_publishes_per_s",
    "member_bytes_per_s",
    "member_joins_per_s",
    "group_publishes_per_s",
    "group_bytes_per_s",
    "websocket_origins",
];

impl Key {
    /// Whether a running server takes its value over.
    pub fn is_live(&self) -> bool {
        LIVE_KEYS.contains(&self.name)
    }
}

/// All keys.
pub fn all() -> impl Iterator<Item = &'static Key> {
    NODE_KEYS.iter().chain(SHARD_KEYS)
}

/// The key with this name.
pub fn find(name: &str) -> Option<&'static Key> {
    all().find(|key| key.name == name)
}

/// The key whose name is nearest to `name`, if one is near.
pub fn nearest(name: &str) -> Option<&'static str> {
    let near = |key: &Key| distance(name.as_bytes(), key.name.as_bytes());
    all().min_by_key(|key| near(key)).filter(|key| near(key) <= 3).map(|key| key.name)
}

/// Edits from one name to the other (Levenshtein).
pub(super) fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
