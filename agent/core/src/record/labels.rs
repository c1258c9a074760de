//! The closed sets of labels in records: what happened, in words that a query can rely on.

use serde::{Deserialize, Serialize};

/// Enums whose variants are written as the given labels.
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $label)] $variant,)+
        }

        impl $name {
            /// The label, as it is recorded.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $label,)+
                }
            }
        }
    )+};
}

labels! {
    /// How a hold ended.
    HoldEnd {
        Approved = "approved",
        Refused = "refused",
        Expired = "expired",
        ClientGone = "client_gone",
        /// A statement came whose signature or contents do not hold. The hold goes on waiting.
        Invalid = "invalid",
    }

    /// Which way a message went.
    Direction {
        ClientToServer = "client_to_server",
        ServerToClient = "server_to_client",
    }

    /// What kind of message it was, or what Weir did with it.
    MessageLabel {
        Request = "request",
        Notification = "notification",
        Response = "response",
        /// An HTTP exchange that is not MCP, passed on.
        Http = "http",
        /// MCP that could not be read (too large, or not JSON-RPC), passed on.
        Unparsed = "unparsed",
        /// A request that policy could not read, refused.
        Unreadable = "unreadable",
        /// A request whose authority is not the proven name, refused with 421.
        Misdirected = "misdirected",
    }

    /// How a call ended: a closed set.
    CallResult {
        /// A JSON-RPC result.
        Ok = "ok",
        /// A JSON-RPC result with `isError: true`.
        ToolError = "tool_error",
        /// A JSON-RPC error, or an HTTP error status.
        Error = "error",
        /// Policy or an approver refused it; it never went upstream.
        Refused = "refused",
        /// Nobody decided in time; it never went upstream.
        Expired = "expired",
        /// The client left before the answer.
        ClientGone = "client_gone",
        /// The server could not be reached, or broke off.
        UpstreamFailed = "upstream_failed",
        /// The answer could not be read, or the call's own was missing from it.
        Unparsed = "unparsed",
        /// The agent let go of the call without saying how it ended.
        Aborted = "aborted",
        /// The agent ended before the call did; whether it went upstream is not known.
        Unknown = "unknown",
    }

    /// What Weir did with a connection.
    Treatment {
        /// Its messages are recorded.
        Terminated = "terminated",
        /// Relayed untouched: not on the intercept list.
        Opaque = "opaque",
        /// Closed by Weir.
        Refused = "refused",
    }

    /// How a connection ended: a closed set.
    FlowEnd {
        /// Either side closed it.
        Closed = "closed",
        /// The server could not be dialled.
        UpstreamUnreachable = "upstream_unreachable",
        /// The server's certificate did not stand up to verification.
        UpstreamUntrusted = "upstream_untrusted",
        /// The client broke off the TLS handshake (it may not trust Weir's CA).
        ClientHandshake = "client_handshake",
        /// Bytes that are neither TLS nor HTTP, to a destination whose content must be read.
        Unreadable = "unreadable",
        /// No bytes came in time from a client that had to speak first.
        Silent = "silent",
        /// A limit was reached.
        Limit = "limit",
        /// The connection broke, or the agent ended.
        Broken = "broken",
    }
}
