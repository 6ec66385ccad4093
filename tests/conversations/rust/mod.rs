//! What the conversations need in Rust: frames by their tables, events in the words of the tables.

pub mod event;
pub mod frames;
pub mod script;
