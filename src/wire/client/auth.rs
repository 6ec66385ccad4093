//! AUTH: who the client is and what it may do, proved by a token.

use std::fmt;

use bytes::BufMut;

use crate::limits::TOKEN_MAX;
use crate::wire::frame::{Fields, WireError, kind, put_header};

/// AUTH: a token, behind HELLO or later in place of one that ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Auth<'a> {
    /// Comes back in AUTHED or ERROR.
    pub request: u32,
    /// The token as it was issued, 1 to [`TOKEN_MAX`] bytes.
    pub token: &'a [u8],
}

impl fmt::Debug for Auth<'_> {
    /// Without the token: whoever reads a log must not be able to use it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("request", &self.request)
            .field("token_len", &self.token.len())
            .finish()
    }
}

impl<'a> Auth<'a> {
    pub(super) fn decode(mut f: Fields<'a>) -> Result<Self, WireError> {
        let request = f.u32("request")?;
        let len = usize::from(f.u16("token_len")?);
        f.u16("reserved")?;
        if !(1..=TOKEN_MAX).contains(&len) {
            return Err(f.bad("token"));
        }
        Ok(Self { request, token: f.take(len, "token")? })
    }

    /// Appends this frame to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        debug_assert!((1..=TOKEN_MAX).contains(&self.token.len()));
        put_header(out, kind::AUTH, 8 + self.token.len());
        out.put_u32_le(self.request);
        out.put_u16_le(self.token.len() as u16);
        out.put_u16_le(0);
        out.put_slice(self.token);
    }
}
