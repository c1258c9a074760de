//! Held calls as people and scripts read them. All of it may have been chosen by a job, so whatever goes to a
//! terminal is made visible first.

use std::fmt::Write as _;

use serde_json::{Value, json as value};

use super::Held;
use crate::query::table::render;
use crate::visible::line;

/// A list, one line each.
pub fn table(held: &[Held], now_us: i64, width: Option<usize>) -> String {
    let columns = ["id", "state", "expires", "rule", "server", "tool", "job", "requester", "arguments"];
    let rows: Vec<Vec<String>> = held
        .iter()
        .map(|one| {
            let hold = &one.hold;
            let left = hold.expires_us.saturating_sub(now_us.max(0).cast_unsigned()) / 1_000_000;
            let expires =
                if one.state == super::State::Open { format!("in {left} s") } else { time(hold.expires_us) };
            let job = &hold.requester.job;
            vec![
                hold.approval_id.to_string(),
                one.state.as_str().to_owned(),
                expires,
                hold.rule.clone(),
                format!("{}:{}", hold.server.name, hold.server.port),
                hold.tool.clone(),
                joined(&[&job.repository, &job.job, &job.run_id], " "),
                joined(&[&job.actor, &hold.requester.executable], " "),
                hold.arguments.text.clone(),
            ]
        })
        .collect();
    render(&columns.map(str::to_owned), &rows, width)
}

/// One line of what is answered.
pub fn summary(held: &Held) -> String {
    let hold = &held.hold;
    line(&format!(
        "{} on {}:{} for {} ({})",
        hold.tool,
        hold.server.name,
        hold.server.port,
        joined(&[&hold.requester.job.repository, &hold.requester.job.job, &hold.requester.executable], " "),
        hold.approval_id
    ))
}

/// Everything that an approver must see before signing.
pub fn shown(held: &Held) -> String {
    let hold = &held.hold;
    let (caller, job) = (&hold.requester, &hold.requester.job);
    let mut out = String::new();
    let mut say = |name: &str, text: &str| {
        if !text.is_empty() {
            let _ = writeln!(out, "{name:<14}{}", line(text));
        }
    };
    say("id", hold.approval_id.as_str());
    say("state", held.state.as_str());
    if held.signed > 0 {
        say("statements", &format!("{} signed so far, whatever they are worth", held.signed));
    }
    say("approver", &held.approver);
    say("justification", &held.justification);
    say("ticket", &held.ticket);
    say("created", &time(hold.created_us));
    say("expires", &time(hold.expires_us));
    say("rule", &hold.rule);
    say("policy", &hold.policy_digest);
    let proof = match hold.server.proof {
        weir_core::record::Proof::Certificate => "proven by its certificate",
        weir_core::record::Proof::Unproven => "NOT proven: nothing shows that this is its name",
    };
    say("server", &format!("{}:{} at {} ({proof})", hold.server.name, hold.server.port, hold.server.address));
    say("target", &hold.target);
    say("tool", &hold.tool);
    say("repository", &job.repository);
    say("workflow", &job.workflow);
    say("job", &job.job);
    say("run", &job.run_id);
    say("actor", &job.actor);
    say("ref", &job.reference);
    say("commit", &job.commit);
    say("runner", &joined(&[&job.provider, &job.runner], " "));
    say("host", &hold.host);
    say("tenant", &hold.tenant);
    say("process", &format!("{} (pid {}, uid {})", caller.executable, caller.pid, caller.uid));
    say("command", &caller.command_line);
    say("cgroup", &caller.cgroup);
    if !caller.seen_alive {
        say("note", "the process was gone before it could be looked at: only the kernel's word is here");
    }
    for span in &hold.arguments.masked {
        say(
            "masked",
            &format!("{} at {}", span.detector, if span.pointer.is_empty() { "/" } else { &span.pointer }),
        );
    }
    if hold.arguments.truncated {
        say(
            "TRUNCATED",
            &format!("the arguments are {} bytes, and only their beginning is here", hold.arguments.bytes),
        );
    }
    say("digest", &hold.call_digest);
    let _ = write!(out, "arguments ({} bytes)\n{}\n", hold.arguments.bytes, line(&hold.arguments.text));
    out
}

/// The same for scripts: the state, and the whole hold.
pub fn json(held: &Held) -> Value {
    let hold = &held.hold;
    value!({
        "approval_id": hold.approval_id,
        "state": held.state.as_str(),
        "signed": held.signed,
        "approver": held.approver,
        "justification": held.justification,
        "ticket": held.ticket,
        "created": time(hold.created_us),
        "expires": time(hold.expires_us),
        "rule": hold.rule,
        "server": hold.server.name,
        "tool": hold.tool,
        "arguments": hold.arguments.text,
        "hold": hold,
    })
}

fn time(us: u64) -> String {
    let time = i64::try_from(us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    time.map_or_else(|| format!("{us} µs"), |time| time.to_string())
}

fn joined(parts: &[&str], by: &str) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(by)
}
