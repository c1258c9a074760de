//! The closed sets of labels in records: what happened, in words that a query can rely on.

use serde::{Deserialize, Serialize};

/// Enums whose variants are written as the given labels.
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $label)] $variant,)+
        }

        impl $name {
            /// Each of them, in the order of this list.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The one with this label.
            pub fn labelled(label: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == label)
            }

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
        /// A response to a request that was answered before.
        RepeatedResponse = "repeated_response",
        /// A response to a call that had been given up by then: the client had left, or the wait was over.
        LateResponse = "late_response",
        /// A response to no request that was seen in its session.
        UnaskedResponse = "unasked_response",
        /// What Weir changed of a message on its way: secrets masked, tools taken out of a list, progress renumbered.
        Rewritten = "rewritten",
        /// The same, and some of it was kept back: it had to be masked, and could not be read.
        Withheld = "withheld",
        /// A request whose headers say something else than its body does, refused.
        HeadersDiffer = "headers_differ",
        /// An exchange that went on as a web socket, whose bytes are passed on unread.
        Upgraded = "upgraded",
        /// A request, or an answer, whose framing two readers could take in two ways: refused.
        Ambiguous = "ambiguous",
        /// A request to a server whose certificate is not trusted, refused with 502.
        Untrusted = "untrusted",
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
        /// The server ended its answer, or took longer than Weir waits, without a response to the call.
        Unanswered = "unanswered",
    }

    /// Why something was not read as MCP.
    Unread {
        /// Over the limit of one message's bytes.
        TooLarge = "too_large",
        /// Nested deeper than is read.
        TooDeep = "too_deep",
        /// More values, members or messages than are read.
        TooMany = "too_many",
        NotJson = "not_json",
        /// JSON, and no message of JSON-RPC.
        NotJsonRpc = "not_json_rpc",
        /// Two parsers could read two things.
        Ambiguous = "ambiguous",
        /// In a content encoding that is not decoded.
        Encoded = "encoded",
        /// There was no room to keep it.
        NoRoom = "no_room",
        /// It was cut off.
        CutOff = "cut_off",
        /// What it was read to be has no answer to the call in it.
        NoAnswer = "no_answer",
    }

    /// What of a message is unknown to Weir, or does not fit together; it was passed on untouched.
    Oddity {
        UnknownMethod = "unknown_method",
        UnknownVersion = "unknown_version",
        UnknownResultType = "unknown_result_type",
        /// The headers name another method, tool or version than the body does.
        HeaderMethod = "header_method",
        HeaderName = "header_name",
        HeaderVersion = "header_version",
        /// Messages came as an array in a revision that has none.
        Batch = "batch",
        /// A member beside those of JSON-RPC's message.
        UnknownMember = "unknown_member",
    }

    /// What Weir did with a connection.
    Treatment {
        /// Its messages are recorded.
        Terminated = "terminated",
        /// Relayed untouched: not on the intercept list.
        Opaque = "opaque",
        /// Closed by Weir.
        Refused = "refused",
        /// Left alone by policy: it went its way, and Weir saw no byte of it.
        Passed = "passed",
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
        /// It went on by itself, and was not seen further.
        Direct = "direct",
        /// The kernel refused it.
        NeverMade = "never_made",
        /// It was led to the agent, and the client never began it.
        NeverBegun = "never_begun",
        /// It was led to the agent, and over before the agent accepted it.
        Withdrawn = "withdrawn",
        /// The agent that had accepted it ended, and could not say how it went on.
        AgentEnded = "agent_ended",
    }

    /// Why a connection was treated or ended as it was, where the labels above do not say: a closed set.
    #[derive(Default)]
    FlowReason {
        /// Nothing else is to be said.
        #[default]
        None = "",
        /// The server's certificate has expired...
        CertificateExpired = "certificate_expired",
        CertificateNotYetValid = "certificate_not_yet_valid",
        /// ... or is for other names...
        CertificateWrongName = "certificate_wrong_name",
        CertificateUnknownIssuer = "certificate_unknown_issuer",
        CertificateBadSignature = "certificate_bad_signature",
        CertificateRevoked = "certificate_revoked",
        /// ... or must be known not to be revoked, and is not...
        CertificateRevocationUnknown = "certificate_revocation_unknown",
        /// ... or is not for servers.
        CertificateWrongPurpose = "certificate_wrong_purpose",
        CertificateInvalid = "certificate_invalid",
        /// The server needs its client's own certificate, which Weir does not have.
        ClientCertificate = "client_certificate",
        /// The configuration says that it is not to be read.
        Bypass = "bypass",
        /// The client speaks nothing inside TLS that Weir can read.
        NoProtocol = "no_protocol",
        /// The client sent more of what costs it nothing than anybody needs (requests taken back, parts of one head), and was thrown out.
        Flooded = "flooded",
    }

    /// What the kernel's hooks decided about a connect, in the order of their numbers: each connect of a selected
    /// process is counted in exactly one.
    ConnectVerdict {
        /// Led to the agent.
        Redirected = "redirected",
        /// Left alone, by policy or since no agent runs and the failure mode is open.
        Passed = "passed",
        /// Refused; the reason says why.
        Refused = "refused",
        /// Refused as the kernel would have: nobody listens at that loopback address.
        Unanswered = "unanswered",
        /// Refused since its origin could not be kept.
        Failed = "failed",
        /// A datagram to an intercepted port, refused.
        Datagram = "datagram",
        /// A socket of a protocol that the hooks cannot see into, refused.
        Socket = "socket",
    }

    /// Why, in the order of the hooks' numbers.
    ConnectReason {
        /// Nothing else is to be said.
        None = "",
        /// It asked for one of Weir's own ports.
        OwnPort = "own_port",
        /// Policy denies the destination.
        Denied = "denied",
        /// The job may reach named destinations alone.
        NotNamed = "not_named",
        /// The agent had no listener in its network namespace yet.
        NoListener = "no_listener",
        /// No agent was running.
        NoAgent = "no_agent",
        /// Led to the agent, and never begun by the client.
        NeverBegun = "never_begun",
        /// Led to the agent, and over before the agent accepted it.
        Withdrawn = "withdrawn",
        /// Policy passes the destination.
        Pass = "pass",
        /// Led to the agent, where it waited until the agent had dialled its private destination.
        Held = "held",
        /// The same, and nobody listened there: the client was refused.
        NobodyListens = "nobody_listens",
    }

    /// Why what the kernel counted and what is recorded differ.
    GapReason {
        /// The agent ended between taking the connection and recording it.
        AgentEnded = "agent_ended",
        /// The ring in which the kernel tells of connects had no room.
        RingFull = "ring_full",
        /// A table of the kernel's had no room.
        TableFull = "table_full",
        /// The agent had room neither to serve the connections, which it reset, nor to record each of them.
        NoRoom = "no_room",
        /// Events are missing from the log: rows were deleted, or never arrived.
        RowsDeleted = "rows_deleted",
        /// Nothing explains it.
        Unexplained = "unexplained",
        /// More is recorded than was counted.
        Surplus = "surplus",
        /// Retention has deleted events of the log; a tombstone says which.
        Retired = "retired",
    }
}

impl FlowReason {
    /// Events are canonical: what is not said is left out.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}
