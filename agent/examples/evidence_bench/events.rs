//! Events as a busy runner's are: an intent with its caller and 600 bytes of params, an outcome with 2 KB of answer.

use std::sync::Arc;

use anyhow::Result;
use weir::ledger::Text;
use weir_core::ids::{Boot, CallId, FlowId, Origin};
use weir_core::mask::{MaskKey, Masker};
use weir_core::policy::{Action, Verdict};
use weir_core::record::{
    self, Body, CallResult, Caller, Durability, Event, Intent, Job, Mcp, Outcome, Payload, Proof, Server,
};

/// How many events a sample has.
const SAMPLE: u64 = 1000;

pub fn masker() -> Masker {
    Masker::new(MaskKey::new([3; 32]))
}

pub fn call(n: u64) -> CallId {
    CallId::from_random((u128::from(n) << 64 | 0x9e37_79b9_7f4a_7c15).to_be_bytes())
}

pub fn flow() -> FlowId {
    FlowId::from_random([5; 16])
}

/// Makes the bodies of calls, whose parts that repeat are made once.
pub struct Maker {
    caller: Arc<Caller<Text>>,
    params: Payload<Text>,
    answer: Payload<Text>,
    masker: Masker,
}

impl Maker {
    pub fn new() -> Self {
        let masker = masker();
        let text = |text: &str| masker.text(text);
        let job = Job {
            provider: "github".into(),
            repository: text("acme/app"),
            workflow: text("ci"),
            run_id: text("4711"),
            job: text("build"),
            actor: text("kim"),
            reference: text("refs/heads/main"),
            commit: text("0123456789abcdef0123456789abcdef01234567"),
            runner: text("runner-1"),
        };
        let caller = Caller {
            start_time: Some(123_456),
            executable: text("/usr/bin/node"),
            command_line: text("node /opt/runner/client.mjs --server https://tools.example/mcp"),
            cgroup: text("/system.slice/actions.runner.acme-app.service"),
            job,
            seen_alive: true,
            netns: 4_026_531_840,
            job_key: "00c0ffee00c0ffee-0000000000001a2b".into(),
            ..Caller::unseen(4242, (1001, 1001), text("node"))
        };
        let payload = |content: String| Payload {
            bytes: content.len() as u64,
            text: masker.text(&content),
            ..Payload::default()
        };
        let params = payload(format!(
            r#"{{"name":"read_file","arguments":{{"text":"{}"}}}}"#,
            "src/main.rs ".repeat(45)
        ));
        let answer = "The pipeline builds three images. ".repeat(60);
        let answer = payload(format!(r#"{{"content":[{{"type":"text","text":"{answer}"}}]}}"#));
        Self { caller: Arc::new(caller), params, answer, masker }
    }

    pub fn intent(&self, n: u64, durability: Durability) -> Intent<Text> {
        let text = |text: &str| self.masker.text(text);
        Intent {
            call_id: call(n),
            flow_id: flow(),
            caller: self.caller.clone(),
            server: Server {
                address: "203.0.113.7".into(),
                port: 443,
                name: text("tools.example"),
                proof: Proof::Certificate,
            },
            mcp: Mcp { method: text("tools/call"), ..Mcp::default() },
            verdict: Verdict { action: Action::Allow, rule: "reads".into(), policy_digest: "d".repeat(64) },
            payload: self.params.clone(),
            durability,
            approval_id: None,
        }
    }

    pub fn outcome(&self, n: u64) -> Outcome<Text> {
        Outcome {
            http_status: Some(200),
            duration_us: Some(345 + n % 1000),
            payload: self.answer.clone(),
            ..Outcome::new(call(n), CallResult::Ok)
        }
    }
}

/// The canonical bytes of a thousand events: intents and outcomes, by turns.
pub fn sample() -> Result<Vec<Vec<u8>>> {
    let maker = Maker::new();
    let event = |seq: u64| {
        let n = seq / 2;
        let body = if seq.is_multiple_of(2) {
            Body::Intent(Box::new(maker.intent(n, Durability::Strict)))
        } else {
            Body::Outcome(maker.outcome(n))
        };
        let event = Event {
            v: record::VERSION,
            tenant: "acme".into(),
            host: "runner-1".into(),
            origin: Origin::from_random([1; 16]),
            boot: Boot::from_random([2; 16]),
            seq,
            time_us: 1_790_000_000_000_000 + seq,
            body,
        };
        Ok(event.canonical()?)
    };
    (0..SAMPLE).map(event).collect()
}
