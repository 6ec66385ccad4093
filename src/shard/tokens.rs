//! Who may do what: tokens are checked, what they allow is kept beside their connections, and
//! connections whose tokens have ended are closed. Without keys none of this is there.
//!
//! A signature costs far more than any frame, so a turn checks a few. A connection whose AUTH has to
//! wait for another turn keeps its bytes from that frame on, and is not read meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::debug;

use super::conn::{Conn, ConnState, WAITS};
use super::replies::Refusal;
use super::{ConnId, Io, Shard};
use crate::auth::{CachedRights, Grant, KeyId, Keys, Refused, Right};
use crate::limits::{AUTH_FRAME_MAX, TOKENS_PER_TURN};
use crate::position::Nanos;
use crate::slots::Slots;
use crate::wire::{Auth, Authed, ErrorCode, Frame, Left, kind};

/// Connections that are looked at in one turn after the keys have changed.
const RECHECKED_PER_TURN: u32 = 1024;

/// What the token of a connection says.
#[derive(Debug)]
struct Held {
    rights: CachedRights,
    key: KeyId,
    exp_s: u64,
    /// The connection ends then.
    until: Nanos,
    /// When the wheel looks; what fires before is of an older token.
    look_at: Nanos,
}

/// The tokens of a shard's connections.
#[derive(Debug, Default)]
pub struct Tokens {
    keys: Option<Arc<Keys>>,
    /// By the slot of the connection.
    held: Slots<Box<Held>>,
    /// Connections with an AUTH that waits, each once.
    waiting: VecDeque<ConnId>,
    /// Tokens that may still be checked in this turn.
    left: u32,
    /// Unix time in ms, as of this turn.
    wall_ms: u64,
    /// The keys have changed: connections from this slot on are still to be looked at.
    recheck: Option<u32>,
}

impl Tokens {
    /// With these keys, or for everybody.
    #[must_use]
    pub fn new(keys: Option<Arc<Keys>>) -> Self {
        Self { keys, ..Self::default() }
    }

    /// Whether a token is asked for.
    #[inline]
    #[must_use]
    pub fn are_asked_for(&self) -> bool {
        self.keys.is_some()
    }

    /// Whether something is left for the next turn.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || self.recheck.is_some()
    }

    /// Whether the token of a connection allows it. True without keys.
    #[inline]
    pub(super) fn may(&mut self, id: ConnId, right: Right, group: &[u8]) -> bool {
        if !self.are_asked_for() {
            return true;
        }
        let held = self.held.get_mut(id.slot);
        held.is_some_and(|held| held.rights.of(group).has(right))
    }

    /// A connection is gone.
    #[inline]
    pub fn forget(&mut self, id: ConnId) {
        if self.keys.is_some() {
            self.held.remove(id.slot);
        }
    }
}

impl Shard {
    /// Says that a request is not allowed.
    #[cold]
    pub(super) fn forbid(&mut self, id: ConnId, request: u32, right: Right, group: &[u8]) {
        self.figures.forbidden += 1;
        let text = format!(
            "the token does not allow `{}` in this group; get one whose list has its name",
            right.name()
        );
        let refusal = Refusal::new(ErrorCode::Forbidden, &text).limit(right as u64).field(group);
        self.refuse(id, request, refusal);
    }

    /// Whether a connection has yet to show the token that is asked for.
    pub(super) fn lacks_token(&self, id: ConnId) -> bool {
        let opens = |conn: &Conn| !matches!(conn.state, ConnState::Open | ConnState::Closing);
        self.tokens.are_asked_for() && self.conns.get(id.slot).is_some_and(opens)
    }

    /// Longest frame that a connection may send now: one without a token needs only HELLO and AUTH.
    pub(super) fn frame_max_of(&self, id: ConnId) -> usize {
        if self.lacks_token(id) { AUTH_FRAME_MAX } else { self.config.frame_max() }
    }

    /// Whether this frame has to wait for another turn, with everything behind it.
    pub(super) fn must_wait(&mut self, id: ConnId, frame: Frame<'_>) -> bool {
        if frame.kind != kind::AUTH || !self.tokens.are_asked_for() {
            return false;
        }
        if self.tokens.left > 0 {
            self.tokens.left -= 1;
            return false;
        }
        if let Some(conn) = self.conn(id)
            && !conn.waits()
        {
            conn.throttled |= WAITS;
            self.tokens.waiting.push_back(id);
        }
        true
    }

    /// Begins a turn: tokens that wait are checked first, in the order in which they came.
    pub(super) fn check_tokens(&mut self, io: &mut impl Io) {
        if !self.tokens.are_asked_for() {
            return;
        }
        self.tokens.left = TOKENS_PER_TURN;
        self.tokens.wall_ms = io.wall_ms();
        self.recheck_keys();
        while self.tokens.left > 0
            && let Some(id) = self.tokens.waiting.pop_front()
        {
            self.go_on(id, io);
        }
    }

    /// AUTH: the first one opens the connection, later ones renew.
    pub(super) fn authenticate(&mut self, id: ConnId, auth: &Auth<'_>) {
        let Some(keys) = self.tokens.keys.clone() else {
            // There is nothing to prove.
            let authed = Authed { request: auth.request, valid_ms: 0, renew_after_ms: 0 };
            return self.control(id, |out| authed.encode(out));
        };
        let wall_ms = self.tokens.wall_ms;
        let Some(conn) = self.conn(id) else { return };
        let opens = conn.state == ConnState::Proving;
        match keys.check(auth.token, &conn.member, wall_ms) {
            Err(refused) => {
                debug!(slot = id.slot, code = ?refused.code, field = refused.field,
                    "token refused");
                self.refuse_token(id, auth.request, refused);
            }
            Ok(grant) => {
                let authed = self.hold(id, auth.request, grant, wall_ms);
                if opens {
                    self.welcome(id);
                } else {
                    self.leave_forbidden(id);
                }
                self.control(id, |out| authed.encode(out));
            }
        }
    }

    /// A fatal refusal, which the peer has a second to read.
    fn refuse_token(&mut self, id: ConnId, request: u32, refused: Refused) {
        self.figures.tokens_refused += 1;
        let Refused { code, field, limit, text } = refused;
        let refusal = Refusal::new(code, text).limit(limit).field(field.as_bytes());
        self.refuse_last(id, request, refusal);
    }

    /// Keeps what a token allows, in place of what the one before did.
    fn hold(&mut self, id: ConnId, request: u32, grant: Grant, wall_ms: u64) -> Authed {
        let Grant { ends_ms, exp_s, key, rights } = grant;
        let ms = ends_ms.saturating_sub(wall_ms);
        let until = self.now.plus_ms(ms);
        let before = self.tokens.held.get(id.slot).map(|held| held.look_at);
        let look_at = match before {
            Some(at) if at <= until && at > self.now => at,
            _ => self.wheel.arm_token(id, until),
        };
        let rights = CachedRights::new(rights);
        self.tokens.held.put(id.slot, Box::new(Held { rights, key, exp_s, until, look_at }));
        let valid_ms = u32::try_from(ms).unwrap_or(u32::MAX).max(1);
        Authed { request, valid_ms, renew_after_ms: renew_after(valid_ms, id, self.now) }
    }

    /// A renewed token allows less than before: the connection leaves the groups that it does not
    /// allow any more. A durable member stays on the roster, offline.
    fn leave_forbidden(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        for membership in conn.memberships.clone() {
            let group = &self.groups[membership.group as usize];
            if self.tokens.may(id, Right::Join, &group.name) {
                continue;
            }
            let (name, handle) = (group.name.clone(), group.handle);
            if let Some(conn) = self.conn(id) {
                conn.memberships.retain(|m| *m != membership);
                conn.dirty.remove(membership);
            }
            self.remove_member(id, membership);
            self.forbid(id, 0, Right::Join, &name);
            self.control(id, |out| Left { request: 0, handle }.encode(out));
        }
    }

    /// The wheel fired for the token of a connection.
    pub(super) fn look_at_token(&mut self, id: ConnId, now: Nanos) {
        if self.conn(id).is_none_or(|conn| conn.state != ConnState::Open) {
            return;
        }
        let Some(held) = self.tokens.held.get_mut(id.slot) else { return };
        if held.look_at > now {
            return;
        }
        if held.until > now {
            held.look_at = self.wheel.arm_token(id, held.until);
        } else {
            let exp_s = held.exp_s;
            self.refuse_token(id, 0, Refused::expired(exp_s));
        }
    }

    /// The keys have changed; connections whose key is gone are closed over the next turns.
    pub(super) fn take_keys(&mut self, keys: Arc<Keys>) {
        self.tokens.keys = Some(keys);
        self.tokens.recheck = Some(0);
    }

    fn recheck_keys(&mut self) {
        let (Some(from), Some(keys)) = (self.tokens.recheck, self.tokens.keys.clone()) else {
            return;
        };
        let end = self.conns.end();
        let to = from.saturating_add(RECHECKED_PER_TURN).min(end);
        for slot in from..to {
            if self.tokens.held.get(slot).is_some_and(|held| !keys.has(held.key))
                && let Some(conn) = self.conns.get(slot)
                && conn.state == ConnState::Open
            {
                let id = conn.id;
                self.refuse_token(id, 0, Refused::of("key"));
            }
        }
        self.tokens.recheck = Some(to).filter(|to| *to < end);
    }
}

/// Between half and seven eighths of the time, so that members that came together do not all
/// renew together.
fn renew_after(valid_ms: u32, id: ConnId, now: Nanos) -> u32 {
    let seed = [u64::from(id.slot), u64::from(id.generation), now.0].map(u64::to_le_bytes);
    let part = twox_hash::XxHash3_64::oneshot(seed.as_flattened()) % 1024;
    let valid = u64::from(valid_ms);
    (valid / 2 + valid * 3 / 8 * part / 1024).max(1) as u32
}
