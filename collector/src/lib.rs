//! Weir's collector: what agents record goes into ClickHouse, what approvers sign goes back, and questions get
//! answers.
//!
//! ```text
//! agent --unix socket--> ingest -> rows -> store (ClickHouse) <- query and completeness
//!        (weir_core::wire)   \------- decisions -------/  \- approvals
//! ```
//!
//! A collector keeps no state of its own: everything is in ClickHouse, so any number of collectors can stand
//! beside one another. It cannot approve a call: the agent itself checks each signature.
#![forbid(unsafe_code)]

pub mod agent;
pub mod approvals;
pub mod authority;
pub mod bundle;
pub mod completeness;
pub mod config;
pub mod enrol;
pub mod ingest;
pub mod masked;
pub mod query;
pub mod replay;
pub mod retention;
pub mod rows;
pub mod store;
pub mod verify;
pub mod witness;
pub use weir_core::visible;
