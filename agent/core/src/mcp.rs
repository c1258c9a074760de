//! MCP on the wire: JSON-RPC messages and Server-Sent Events. Bytes come in, messages go out; nothing here
//! knows HTTP or TLS, and nothing but `rewrite` changes a byte that is passed on.

pub mod about;
pub mod endpoint;
pub mod header;
pub mod jsonrpc;
pub mod revisions;
pub mod rewrite;
pub mod sse;
pub mod tools;

/// The method whose calls execute something.
pub const TOOLS_CALL: &str = "tools/call";
