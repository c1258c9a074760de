//! The harness of the end-to-end tests and of the demo: a small world with a real MCP server, real clients in a cgroup of
//! their own, and Weir between them.
//!
//! In: what `cargo xtask` set up ([`places::Setup`]) and the binaries it built. Out: processes to talk to, each a real
//! child that ends with its owner, and what the clients, the server's log and the store say of one and the same call.
//!
//! It never links Weir's own crates: what it knows of Weir it learns as a user does, from its commands, files and SQL.

#![forbid(unsafe_code)]

pub mod agent;
pub mod approver;
pub mod between;
pub mod bytes;
pub mod cgroup;
pub mod client;
pub mod collector;
pub mod conformance;
pub mod daemon;
pub mod fleet;
pub mod job;
pub mod load;
pub mod machine;
pub mod mounts;
pub mod net;
pub mod oci;
pub mod pins;
pub mod places;
pub mod raw;
pub mod sdk_server;
pub mod server;
pub mod service;
pub mod soak;
pub mod store;
pub mod wait;
pub mod window;
pub mod world;

pub use agent::{Agent, AgentConfig, AgentStatus};
pub use approver::Approver;
pub use between::{Between, Wrong};
pub use cgroup::Cgroup;
pub use client::{Call, ClientKind, Conversation};
pub use collector::Collector;
pub use job::{Job, Trust};
pub use net::Net;
pub use pins::PinFolder;
pub use places::Setup;
pub use sdk_server::SdkServer;
pub use server::{McpServer, Scheme};
pub use service::Service;
pub use store::Store;
pub use wait::until;
pub use world::{World, WorldPlan};
