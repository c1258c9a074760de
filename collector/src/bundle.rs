//! Bundles: one run, and what proves it. A run's id comes in; a file goes out that holds the events of that run, the
//! leaves of the batches that they came in, the checkpoints and keys that sign these, and the policies that were in
//! force. Read again, it is checked before anything of it is believed.
//!
//! A bundle is an export of one run ([`weir_core::evidence::export`]) in a tar file under zstd, and nothing else: tools,
//! policies, identities and times are read out of the proven events, so there is nothing beside them to change.
//! `weir-collector verify --export` and `docs/verify.py` read one, too.

mod check;
mod file;
mod gather;
mod story;

pub use check::{Checked, check};
pub use file::{Bundle, FileError, MAX_BUNDLE};
pub use gather::{Asked, GatherError, MAX_EVENTS, gather};
pub use story::{Call, Server, Story, ToolSeen};
