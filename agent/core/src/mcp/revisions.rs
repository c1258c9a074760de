//! The revisions of MCP, and the methods that they name between them.

/// Each of them, the oldest first.
pub const REVISIONS: [&str; 5] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"];
/// The only one in which an array of messages is one.
pub const HAS_BATCHES: &str = "2025-03-26";

/// Every request and notification of any revision, sorted.
const METHODS: [&str; 36] = [
    "completion/complete",
    "elicitation/create",
    "initialize",
    "logging/setLevel",
    "notifications/cancelled",
    "notifications/elicitation/complete",
    "notifications/initialized",
    "notifications/message",
    "notifications/progress",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
    "notifications/resources/updated",
    "notifications/roots/list_changed",
    "notifications/subscriptions/acknowledged",
    "notifications/tasks",
    "notifications/tasks/status",
    "notifications/tools/list_changed",
    "ping",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "roots/list",
    "sampling/createMessage",
    "server/discover",
    "subscriptions/listen",
    "tasks/cancel",
    "tasks/get",
    "tasks/list",
    "tasks/result",
    "tasks/update",
    "tools/call",
    "tools/list",
];

/// Whether any revision names this method.
pub fn knows_method(method: &str) -> bool {
    METHODS.binary_search(&method).is_ok()
}

/// Whether this is a revision.
pub fn knows_version(version: &str) -> bool {
    REVISIONS.contains(&version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_sorted_and_known() {
        assert!(METHODS.is_sorted());
        assert!(METHODS.iter().all(|method| knows_method(method)));
        assert!(!knows_method("tools/Call") && !knows_method("x") && !knows_method(""));
        assert!(REVISIONS.is_sorted() && knows_version(HAS_BATCHES) && !knows_version("2099-01-01"));
    }
}
