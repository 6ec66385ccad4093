//! What the conversations need in Rust: frames by their tables, events in the words of the tables.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod event;
pub mod frames;
pub mod script;
