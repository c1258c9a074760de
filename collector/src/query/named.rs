//! The questions that have names: what an analyst asks first. Each is plain SQL in a file of its own (`named/`), with
//! ClickHouse's own parameters, so it is also an example to start from. What a question is asked with is bound by
//! ClickHouse, never put into its text.
//!
//! Times of questions over `calls_5m` go by windows of five minutes; each other one is to the microsecond.

/// The most rows of a named question, if nothing else is said.
pub const DEFAULT_LIMIT: u32 = 50;

/// A question with a name.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    pub name: &'static str,
    pub about: &'static str,
    /// Has ClickHouse parameters by the names of [`Parameter`], and `{limit:UInt32}`.
    pub sql: &'static str,
}

/// What a question may be asked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    Since,
    Job,
    Run,
    Tool,
    Secret,
    Words,
}

impl Parameter {
    pub const ALL: [Self; 6] = [Self::Since, Self::Job, Self::Run, Self::Tool, Self::Secret, Self::Words];

    /// Its name in SQL, and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Since => "since",
            Self::Job => "job",
            Self::Run => "run",
            Self::Tool => "tool",
            Self::Secret => "secret",
            Self::Words => "words",
        }
    }
}

impl Named {
    /// Whether it can be asked with this.
    pub fn takes(&self, parameter: Parameter) -> bool {
        self.sql.contains(&format!("{{{}:", parameter.name()))
    }

    /// Whether it means nothing without this.
    pub fn needs(&self, parameter: Parameter) -> bool {
        let optional = matches!(parameter, Parameter::Since | Parameter::Job)
            || self.sql.contains(&format!("{{{}:String}} = ''", parameter.name()));
        self.takes(parameter) && !optional
    }

    /// The names of what it means nothing without.
    pub fn needed(&self) -> Vec<&'static str> {
        Parameter::ALL.into_iter().filter(|parameter| self.needs(*parameter)).map(Parameter::name).collect()
    }
}

/// Finds a question by its name.
pub fn named(name: &str) -> Option<&'static Named> {
    NAMED.iter().find(|one| one.name == name)
}

/// A job is named as its CI names it, or by its run's id.
pub const NAMED: [Named; 23] = [
    Named {
        name: "calls",
        about: "each MCP call: who made it, to what, what was decided, how it ended (newest first)",
        sql: include_str!("named/calls.sql"),
    },
    Named {
        name: "timeline",
        about: "all that is recorded of one run, in order: calls, holds, answers, messages, connections (--run)",
        sql: include_str!("named/timeline.sql"),
    },
    Named {
        name: "callers",
        about: "who called a tool, from where, how often, since when (--tool)",
        sql: include_str!("named/callers.sql"),
    },
    Named {
        name: "policy",
        about: "what each rule refused or held, under which policy, and what became of it",
        sql: include_str!("named/policy.sql"),
    },
    Named {
        name: "denied",
        about: "calls that did not go upstream: refused by a rule or a human, or not decided in time",
        sql: include_str!("named/denied.sql"),
    },
    Named {
        name: "approvals",
        about: "held calls: who decided, when and why",
        sql: include_str!("named/approvals.sql"),
    },
    Named {
        name: "approvers",
        about: "what each approver decided, how fast, and whether any of it was their own run",
        sql: include_str!("named/approvers.sql"),
    },
    Named {
        name: "first-seen",
        about: "servers, and tools by their definition, in the order in which they were first called (newest first)",
        sql: include_str!("named/first-seen.sql"),
    },
    Named {
        name: "tools",
        about: "each tool as it was called: how often, under which definition, and since when (a changed one is a new row)",
        sql: include_str!("named/tools.sql"),
    },
    Named {
        name: "spread",
        about: "where one masked secret went: to and from which servers, by whose calls (--secret p0:...)",
        sql: include_str!("named/spread.sql"),
    },
    Named {
        name: "unverified",
        about: "calls without a verified identity: no proof of the server, a caller gone before it was seen, or no job",
        sql: include_str!("named/unverified.sql"),
    },
    Named {
        name: "mentions",
        about: "calls whose arguments hold all of these words (--words)",
        sql: include_str!("named/mentions.sql"),
    },
    Named {
        name: "rates",
        about: "jobs that made far more calls in five minutes than in the week before (their own windows with calls)",
        sql: include_str!("named/rates.sql"),
    },
    Named {
        name: "silences",
        about: "logs of which nothing was heard for five minutes or more, the present included",
        sql: include_str!("named/silences.sql"),
    },
    Named {
        name: "clock",
        about: "steps of hosts' clocks: as agents tell, as a log's order shows, as the collector's clock shows",
        sql: include_str!("named/clock.sql"),
    },
    Named {
        name: "gaps",
        about: "events that are missing from a log: none should be",
        sql: include_str!("named/gaps.sql"),
    },
    Named {
        name: "tallies",
        about: "five minutes in which the sums that questions read (calls_5m) are not those of the events: none should be",
        sql: include_str!("named/tallies.sql"),
    },
    Named {
        name: "messages",
        about: "what was said besides calls: progress, the server's own requests and their answers, exchanges that are no MCP",
        sql: include_str!("named/messages.sql"),
    },
    Named {
        name: "opaque",
        about: "where connections went whose content Weir did not read, and how much",
        sql: include_str!("named/opaque.sql"),
    },
    Named {
        name: "agents",
        about: "each agent's log: how far it has come, and when it was last heard of",
        sql: include_str!("named/agents.sql"),
    },
    Named {
        name: "jobs",
        about: "what the kernel last counted of each job's connects (`weir-collector completeness` checks it)",
        sql: include_str!("named/jobs.sql"),
    },
    Named {
        name: "unrecorded",
        about: "connects that were counted and have no record, as the agents themselves say, and why",
        sql: include_str!("named/unrecorded.sql"),
    },
    Named {
        name: "findings",
        about: "where what the kernel counted and what was recorded differed, and where a log's evidence did",
        sql: include_str!("named/findings.sql"),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_has_a_name_of_its_own_and_bounds_its_rows() {
        for (at, one) in NAMED.iter().enumerate() {
            assert!(NAMED.iter().take(at).all(|other| other.name != one.name), "{}", one.name);
            assert!(one.sql.contains("{limit:UInt32}") && !one.sql.contains(';'), "{}", one.name);
        }
    }

    #[test]
    fn a_question_says_what_it_must_be_asked_with() {
        let needed = |name: &str| named(name).unwrap().needed();
        assert_eq!(needed("timeline"), ["run"]);
        assert_eq!(
            (needed("callers"), needed("spread"), needed("mentions")),
            (vec!["tool"], vec!["secret"], vec!["words"])
        );
        assert!(named("calls").unwrap().takes(Parameter::Tool) && needed("calls").is_empty());
    }
}
