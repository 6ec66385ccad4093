//! See ARCHITECTURE.md.

pub mod wake;
