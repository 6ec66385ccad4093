//! What an application may choose.

use std::sync::Arc;

use crate::limits::{GROUP_NAME_MAX, MEMBER_ID_MAX, PAYLOAD_MAX, TOKEN_MAX};
use crate::position::{Level, ProducerId, Seq};
use crate::wire::Mode;

use super::ClientError;
use super::token::TokenSource;

/// When a message counts as handled, so that it is acknowledged.
///
/// Acknowledgements are coalesced as the server asks for. A durable member gets again what it
/// has not acknowledged; so acknowledge what was handled, not what was received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckMode {
    /// When the application asks for the next event: then it is through with the one before.
    #[default]
    Automatic,
    /// When the application calls `ack`.
    Explicit,
}

/// Who a client is, and its bounds. Every value but the member has a default.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) member: Box<[u8]>,
    pub(super) producer: Option<ProducerId>,
    pub(super) seed: u64,
    pub(super) token: Option<TokenSource>,
    /// When messages count as handled.
    pub acks: AckMode,
    /// Most publishes without an answer, sent or not; more get [`ClientError::Full`].
    pub publishes_max: usize,
    /// Most bytes of their payloads.
    pub publish_bytes_max: usize,
    /// Most questions without an answer.
    pub queries_max: usize,
    /// Most groups that are joined or published to over the life of the client: it has to
    /// remember how far it numbered its messages in each.
    pub groups_max: usize,
    /// A connect, a WELCOME and a PONG must come within this time.
    pub answer_timeout_ms: u64,
    /// First wait before a reconnect. It doubles, and each is spread by up to a half of it.
    pub backoff_min_ms: u64,
    /// Longest wait before a reconnect.
    pub backoff_max_ms: u64,
    /// Sends PINGs that want no answer: half of a heartbeat's packets, and less than half of its
    /// cost. An idle client then learns from TCP alone that the server is gone.
    pub quiet_pings: bool,
    /// Sends JOINs right behind HELLO, for one round trip less. Only for servers whose
    /// `frame_max` is known to be large enough for them.
    pub eager: bool,
    /// TLS, and how the server is known. `None` sends everything as it is.
    #[cfg(feature = "tls")]
    pub tls: Option<super::Tls>,
    /// It is a client of the server's own process, and shows that first.
    #[cfg(feature = "server")]
    pub(crate) own: bool,
}

impl Options {
    /// The defaults for the member with this id, of 1 to 64 bytes.
    #[must_use]
    pub fn new(member: impl AsRef<[u8]>) -> Self {
        Self {
            member: member.as_ref().into(),
            producer: None,
            seed: random(),
            token: None,
            acks: AckMode::default(),
            publishes_max: 4096,
            publish_bytes_max: 8 << 20,
            queries_max: 64,
            groups_max: 100_000,
            answer_timeout_ms: 10_000,
            backoff_min_ms: 1_000,
            backoff_max_ms: 30_000,
            quiet_pings: false,
            eager: false,
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(feature = "server")]
            own: false,
        }
    }

    /// Connects by TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: super::Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Publishes under this id instead of a random one. It must be new: the client numbers its
    /// messages from 1, and the server takes what has a number that it knows for a copy. To keep an
    /// id over restarts, keep a [`super::Resume`], which has the numbers too. Where a server has
    /// forgotten the producer, the client draws another one; see [`super::Event::ProducerRenewed`].
    #[must_use]
    pub fn producer(mut self, producer: ProducerId) -> Self {
        self.producer = Some(producer);
        self
    }

    /// Lets all chance (jitter, the producer id) depend on this number.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Shows this token, of 1 to 4096 bytes, which is for this member id. When it expires, or the
    /// server refuses it, the client has ended.
    #[must_use]
    pub fn token(mut self, token: impl AsRef<str>) -> Self {
        self.token = Some(TokenSource::Fixed(token.as_ref().into()));
        self
    }

    /// Shows the token that `newest` gives: with each connection, and on a connection when the server
    /// wants another one. It is called by the thread that drives the client, so it should not wait:
    /// let it give what another thread has fetched last.
    #[must_use]
    pub fn token_from(mut self, newest: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.token = Some(TokenSource::From(Arc::new(newest)));
        self
    }

    /// Sets when messages count as handled.
    #[must_use]
    pub fn acks(mut self, acks: AckMode) -> Self {
        self.acks = acks;
        self
    }

    pub(super) fn check(&self) -> Result<(), ClientError> {
        if !(1..=MEMBER_ID_MAX).contains(&self.member.len()) {
            return Err(ClientError::MemberLength(self.member.len()));
        }
        if let Some(TokenSource::Fixed(token)) = &self.token
            && !(1..=TOKEN_MAX).contains(&token.len())
        {
            return Err(ClientError::TokenLength(token.len()));
        }
        Ok(())
    }
}

/// How to be in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    pub(super) mode: Mode,
    pub(super) from: From,
    pub(super) roster: bool,
}

/// Where a member starts when the client has no place of its own in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Tail,
    Seq(Seq),
    Cursor,
}

impl Membership {
    /// A member while this client lives, from the next message on. After a reconnect it gets
    /// what it missed.
    #[must_use]
    pub fn live() -> Self {
        Self { mode: Mode::Live, from: From::Tail, roster: false }
    }

    /// A member until it leaves, also while it is away: it goes on after the last message that
    /// it acknowledged. A new one starts with the next message.
    #[must_use]
    pub fn durable() -> Self {
        Self { mode: Mode::Durable, from: From::Cursor, roster: false }
    }

    /// Starts with message `seq`, or the oldest that is kept after it.
    #[must_use]
    pub fn from(mut self, seq: Seq) -> Self {
        self.from = From::Seq(Seq(seq.0.max(1)));
        self
    }

    /// Also says who joins, leaves, comes and goes.
    #[must_use]
    pub fn with_roster(mut self) -> Self {
        self.roster = true;
        self
    }
}

/// How to publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Publishing {
    /// Level to ask for; `None` leaves it to the server.
    pub level: Option<Level>,
    /// Share of the durable members, in percent, at which a receipt is wanted; 0 for none.
    pub receipt_percent: u8,
}

pub(super) fn check_group(group: &[u8]) -> Result<(), ClientError> {
    if !(1..=GROUP_NAME_MAX).contains(&group.len()) {
        return Err(ClientError::GroupLength(group.len()));
    }
    Ok(())
}

pub(super) fn check_payload(len: usize, max: Option<u32>) -> Result<(), ClientError> {
    let max = max.map_or(PAYLOAD_MAX, |max| max as usize);
    if len > max {
        return Err(ClientError::PayloadTooLong { len, max });
    }
    Ok(())
}

/// A number that differs from process to process and from call to call. The standard library
/// seeds its hash maps with it, which is the only source of chance it has.
pub(super) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now())
}

/// splitmix64: small, and the same everywhere for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// An id that no producer has had.
    pub fn producer(&mut self) -> ProducerId {
        let mut id = ProducerId::default();
        for half in id.chunks_exact_mut(8) {
            half.copy_from_slice(&self.next().to_le_bytes());
        }
        id
    }
}
