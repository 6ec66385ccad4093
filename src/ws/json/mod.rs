//! `fanfare.json.v1`: each frame as one JSON text message. PROTOCOL.md describes the form; the
//! native frames stay what the engine works with, and this module translates to and from them.
//! Pure, like [`crate::wire`].

mod read;
mod values;
mod write;

pub use read::{Wrong, to_native};
pub use write::from_native;

/// How deep a message of a client may be nested; what is known needs 3.
pub const DEPTH_MAX: usize = 8;
