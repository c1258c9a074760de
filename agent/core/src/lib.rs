//! Weir's domain, and nothing else: what a call is, what policy says of it, how it is masked, what is
//! recorded, how a record lies in a segment, what agent and collector say to each other, and what makes an
//! approval valid.
//!
//! This crate is pure. Bytes and clock readings come in as arguments; values and bytes go out. It knows no
//! runtime, no socket, no file, no kernel and no clock, so all of it can be tested and fuzzed by itself.
#![forbid(unsafe_code)]

pub mod approval;
mod canonical;
pub mod evidence;
pub mod http1;
pub mod identity;
pub mod ids;
pub mod mask;
pub mod mcp;
pub mod policy;
pub mod record;
pub mod segment;
pub mod visible;
pub mod wire;
