//! Policy: rules come in, a [`Verdict`] goes out. It sees a [`Call`], never a socket, and decides by the first
//! rule that matches.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod in_flight;

use crate::ids::hex;
use crate::mcp::TOOLS_CALL;
pub use in_flight::{InFlight, Mask};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It goes upstream.
    Allow,
    /// The client gets a JSON-RPC error.
    Deny,
    /// It waits for a human's decision.
    Hold,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Hold => "hold",
        }
    }
}

/// Whether a call's intent is on disk before the call goes upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// It is.
    #[default]
    Strict,
    /// It is on its way there: should the agent or its disk fail in that moment, the call may go unrecorded.
    BestEffort,
}

impl Durability {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's own signature")]
    fn is_strict(&self) -> bool {
        *self == Self::Strict
    }
}

/// One rule: `{id, when, action}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names the rule in records and refusals.
    pub id: String,
    /// What it applies to; all of it must match.
    #[serde(default)]
    pub when: When,
    pub action: Action,
    /// Of the calls that it allows.
    #[serde(default, skip_serializing_if = "Durability::is_strict")]
    pub durability: Durability,
    /// What is masked of them on its way, and not in the record alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Mask>,
}

/// A rule's condition: each part a glob (`*` any run of characters, `?` one), absent means any.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// The server's name: proven by its certificate, or else its address. A rule that denies or holds applies
    /// under all names of the server, whichever the client uses; one that allows, under the one it uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The JSON-RPC method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The tool of a `tools/call`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
}

/// What policy is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The name that the client asked for and a certificate proved, or the address where nothing proves a name.
    pub server: &'a str,
    /// What else the same server is, lower-case: the other names of its certificate (`*.a.test` for any of them)
    /// and its address. The client chooses by which one it goes there.
    pub also: &'a [String],
    pub method: &'a str,
    /// `None` for other methods than `tools/call`.
    pub tool: Option<&'a str>,
}

/// Policy's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub action: Action,
    /// Which policy spoke: SHA-256 of its rules, as hex.
    pub policy_digest: String,
    /// The rule that matched; `default` when none did.
    pub rule: String,
}

/// A rule that cannot be. The operator is at fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    #[error("two rules have the id {0:?}; give each its own")]
    DoubleId(String),
    #[error("rule {0:?} holds calls that cannot wait; a hold needs `tool`, or `method = \"tools/call\"`")]
    HoldsMoreThanToolCalls(String),
    #[error("the rule id {0:?} is taken by the default action or empty; choose another")]
    ReservedId(String),
    #[error("rule {0:?} has `durability = \"best_effort\"`, which is for rules that allow; take it out")]
    BestEffortWithoutAllow(String),
    #[error("rule {0:?} has `mask` and denies: nothing of such calls goes anywhere; take it out")]
    MasksWhatIsDenied(String),
    #[error("the default action cannot be \"hold\": only tool calls can wait; write a rule for them")]
    DefaultHold,
}

/// A checked set of rules.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
    default_action: Action,
    digest: String,
    hides_denied_tools: bool,
}

impl Policy {
    /// Checks the rules and fixes their digest.
    pub fn new(rules: Vec<Rule>, default_action: Action) -> Result<Self, PolicyError> {
        if default_action == Action::Hold {
            return Err(PolicyError::DefaultHold);
        }
        for (at, rule) in rules.iter().enumerate() {
            if rule.id.is_empty() || rule.id == "default" {
                return Err(PolicyError::ReservedId(rule.id.clone()));
            }
            if rules.iter().take(at).any(|other| other.id == rule.id) {
                return Err(PolicyError::DoubleId(rule.id.clone()));
            }
            let tool_calls = rule.when.tool.is_some() || rule.when.method.as_deref() == Some(TOOLS_CALL);
            if rule.action == Action::Hold && !tool_calls {
                return Err(PolicyError::HoldsMoreThanToolCalls(rule.id.clone()));
            }
            if rule.action != Action::Allow && rule.durability != Durability::Strict {
                return Err(PolicyError::BestEffortWithoutAllow(rule.id.clone()));
            }
            if rule.action == Action::Deny && rule.mask.is_some() {
                return Err(PolicyError::MasksWhatIsDenied(rule.id.clone()));
            }
        }
        let digest = hex(&Sha256::digest(text(&rules, default_action)));
        Ok(Self { rules, default_action, digest, hides_denied_tools: false })
    }

    /// The same, but tools that it denies are taken out of the lists that servers give, if `hides` says so.
    #[must_use]
    pub fn hiding_denied_tools(self, hides: bool) -> Self {
        Self { hides_denied_tools: hides, ..self }
    }

    /// Decides one call.
    pub fn verdict(&self, call: Call<'_>) -> Verdict {
        self.decide(call).0
    }

    /// Decides one call, and says whether it waits for its record. What no rule names does.
    pub fn decide(&self, call: Call<'_>) -> (Verdict, Durability) {
        let rule = self.rules.iter().find(|rule| rule.matches(call));
        let (action, id) = rule.map_or((self.default_action, "default"), |rule| (rule.action, &rule.id));
        let verdict = Verdict { action, rule: id.to_owned(), policy_digest: self.digest.clone() };
        (verdict, rule.map_or(Durability::Strict, |rule| rule.durability))
    }

    /// Whether lists of tools are to be looked through for what is denied.
    pub fn hides_tools(&self) -> bool {
        let denies = |action: Action| action == Action::Deny;
        let any = denies(self.default_action) || self.rules.iter().any(|rule| denies(rule.action));
        self.hides_denied_tools && any
    }

    /// Whether any rule holds calls.
    pub fn holds(&self) -> bool {
        self.rules.iter().any(|rule| rule.action == Action::Hold)
    }

    /// The rules as the digest takes them: JSON, `{"default_action", "rules"}`.
    pub fn text(&self) -> String {
        text(&self.rules, self.default_action)
    }

    /// SHA-256 of that text, as hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

fn text(rules: &[Rule], default_action: Action) -> String {
    serde_json::json!({ "default_action": default_action, "rules": rules }).to_string()
}

impl Rule {
    fn matches(&self, call: Call<'_>) -> bool {
        // What is cheaper to tell comes first.
        self.is_for_message(call) && self.is_for_server(call, self.action != Action::Allow)
    }

    /// Under the name that the client uses, or under any.
    fn is_for_server(&self, call: Call<'_>, any_name: bool) -> bool {
        self.when.server.as_ref().is_none_or(|pattern| {
            let pattern = lower(pattern);
            glob(&pattern, &lower(call.server))
                || (any_name && call.also.iter().any(|name| meets(&pattern, name)))
        })
    }

    fn is_for_message(&self, call: Call<'_>) -> bool {
        let part = |pattern: &Option<String>, value: Option<&str>| {
            pattern.as_deref().is_none_or(|pattern| value.is_some_and(|value| glob(pattern, value)))
        };
        part(&self.when.method, Some(call.method)) && part(&self.when.tool, call.tool)
    }
}

fn lower(text: &str) -> Cow<'_, str> {
    match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => Cow::Borrowed(text),
    }
}

/// Whether a name that matches `pattern` is one of those that a certificate's `name` stands for: a `*` in that
/// is any run of characters but dots (RFC 9525, 6.3).
fn meets(pattern: &str, name: &str) -> bool {
    if !name.contains('*') {
        return glob(pattern, name);
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // meet[j]: whether what is left of the pattern, and of the name from j on, can be the same text; from the end.
    let mut below = vec![false; name.len() + 1];
    for i in (0..=pattern.len()).rev() {
        let mut meet = vec![false; name.len() + 1];
        for j in (0..=name.len()).rev() {
            let at = |row: &[bool], j: usize| row.get(j).copied().unwrap_or(false);
            let found = match (pattern.get(i), name.get(j)) {
                (None, None) => true,
                (Some('*'), _) => at(&below, j) || at(&meet, j + 1),
                (Some('.'), Some('*')) | (None, Some('*')) => at(&meet, j + 1),
                (Some(_), Some('*')) => at(&below, j) || at(&meet, j + 1),
                (Some(p), Some(n)) => (p == n || *p == '?') && at(&below, j + 1),
                _ => false,
            };
            if let Some(slot) = meet.get_mut(j) {
                *slot = found;
            }
        }
        below = meet;
    }
    below.first().copied().unwrap_or(false)
}

/// Whether `pattern` (`*`, `?`) matches the whole of `text`. Time is bounded by the product of the lengths.
pub fn glob(pattern: &str, text: &str) -> bool {
    // A character is a byte in nearly all of them.
    if pattern.is_ascii() && text.is_ascii() {
        return matches(pattern.as_bytes(), text.as_bytes(), b'*', b'?');
    }
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    matches(&pattern, &text, '*', '?')
}

fn matches<C: Copy + PartialEq>(pattern: &[C], text: &[C], any: C, one: C) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(c) if *c == any => {
                retry = Some((p, t));
                p += 1;
            }
            Some(c) if *c == one || Some(c) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star, from)) = retry else { return false };
                retry = Some((star, from + 1));
                p = star + 1;
                t = from + 1;
            }
        }
    }
    pattern.iter().skip(p).all(|c| *c == any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        id: &str,
        server: Option<&str>,
        method: Option<&str>,
        tool: Option<&str>,
        action: Action,
    ) -> Rule {
        let own = |s: Option<&str>| s.map(str::to_owned);
        Rule {
            id: id.into(),
            when: When { server: own(server), method: own(method), tool: own(tool) },
            action,
            durability: Durability::Strict,
            mask: None,
        }
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let policy = Policy::new(
            vec![
                rule("no-deletes", Some("*.Example.test"), None, Some("delete_*"), Action::Deny),
                rule("deploys", None, Some("tools/call"), Some("deploy"), Action::Hold),
            ],
            Action::Allow,
        )
        .unwrap();
        let ask = |server, method, tool| {
            let verdict = policy.verdict(Call { server, also: &[], method, tool });
            (verdict.action, verdict.rule)
        };
        assert_eq!(
            ask("mcp.example.test", "tools/call", Some("delete_repo")),
            (Action::Deny, "no-deletes".into())
        );
        assert_eq!(ask("other.test", "tools/call", Some("delete_repo")), (Action::Allow, "default".into()));
        assert_eq!(ask("other.test", "tools/call", Some("deploy")), (Action::Hold, "deploys".into()));
        assert_eq!(ask("mcp.example.test", "tools/list", None), (Action::Allow, "default".into()));
    }

    #[test]
    fn a_server_has_no_other_name_under_which_it_is_not_refused() {
        let policy = Policy::new(
            vec![
                rule("mine", Some("mine.test"), None, None, Action::Allow),
                rule("named", Some("mcp.example.test"), None, Some("delete_*"), Action::Deny),
                rule("all", Some("10.0.0.*"), None, Some("deploy"), Action::Hold),
            ],
            Action::Allow,
        )
        .unwrap();
        let ask = |server, also: &[&str], tool| {
            let also: Vec<String> = also.iter().map(|name| (*name).to_owned()).collect();
            policy.verdict(Call { server, also: &also, method: "tools/call", tool: Some(tool) }).rule
        };
        assert_eq!(ask("10.0.0.7", &["mcp.example.test"], "delete_repo"), "named");
        assert_eq!(ask("other.example.test", &["*.example.test"], "delete_repo"), "named");
        assert_eq!(ask("other.test", &["10.0.0.7"], "deploy"), "all");
        assert_eq!(ask("other.test", &["10.1.0.7", "*.test"], "deploy"), "default");
        // What allows is for the name that was asked for.
        assert_eq!(ask("mcp.example.test", &["mine.test"], "delete_repo"), "named");
        assert_eq!(ask("mine.test", &["mcp.example.test"], "delete_repo"), "mine");
    }

    #[test]
    fn a_pattern_meets_the_names_that_a_certificate_stands_for() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "b", false),
            ("*", "a.test", true),
            ("mcp.*", "*.test", true),
            ("mcp.*.x", "*.test", false),
            ("mcp.a.test", "*.a.test", true),
            ("mcp.b.a.test", "*.a.test", false),
            ("*.b.test", "*.a.test", false),
            ("10.0.0.*", "*.test", false),
            ("a?c.test", "*.test", true),
            ("a?c", "a*d", false),
        ] {
            assert_eq!(meets(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn rules_that_cannot_be_are_refused() {
        let hold_all = rule("h", Some("*"), None, None, Action::Hold);
        assert!(matches!(
            Policy::new(vec![hold_all], Action::Allow),
            Err(PolicyError::HoldsMoreThanToolCalls(_))
        ));
        let a = rule("a", None, None, None, Action::Deny);
        assert!(matches!(Policy::new(vec![a.clone(), a], Action::Allow), Err(PolicyError::DoubleId(_))));
        assert_eq!(Policy::new(vec![], Action::Hold).unwrap_err(), PolicyError::DefaultHold);
        for action in [Action::Deny, Action::Hold] {
            let waits = rule("w", None, Some("tools/call"), None, action);
            let error =
                Policy::new(vec![Rule { durability: Durability::BestEffort, ..waits }], Action::Allow);
            assert_eq!(error.unwrap_err(), PolicyError::BestEffortWithoutAllow("w".into()));
        }
    }

    #[test]
    fn only_what_a_rule_names_does_not_wait_for_its_record() {
        let reads = rule("reads", None, None, Some("read_*"), Action::Allow);
        let reads = Rule { durability: Durability::BestEffort, ..reads };
        let strict =
            Policy::new(vec![Rule { durability: Durability::Strict, ..reads.clone() }], Action::Allow);
        let policy = Policy::new(vec![reads], Action::Allow).unwrap();
        let ask = |tool| {
            let call = Call { server: "a.test", also: &[], method: "tools/call", tool: Some(tool) };
            policy.decide(call).1
        };
        assert_eq!((ask("read_file"), ask("write_file")), (Durability::BestEffort, Durability::Strict));
        assert_ne!(policy.digest(), strict.unwrap().digest());
    }

    #[test]
    fn another_policy_has_another_digest() {
        let deny = Policy::new(vec![], Action::Deny).unwrap();
        let allow = Policy::new(vec![], Action::Allow).unwrap();
        assert_ne!(deny.digest(), allow.digest());
    }

    #[test]
    fn globs_match_whole_texts_in_bounded_time() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*b", "ab", true),
            ("a*b", "axxb", true),
            ("a*b", "axxbc", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("delete_*", "delete_repo", true),
            ("delete_*", "undelete_repo", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
        assert!(!glob(&"*a".repeat(200), &"a".repeat(150)));
    }
}
