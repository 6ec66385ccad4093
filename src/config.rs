//! What an operator may set, with defaults that need no configuration.

mod args;
mod class_keys;
mod classes;
mod error;
mod keys;
mod load;
mod print;
mod reload;

pub use args::ServeArgs;
pub use classes::{Class, ClassId, Classes, Pattern, Priority};
pub use error::ConfigError;
pub use keys::LIVE_KEYS;
pub use load::{AuthConfig, Layers, Loaded, Origin, ServeConfig, interval as parse_interval, load};

pub use reload::Reloaded;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::auth::Keys;
use crate::limits;
use crate::position::Level;
use crate::ws::Origins;

/// What a shard must know. Sizes are bytes, times milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShardConfig {
    /// Clients say something this often; one that is silent for twice as long is closed.
    /// 0 switches heartbeats off.
    pub heartbeat_ms: u32,
    /// HELLO must have come by then.
    pub handshake_timeout_ms: u32,
    /// A write that makes no progress for this long ends the connection.
    pub stall_timeout_ms: u32,
    /// After DRAIN, connections are closed after this time.
    pub drain_grace_ms: u32,
    /// Connections per shard.
    pub connections_max: u32,
    /// Groups per shard.
    pub groups_max: u32,
    /// Members per group.
    pub members_per_group_max: u32,
    /// Groups per member.
    pub groups_per_member_max: u32,
    /// Producers per group that are remembered.
    pub producers_per_group_max: u32,
    /// A producer that published within this time is not forgotten for another one.
    pub producer_ttl_ms: u64,
    /// Longest payload.
    pub payload_max: u32,
    /// All tails of a shard together.
    pub tail_bytes_max: u64,
    /// Segments that left their tail but are held by unfinished writes.
    pub pinned_bytes_max: u64,
    /// Unfinished frames of all connections of a shard together.
    pub partial_bytes_max: u64,
    /// Publishes that wait to be sequenced, per shard.
    pub inbox_bytes_max: u64,
    /// Changes of a roster are announced at most this often.
    pub roster_interval_ms: u32,
    /// The state of one group: its keys and their values.
    pub state_bytes_max: u64,
    /// Most bytes in one socket write.
    pub send_bytes_max: u32,
    /// Control frames that wait on one connection; when full the connection is not read.
    pub control_bytes_max: u32,
    /// SO_SNDBUF of member sockets (the kernel doubles it).
    pub socket_send_buffer: u32,
    /// TCP_NOTSENT_LOWAT of member sockets: the kernel takes no more than this beyond what is
    /// on its way. 0 leaves the system's value.
    pub socket_notsent_lowat: u32,
    /// Provided receive buffers per shard, a power of two.
    pub recv_buffers: u16,
    /// Bytes of each of them.
    pub recv_buffer_bytes: u32,
    /// A shard with nothing to do looks again for so many microseconds before it sleeps.
    pub spin_us: u32,
    /// Size of a log segment file.
    pub segment_bytes: u64,
    /// Sealed segments are removed, oldest first, when a shard's log is larger than this.
    pub retention_bytes: u64,
    /// Sealed segments older than this are removed; 0 keeps them.
    pub retention_age_ms: u64,
    /// Level of a publish that asks for none.
    pub level: Level,
    /// Told to clients in WELCOME: acknowledge after this many messages ...
    pub ack_every: u32,
    /// ... or after this time.
    pub ack_interval_ms: u32,
    /// What was sent to a durable member and is not acknowledged after this time may be sent
    /// again.
    pub ack_timeout_ms: u32,
    /// Newest publishes of a producer in a group that are sure to be recognised when they are
    /// sent again.
    pub publish_window: u32,
    /// Acknowledged cursors are written to the log after this time, or sooner with what is
    /// written anyway.
    pub cursor_flush_ms: u32,
    /// What becomes of a durable member's connection when it opens another one.
    pub second_connection: SecondConnection,
    /// Receipts that wait for acknowledgements, per group, and as many that wait for their
    /// publishers.
    pub receipts_max: u32,
    /// Messages that are sent again to a durable member until it acknowledges some.
    pub redeliver_window: u32,
    /// Redeliveries without any progress before a durable member is disconnected.
    pub redeliver_max: u32,
    /// Pages that may connect by WebSocket beside the server's own.
    pub websocket_origins: Origins,
    /// Compress messages of WebSockets whose clients offer it.
    pub websocket_deflate: bool,
    /// Serve [`crate::ws::upgrade::ECHO_PATH`], for conformance tests.
    pub websocket_echo: bool,
    /// Connections of one member, on each shard; 0 is no bound, as below.
    pub member_connections_max: u32,
    /// Messages that a member publishes in a second, on each shard.
    pub member_publishes_per_s: u32,
    /// Bytes of their payloads.
    pub member_bytes_per_s: u64,
    /// Groups that a member joins in a second, on each shard.
    pub member_joins_per_s: u32,
    /// Messages that come to a group in a second.
    pub group_publishes_per_s: u32,
    /// Bytes of their payloads.
    pub group_bytes_per_s: u64,
    /// Whether a group may be bounded by these or by its class; see
    /// [`ShardConfig::note_bounds`].
    #[serde(skip)]
    pub groups_are_bounded: bool,
    /// Refuse connections without TLS.
    pub tls_required: bool,
    /// What connections with TLS are served by; without it they are refused.
    #[serde(skip)]
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Classes of groups.
    #[serde(skip)]
    pub classes: Arc<Classes>,
    /// The keys of tokens; without them nobody is asked for one.
    #[serde(skip)]
    pub keys: Option<Arc<Keys>>,
}

/// What becomes of the connection of a durable member when it joins a group on another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecondConnection {
    /// The older one is closed.
    Takeover,
    /// Both are served; the cursor is the highest acknowledgement of either.
    Allow,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 30_000,
            handshake_timeout_ms: 10_000,
            stall_timeout_ms: 10_000,
            drain_grace_ms: 2_000,
            connections_max: 100_000,
            groups_max: 1_000_000,
            members_per_group_max: 1_000_000,
            groups_per_member_max: 1_000,
            producers_per_group_max: limits::PRODUCERS_KEPT_MAX as u32,
            producer_ttl_ms: 600_000,
            payload_max: 64 * 1024,
            tail_bytes_max: 64 << 20,
            pinned_bytes_max: 64 << 20,
            partial_bytes_max: 32 << 20,
            inbox_bytes_max: 4 << 20,
            roster_interval_ms: 1_000,
            state_bytes_max: 1 << 20,
            send_bytes_max: 256 * 1024,
            control_bytes_max: 64 * 1024,
            socket_send_buffer: 256 * 1024,
            socket_notsent_lowat: 0,
            recv_buffers: 256,
            recv_buffer_bytes: 16 * 1024,
            spin_us: 0,
            segment_bytes: 32 << 20,
            retention_bytes: 1 << 30,
            retention_age_ms: 0,
            level: Level::Durable,
            ack_every: 256,
            ack_interval_ms: 1_000,
            ack_timeout_ms: 30_000,
            publish_window: 1_024,
            cursor_flush_ms: 1_000,
            second_connection: SecondConnection::Takeover,
            receipts_max: 4_096,
            redeliver_window: 256,
            redeliver_max: 8,
            websocket_origins: Origins::default(),
            websocket_deflate: false,
            websocket_echo: false,
            member_connections_max: 0,
            member_publishes_per_s: 0,
            member_bytes_per_s: 0,
            member_joins_per_s: 0,
            group_publishes_per_s: 0,
            group_bytes_per_s: 0,
            groups_are_bounded: false,
            tls_required: false,
            tls: None,
            classes: Arc::default(),
            keys: None,
        }
    }
}

impl ShardConfig {
    /// The longest frame a client may send, after the length field.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        let frame_max = self.payload_max as usize + (limits::FRAME_MAX - limits::PAYLOAD_MAX);
        if self.keys.is_some() { frame_max.max(limits::AUTH_FRAME_MAX) } else { frame_max }
    }
}
