//! Where a client has its token from.

use std::fmt;
use std::sync::Arc;

use super::session::{Request, Session};
use crate::limits::TOKEN_MAX;
use crate::position::Nanos;
use crate::wire::{Auth, Authed};

/// A source that still gives the token that is in use is asked again after this time.
const ASK_AGAIN_MS: u64 = 1_000;

/// One token, or a way to get the newest.
#[derive(Clone)]
pub(super) enum TokenSource {
    /// Always the same.
    Fixed(Arc<str>),
    /// Whatever this gives when a token is sent.
    From(Arc<dyn Fn() -> String + Send + Sync>),
}

impl TokenSource {
    fn token(&self) -> Option<Arc<str>> {
        let token = match self {
            Self::Fixed(token) => Arc::clone(token),
            Self::From(newest) => newest().into(),
        };
        Some(token).filter(|token| (1..=TOKEN_MAX).contains(&token.len()))
    }

    /// Whether there may be another one later.
    pub fn may_change(&self) -> bool {
        matches!(self, Self::From(_))
    }
}

impl fmt::Debug for TokenSource {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.may_change() { "TokenSource::From" } else { "TokenSource::Fixed" })
    }
}

impl Session {
    /// Sends the newest token, if there is one that the server does not have. Returns whether it was
    /// sent.
    pub fn send_token(&mut self) -> bool {
        let Some(token) = self.options.token.as_ref().and_then(TokenSource::token) else {
            return false;
        };
        if self.token.as_ref() == Some(&token) {
            return false;
        }
        let request = self.requests.add(Request::Auth);
        Auth { request, token: token.as_bytes() }.encode(&mut self.out);
        self.token = Some(token);
        true
    }

    /// The server accepted the token.
    pub fn authed(&mut self, authed: &Authed, now: Nanos) {
        self.requests.open.remove(&authed.request);
        let renews =
            authed.valid_ms > 0 && self.options.token.as_ref().is_some_and(TokenSource::may_change);
        self.renew_at = renews.then(|| now.plus_ms(u64::from(authed.renew_after_ms)));
    }

    /// Renews the token when it is time.
    pub fn renew_token(&mut self, now: Nanos) {
        if self.renew_at.is_some_and(|at| at <= now) {
            let sent = self.send_token();
            self.renew_at = (!sent).then(|| now.plus_ms(ASK_AGAIN_MS));
        }
    }
}
