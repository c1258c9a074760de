//! What the record has of a policy from when it is loaded: its rules and their digest, so that whoever has the events of a run has
//! what decided on it. A [`Policy`] comes in, the agent's event goes out; and back, what an event's rules are worth.
//!
//! The text is masked as all text is. Nothing but the whole text has the digest.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::AgentEvent;
use crate::ids::hex;
use crate::mask::{Masked, Masker};
use crate::policy::Policy;

/// The name of the event.
pub const POLICY_LOADED: &str = "policy.loaded";
/// The most bytes of the rules' text in an event: of one more a part is kept, and the event says so.
pub const MAX_RULES: usize = 256 << 10;

const DIGEST: &str = "digest";
const RULES: &str = "rules";
const RULES_ARE: &str = "rules_are";
const WHOLE: &str = "whole";

/// What an event's rules are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RulesTold {
    /// None are there: written by an agent that told the digest alone.
    Absent,
    /// All of them, and the digest is theirs.
    Whole,
    /// Something in them is masked, or they were too long.
    Part,
    /// They are said to be whole, and the digest is another's.
    Contradicted,
}

/// A policy is in force. Each decision names it by its digest.
pub fn policy_loaded(policy: &Policy, masker: &Masker) -> AgentEvent<Masked<String>> {
    let clear = policy.text();
    let masked = masker.text(&clear);
    let are = match masked.as_str() {
        text if text.len() > MAX_RULES => "cut",
        text if text == clear => WHOLE,
        _ => "masked",
    };
    let detail = [
        (DIGEST.to_owned(), masker.text(policy.digest())),
        (RULES.to_owned(), masked.truncate(MAX_RULES)),
        (RULES_ARE.to_owned(), Masked::literal(are)),
    ];
    AgentEvent { name: POLICY_LOADED.to_owned(), detail: detail.into() }
}

/// Holds the rules of such an event against its digest.
pub fn rules_told(detail: &BTreeMap<String, String>) -> RulesTold {
    let Some(rules) = detail.get(RULES) else { return RulesTold::Absent };
    let fits = detail.get(DIGEST).is_some_and(|digest| *digest == hex(&Sha256::digest(rules)));
    match (detail.get(RULES_ARE).map(String::as_str), fits) {
        (Some(WHOLE), true) => RulesTold::Whole,
        (Some(WHOLE), false) => RulesTold::Contradicted,
        _ => RulesTold::Part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::MaskKey;
    use crate::policy::{Action, Durability, Rule, When};

    fn rule(id: &str, tool: &str) -> Rule {
        let when = When { tool: Some(tool.into()), ..When::default() };
        Rule { id: id.into(), when, action: Action::Deny, durability: Durability::Strict, mask: None }
    }

    fn told(rules: Vec<Rule>) -> BTreeMap<String, String> {
        let policy = Policy::new(rules, Action::Allow).unwrap();
        let event = policy_loaded(&policy, &Masker::new(MaskKey::new([1; 32])));
        assert_eq!((event.name.as_str(), event.detail[DIGEST].as_str()), ("policy.loaded", policy.digest()));
        event.detail.into_iter().map(|(name, value)| (name, value.as_str().to_owned())).collect()
    }

    #[test]
    fn the_rules_are_told_whole_and_have_the_digest() {
        let mut detail = told(vec![rule("no-deletes", "delete_*")]);
        assert_eq!((detail[RULES_ARE].as_str(), rules_told(&detail)), ("whole", RulesTold::Whole));
        let rules: serde_json::Value = serde_json::from_str(&detail[RULES]).unwrap();
        assert_eq!(
            (&rules["default_action"], &rules["rules"][0]["when"]["tool"]),
            (&"allow".into(), &"delete_*".into())
        );
        let changed = detail[RULES].replace("delete_*", "drop_*");
        detail.insert(RULES.into(), changed);
        assert_eq!(rules_told(&detail), RulesTold::Contradicted);
        detail.remove(RULES);
        assert_eq!(rules_told(&detail), RulesTold::Absent);
    }

    #[test]
    fn a_secret_in_a_rule_is_masked_and_that_is_said() {
        let secret = "gh".to_owned() + "p_" + "w2Xq8RkV5nTz1YbM7cLs4HdJf9GaPe0UoKi3";
        let detail = told(vec![rule("odd", &secret)]);
        assert!(!detail[RULES].contains(&secret), "{detail:?}");
        assert_eq!((detail[RULES_ARE].as_str(), rules_told(&detail)), ("masked", RulesTold::Part));
    }

    #[test]
    fn rules_past_the_limit_are_cut_there_and_the_digest_stays_that_of_all() {
        let few = |n: usize| (0..n).map(|n| rule(&format!("rule-{n}"), "delete_*")).collect::<Vec<_>>();
        let (short, rules) = (told(few(1)), told(few(5000)));
        assert_eq!((rules[RULES].len(), rules[RULES_ARE].as_str()), (MAX_RULES, "cut"));
        assert_eq!(rules_told(&rules), RulesTold::Part);
        assert_ne!(short[DIGEST], rules[DIGEST]);
    }
}
