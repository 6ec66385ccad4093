//! The client library: connect, join, publish and receive, with the promises of PROTOCOL.md kept
//! on this side too.
//!
//! ```text
//!              commands ─────────►┌──────┐────► bytes to the server
//!  application                    │ Core │                             blocking::Client
//!              ◄───────── events  └──────┘◄──── bytes of the server    tokio::Client
//!                                     ▲
//!                                    time
//! ```
//!
//! [`Core`] does no I/O, knows no runtime and no clock. [`blocking::Client`] drives it on one
//! thread with the standard library alone, `tokio::Client` (feature `tokio`) on that runtime.
//!
//! With the feature `tls` and `Options::tls` connections are encrypted.
//!
//! What it does for the application:
//!
//! - **Reconnects** by itself, with growing waits that are spread at random, or when a stopping
//!   server says. A connection that another one of the same member replaced stays closed.
//! - **Delivers each message once and in order**, over reconnects. What the server sends again is
//!   dropped by epoch and place. Holes are events: [`Event::Gap`], [`Event::EpochChanged`].
//! - **Acknowledges** what was handled, as often as the server asks for.
//! - **Publishes once**: what has no answer is sent again, in order, under the same numbers, so
//!   that the server keeps one copy. What cannot be settled is an event, never a second copy.
//! - **Shows its token**, and renews it on the connection when the server asks for it.
//! - **Goes on after a restart** of the application, with a [`Resume`].
//!
//! Everything it holds is bounded by [`Options`].

mod answers;
pub mod blocking;
mod commands;
mod core;
#[cfg(test)]
mod core_tests;
mod due;
mod error;
mod event;
mod group;
mod input;
mod options;
mod pipe;
mod producer;
mod resume;
mod session;
mod take;
#[cfg(feature = "tls")]
mod tls;
mod token;
#[cfg(feature = "tokio")]
pub mod tokio;

pub use self::core::{Core, Link};
pub use error::ClientError;
pub use event::{
    Event, GroupName, JoinedGroup, Message, Page, PublishError, PublishId, Published, QueryId,
    Reason, Receipt, Refusal, RosterPage, StateItem, StatePage,
};
pub use options::{AckMode, Membership, Options, Publishing};
pub use resume::{Resume, ResumeGroup};
#[cfg(feature = "tls")]
pub use tls::Tls;

pub use crate::wire::{ErrorCode, Expected, GapReason, Presence, RosterForm, StateForm, Welcome};

/// The example of README is compiled with the others.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
