//! What policy masks of a call on its way. Masking takes away and grants nothing, so it goes by each name of a server,
//! whichever the client uses, and by each rule up to the one that decides.

use serde::{Deserialize, Serialize};

use super::{Call, Policy};
use crate::mcp::TOOLS_CALL;

/// What of the calls of a rule is masked in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mask {
    /// What goes to the server: a call's arguments.
    Arguments,
    /// What comes back to the client.
    Results,
    Both,
}

/// What of one call is masked in flight; as a rule, nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InFlight {
    pub arguments: bool,
    pub results: bool,
}

impl InFlight {
    fn and(self, mask: Mask) -> Self {
        Self {
            arguments: self.arguments || mask != Mask::Results,
            results: self.results || mask != Mask::Arguments,
        }
    }
}

impl Policy {
    /// What is masked of a call that may go.
    pub fn in_flight(&self, call: Call<'_>) -> InFlight {
        if self.rules.iter().all(|rule| rule.mask.is_none()) {
            return InFlight::default();
        }
        let decides = self.rules.iter().position(|rule| rule.matches(call));
        let heard = self.rules.iter().take(decides.map_or(self.rules.len(), |at| at + 1));
        let masks = heard.filter_map(|rule| Some((rule, rule.mask?)));
        masks
            .filter(|(rule, _)| rule.is_for_server(call, true) && rule.is_for_message(call))
            .fold(InFlight::default(), |all, (_, mask)| all.and(mask))
    }

    /// Whether results of some tool's calls at this server are masked: then they are wherever they can come, as on
    /// a stream that is resumed, or from a task, where no call is at hand to ask for.
    pub fn masks_results_of(&self, server: &str, also: &[String]) -> bool {
        let call = Call { server, also, method: TOOLS_CALL, tool: None };
        let any_tool = |method: &Option<String>| {
            method.as_deref().is_none_or(|pattern| super::glob(pattern, TOOLS_CALL))
        };
        let masks = |mask: Option<Mask>| mask.is_some_and(|mask| mask != Mask::Arguments);
        let mut rules = self.rules.iter().filter(|rule| masks(rule.mask));
        rules.any(|rule| rule.is_for_server(call, true) && any_tool(&rule.when.method))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Durability, PolicyError, Rule, When};
    use super::*;

    fn rule(id: &str, server: Option<&str>, tool: &str, action: Action, mask: Option<Mask>) -> Rule {
        let when = When { server: server.map(str::to_owned), tool: Some(tool.into()), method: None };
        Rule { id: id.into(), when, action, durability: Durability::Strict, mask }
    }

    #[test]
    fn masking_goes_by_each_name_of_a_server_and_grants_nothing() {
        let rules = vec![
            rule("read", Some("mine.test"), "read_*", Action::Allow, Some(Mask::Results)),
            rule("write", None, "write_*", Action::Hold, Some(Mask::Arguments)),
            rule("all", None, "*_all", Action::Allow, Some(Mask::Both)),
            rule("late", None, "write_*", Action::Allow, Some(Mask::Results)),
        ];
        let policy = Policy::new(rules, Action::Deny).unwrap();
        let also = ["mine.test".to_owned()];
        let call = |tool| Call { server: "10.0.0.7", also: &also, method: TOOLS_CALL, tool: Some(tool) };
        let ask = |tool| {
            let InFlight { arguments, results } = policy.in_flight(call(tool));
            (policy.verdict(call(tool)).action, arguments, results)
        };
        assert_eq!(ask("read_config"), (Action::Deny, false, true));
        // The rule that decides is the last that is heard.
        assert_eq!(ask("write_config"), (Action::Hold, true, false));
        assert_eq!(ask("read_all"), (Action::Allow, true, true));
        assert_eq!(ask("echo"), (Action::Deny, false, false));
        assert!(policy.masks_results_of("10.0.0.7", &also));
        assert!(policy.masks_results_of("other.test", &[]), "the rule of any server");
        let arguments =
            Policy::new(vec![rule("w", None, "w", Action::Hold, Some(Mask::Arguments))], Action::Allow);
        assert!(!arguments.unwrap().masks_results_of("mine.test", &[]));
    }

    #[test]
    fn a_rule_that_denies_has_nothing_to_mask() {
        let rules = vec![rule("no", None, "x", Action::Deny, Some(Mask::Both))];
        let refused = Policy::new(rules, Action::Allow).unwrap_err();
        assert_eq!(refused, PolicyError::MasksWhatIsDenied("no".into()));
    }
}
