//! Tokens: who a client is, and what it may do. PROTOCOL.md (Tokens) is the specification.
//!
//! ```text
//!  key file ─► keys.rs ─► Keys ─┐
//!                               ▼
//!  AUTH ─► shard::tokens ─► token.rs ─► Grant ─► rights.rs: may this member do that in this group
//!                               ▲
//!                           crypto.rs: signatures, by ring
//! ```
//!
//! Nothing here does I/O but [`Keys::load`], which the control thread calls. What is secret is in
//! no `Debug` and in no error.

mod crypto;
pub mod issue;
mod keys;
mod own;
mod rights;
mod token;

#[cfg(test)]
mod tests;

pub use keys::{Expected, KEY_FILE_MAX, KEYS_MAX, KeyError, KeyId, Keys};
pub use own::{OWN_MARK, OWN_OPENING_LEN, is_own_opening, own_opening, own_token};
pub use rights::{Allowed, CachedRights, Right, Rights};
pub use token::{Grant, Refused};
