//! What a run did, read out of a bundle's events: its calls in order with their ends, the servers that they went to, the
//! tools as they were listed, the policies and who called. Nothing here is believed before the bundle was checked.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weir_core::ids::CallId;
use weir_core::mcp::tools;
use weir_core::policy::Action;
use weir_core::record::{Body, CallResult, Intent, Outcome, POLICY_LOADED, Payload, Stored};

use super::Bundle;

/// One call, and how it ended.
#[derive(Debug, Clone)]
pub struct Call {
    /// From 1, in the order of the run.
    pub number: usize,
    pub origin: String,
    pub seq: u64,
    pub time_us: u64,
    pub intent: Intent<String>,
    /// None: it is not known.
    pub outcome: Option<Outcome<String>>,
}

impl Call {
    /// The tool, or the method of what calls none.
    pub fn name(&self) -> &str {
        self.intent.mcp.tool.as_deref().unwrap_or(&self.intent.mcp.method)
    }

    /// Whether it went upstream, as far as the record knows.
    pub fn went(&self) -> bool {
        let stopped =
            |outcome: &Outcome<String>| matches!(outcome.result, CallResult::Refused | CallResult::Expired);
        self.intent.verdict.action != Action::Deny && !self.outcome.as_ref().is_some_and(stopped)
    }

    /// A notification has no answer of its own.
    pub fn is_notification(&self) -> bool {
        self.intent.mcp.request_id.is_none()
    }
}

/// Where calls of the run went.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    pub name: String,
    pub address: String,
    pub port: u16,
}

/// A tool as a server listed it to the run.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSeen {
    pub server: String,
    pub name: String,
    pub digest: String,
    /// None where the list was cut off in the record.
    pub definition: Option<Value>,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Story {
    pub calls: Vec<Call>,
    pub servers: Vec<Server>,
    pub tools: Vec<ToolSeen>,
    /// By digest, with what the agent told of it when it loaded it: its rules, too.
    pub policies: BTreeMap<String, BTreeMap<String, String>>,
    /// Who called: executable, user, job.
    pub callers: Vec<Value>,
    /// How many events of each kind.
    pub kinds: BTreeMap<&'static str, u64>,
}

impl Story {
    /// Reads a bundle's events. What is no event is left out: the check has told of it.
    pub fn of(bundle: &Bundle) -> Self {
        let mut story = Self::default();
        let (mut ends, mut intents) = (BTreeMap::<CallId, Outcome<String>>::new(), Vec::new());
        for event in bundle.events().filter_map(|event| Stored::read(event.canonical).ok()) {
            *story.kinds.entry(event.body.kind()).or_default() += 1;
            match event.body {
                Body::Intent(intent) => {
                    intents.push((event.time_us, event.origin.to_string(), event.seq, *intent))
                }
                Body::Outcome(outcome) => {
                    ends.insert(outcome.call_id.clone(), outcome);
                }
                Body::Agent(agent) if agent.name == POLICY_LOADED => {
                    let digest = agent.detail.get("digest").or_else(|| agent.detail.get("policy_digest"));
                    story.policies.insert(digest.cloned().unwrap_or_default(), agent.detail);
                }
                _ => {}
            }
        }
        intents.sort_by(|a, b| (a.0, &a.1, a.2).cmp(&(b.0, &b.1, b.2)));
        for (number, (time_us, origin, seq, intent)) in (1..).zip(intents) {
            let outcome = ends.remove(&intent.call_id);
            story.told(Call { number, origin, seq, time_us, intent, outcome });
        }
        story
    }

    fn told(&mut self, call: Call) {
        let intent = &call.intent;
        let to = &intent.server;
        let server = Server { name: to.name.clone(), address: to.address.clone(), port: to.port };
        if let Err(at) = self.servers.binary_search(&server) {
            self.servers.insert(at, server);
        }
        self.policies.entry(intent.verdict.policy_digest.clone()).or_default();
        let caller = &intent.caller;
        let caller = json!({
            "pid": caller.pid, "executable": caller.executable, "uid": caller.uid, "seen_alive": caller.seen_alive,
            "container": caller.container_id, "repository": caller.job.repository, "pipeline": caller.job.workflow,
            "run": caller.job.run_id, "job": caller.job.job, "actor": caller.job.actor,
        });
        if !self.callers.contains(&caller) {
            self.callers.push(caller);
        }
        if intent.mcp.method == "tools/list"
            && let Some(outcome) = &call.outcome
        {
            self.listed(&to.name, &outcome.payload);
        }
        self.calls.push(call);
    }

    /// The digests are those of the masked text: where something of a definition was masked, they are others than the
    /// calls' own.
    fn listed(&mut self, server: &str, payload: &Payload<String>) {
        let list: Option<Value> = serde_json::from_str(&payload.text).ok();
        for (name, digest) in tools::digests(&payload.text) {
            let of = |list: &Value| {
                list.get("tools")?
                    .as_array()?
                    .iter()
                    .find(|tool| tool.get("name") == Some(&json!(name)))
                    .cloned()
            };
            let definition = list.as_ref().and_then(of);
            let seen = ToolSeen { server: server.to_owned(), name, digest, definition };
            if !self.tools.contains(&seen) {
                self.tools.push(seen);
            }
        }
    }

    /// What is in it, for a reader: each call with its time since the first, and what was seen.
    pub fn json(&self) -> Value {
        let began = self.calls.first().map_or(0, |call| call.time_us);
        let calls: Vec<Value> = self
            .calls
            .iter()
            .map(|call| {
                let Intent { mcp, server, verdict, .. } = &call.intent;
                json!({
                    "number": call.number, "at_us": call.time_us, "after_us": call.time_us.saturating_sub(began),
                    "origin": call.origin, "seq": call.seq, "server": server.name, "method": mcp.method, "tool": mcp.tool,
                    "action": verdict.action.as_str(), "rule": verdict.rule, "policy": verdict.policy_digest,
                    "definition": mcp.marks.tool_digest,
                    "result": call.outcome.as_ref().map(|outcome| outcome.result.as_str()),
                    "duration_us": call.outcome.as_ref().and_then(|outcome| outcome.duration_us),
                })
            })
            .collect();
        let tools: Vec<Value> = self
            .tools
            .iter()
            .map(|tool| json!({ "server": tool.server, "name": tool.name, "digest": tool.digest, "definition": tool.definition }))
            .collect();
        let servers: Vec<Value> = self
            .servers
            .iter()
            .map(|server| json!({ "name": server.name, "address": server.address, "port": server.port }))
            .collect();
        json!({ "events": self.kinds, "calls": calls, "tools": tools, "servers": servers, "policies": self.policies, "callers": self.callers })
    }
}
