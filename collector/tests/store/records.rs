//! Events, segments and holds as an agent makes them.

use std::sync::Arc;

use weir_core::approval::{Hold, SubmittedHold};
use weir_core::ids::{ApprovalId, Boot, CallId, FlowId, MessageId, Origin};
use weir_core::mask::{MaskKey, Masked, Masker};
use weir_core::policy::{Action, Policy, Verdict};
use weir_core::record::{
    Body, CallResult, Caller, Completeness, Connect, ConnectReason, ConnectSums, ConnectVerdict,
    DecisionRecord, Direction, Durability, Event, Flow, FlowEnd, FlowReason, Gap, GapReason, HoldEnd, Intent,
    Job, Marks, Mcp, Message, MessageLabel, Outcome, Payload, Proof, Server, Treatment, Unread, VERSION,
    Written,
};
use weir_core::segment::{FrameKind, header, push_frame};

/// 22 November 2026.
pub const TIME_US: u64 = 1_795_300_000_000_000;

pub type Text = Masked<String>;

pub fn masker() -> Masker {
    Masker::new(MaskKey::new([1; 32]))
}

pub fn text(text: &str) -> Text {
    masker().text(text)
}

pub fn payload(clear: &str) -> Payload<Text> {
    let (text, masked) = masker().json(clear);
    Payload { text, bytes: clear.len() as u64, masked, ..Payload::default() }
}

pub fn event(origin: &Origin, seq: u64, body: Body<Text>) -> Written {
    Event {
        v: VERSION,
        tenant: "demo".into(),
        host: "runner-1".into(),
        origin: origin.clone(),
        boot: Boot::from_random([9; 16]),
        seq,
        time_us: TIME_US + seq,
        body,
    }
}

pub fn caller() -> Caller<Text> {
    Caller {
        start_time: Some(77),
        executable: text("/usr/bin/node"),
        command_line: text("node client.mjs"),
        cgroup: text("/weir-demo/job"),
        job: Job {
            provider: "github".into(),
            repository: text("example/payments"),
            workflow: text("release"),
            run_id: text("731"),
            job: text("deploy"),
            actor: text("alice"),
            reference: text("refs/heads/main"),
            commit: text("c0ffee"),
            runner: text("r1"),
        },
        seen_alive: true,
        ..Caller::unseen(4242, (1000, 1000), text("node"))
    }
}

pub fn server() -> Server<Text> {
    Server { address: "127.0.0.1".into(), port: 8443, name: text("localhost"), proof: Proof::Certificate }
}

pub fn intent(call: u8, tool: &str, action: Action, arguments: &str) -> Body<Text> {
    Body::Intent(Box::new(Intent {
        call_id: CallId::from_random([call; 16]),
        flow_id: FlowId::from_random([5; 16]),
        caller: Arc::new(caller()),
        server: server(),
        mcp: Mcp {
            method: text("tools/call"),
            tool: Some(text(tool)),
            request_id: Some(text("3")),
            session: Some(masker().pseudonym_of("session", "s")),
            protocol_version: Some(text("2025-06-18")),
            marks: Marks::default(),
        },
        verdict: Verdict { action, rule: "a-rule".into(), policy_digest: "p".into() },
        payload: payload(arguments),
        durability: Durability::Strict,
        approval_id: (action == Action::Hold).then(|| ApprovalId::from_random([call; 16])),
    }))
}

/// A server's request.
pub fn asked() -> Body<Text> {
    Body::Message(Message {
        message_id: Some(MessageId::from_random([6; 16])),
        request_id: Some(text("\"1\"")),
        unread: Some(Unread::TooDeep),
        ..Message::new(
            FlowId::from_random([5; 16]),
            Direction::ServerToClient,
            text("roots/list"),
            MessageLabel::Request,
            payload("{}"),
        )
    })
}

pub fn outcome(call: u8, result: CallResult) -> Body<Text> {
    Body::Outcome(Outcome {
        http_status: Some(200),
        duration_us: Some(1234),
        payload: payload(r#"{"content":[]}"#),
        ..Outcome::new(CallId::from_random([call; 16]), result)
    })
}

pub fn decision(approval: u8, decision: HoldEnd, signed: [&str; 2], justification: &str) -> Body<Text> {
    Body::Decision(DecisionRecord {
        call_id: CallId::from_random([approval; 16]),
        approval_id: ApprovalId::from_random([approval; 16]),
        decision,
        approver: text("alice"),
        key: "SHA256:x".into(),
        justification: text(justification),
        ticket: text("CHG-7"),
        signed_us: Some(TIME_US),
        statement: text(signed[0]),
        signature: text(signed[1]),
    })
}

pub fn flow(treatment: Treatment) -> Body<Text> {
    Body::Flow(Flow {
        flow_id: FlowId::from_random([6; 16]),
        caller: Arc::new(caller()),
        server: Server { name: text("127.0.0.1"), proof: Proof::Unproven, ..server() },
        sni: text("other.test"),
        treatment,
        end: FlowEnd::Closed,
        bytes_up: 10,
        bytes_down: 20,
        duration_us: 30,
        connect: None,
        reason: FlowReason::None,
        borrowed: false,
    })
}

/// A flow that the kernel counted under a job.
pub fn counted(job: &str, verdict: ConnectVerdict) -> Body<Text> {
    let Body::Flow(mut flow) = flow(Treatment::Opaque) else { unreachable!("a flow is a flow") };
    flow.connect = Some(Connect {
        job_key: job.into(),
        verdict,
        reason: ConnectReason::None,
        protocol: 6,
        at_ns: 1_000,
        source: "127.0.0.1".into(),
        source_port: 40_000,
    });
    Body::Flow(flow)
}

/// What the kernel counted of a job: redirected and passed connects, and how many of the first are on their way.
pub fn sums(job: &str, closed: bool, redirected: u64, passed: u64, in_flight: u64) -> Body<Text> {
    Body::Completeness(Completeness {
        job_key: job.into(),
        name: text("/weir-demo/job"),
        closed,
        kernel: ConnectSums { redirected, passed, ..ConnectSums::default() },
        lost: ConnectSums::default(),
        in_flight,
        tables: [("tasks_full".to_owned(), 0)].into(),
    })
}

pub fn gap(job: &str, verdict: ConnectVerdict, reason: GapReason, count: u64) -> Body<Text> {
    Body::Gap(Gap {
        job_key: job.into(),
        verdict,
        reason,
        count,
        detail: [("boot".to_owned(), text("before"))].into(),
    })
}

/// A sealed segment of these bodies, the first at `first_seq`.
pub fn segment(origin: &Origin, first_seq: u64, bodies: Vec<Body<Text>>) -> Vec<u8> {
    let events = (first_seq..).zip(bodies).map(|(seq, body)| event(origin, seq, body)).collect();
    sealed(first_seq, events)
}

/// A sealed segment of these events, whatever they say of themselves.
pub fn sealed(first_seq: u64, events: Vec<Written>) -> Vec<u8> {
    let mut out = header(first_seq).to_vec();
    push_frame(&mut out, FrameKind::Carry, first_seq, b"carried");
    for (seq, event) in (first_seq..).zip(events) {
        push_frame(&mut out, FrameKind::Event, seq, &event.canonical().expect("canonical bytes"));
    }
    out
}

/// A segment of `events` outcomes.
pub fn many(origin: &Origin, first_seq: u64, events: u64) -> Vec<u8> {
    segment(origin, first_seq, (0..events).map(|_| outcome(1, CallResult::Ok)).collect())
}

pub fn hold(approval: u8, origin: &Origin, created_us: u64, expires_us: u64) -> SubmittedHold {
    Hold {
        approval_id: ApprovalId::from_random([approval; 16]),
        call_id: CallId::from_random([approval; 16]),
        tenant: "demo".into(),
        origin: origin.clone(),
        host: "runner-1".into(),
        call_digest: "d".into(),
        policy_digest: "p".into(),
        rule: "deploys".into(),
        server: server(),
        target: text("/mcp"),
        tool: text("deploy"),
        arguments: payload(r#"{"to":"prod\u001b[2J","password":"hunter2hunter2"}"#),
        requester: Caller { command_line: text("node\u{1b}[8m --hidden"), ..caller() },
        created_us,
        expires_us,
        nonce: "0".repeat(32),
    }
}

/// A policy of one rule.
pub fn policy(rule: &str) -> Policy {
    let rule = serde_json::json!({ "id": rule, "when": { "tool": "delete_*" }, "action": "deny" });
    Policy::new(vec![serde_json::from_value(rule).expect("a rule")], Action::Allow).expect("a policy")
}

/// What an agent writes when it has loaded that.
pub fn policy_loaded(rule: &str) -> Body<Text> {
    Body::Agent(weir_core::record::policy_loaded(&policy(rule), &masker()))
}
