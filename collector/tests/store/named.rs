//! The named questions, each over records that an agent sent, held against what was sent.

use std::sync::Arc;

use serde_json::{Value, json};
use weir_collector::masked::places;
use weir_collector::rows::{Batch, EventRow};
use weir_core::ids::Origin;
use weir_core::policy::Action;
use weir_core::record::{
    AgentEvent, Body, CallResult, HoldEnd, Intent, Job, Proof, Stored, Treatment, Written,
};
use weir_core::wire::{SEGMENTS, SegmentAck};

use crate::agent::Agent;
use crate::records::{Text, asked, caller, decision, event, flow, intent, outcome, payload, sealed, text};
use crate::world::World;

const MINUTE: u64 = 60_000_000;
const HOUR: u64 = 60 * MINUTE;
const SECRET: &str = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";

/// A log as an agent writes it: each event at a time of its own, in minutes since it began three days ago.
struct Log {
    origin: Origin,
    began_us: u64,
    next_seq: u64,
    events: Vec<Written>,
}

impl Log {
    fn new(n: u8) -> Self {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
        // On a whole window of five minutes.
        let began_us = u64::try_from(now.as_micros()).expect("a time") / (24 * HOUR) * 24 * HOUR - 72 * HOUR;
        Self { origin: Origin::from_random([n; 16]), began_us, next_seq: 0, events: Vec::new() }
    }

    fn at(&mut self, minute: u64, body: Body<Text>) {
        let mut event = event(&self.origin, self.next_seq, body);
        event.time_us = self.began_us + minute * MINUTE + self.next_seq;
        self.next_seq += 1;
        self.events.push(event);
    }

    /// A call and its end.
    fn call(&mut self, minute: u64, n: u8, called: Body<Text>, result: CallResult) {
        self.at(minute, called);
        self.at(minute, outcome(n, result));
    }

    async fn send(&mut self, world: &World) {
        let events = std::mem::take(&mut self.events);
        let first = events.first().expect("an event").seq;
        let agent = Agent::at(world.collector.socket());
        agent.post::<SegmentAck>(SEGMENTS, sealed(first, events)).await.expect("an ack");
    }

    fn time(&self, minute: u64) -> String {
        let time = jiff::Timestamp::from_microsecond((self.began_us + minute * MINUTE).cast_signed());
        time.expect("a time").to_string()
    }
}

/// An intent that differs from the usual one.
fn changed(call: u8, tool: &str, action: Action, change: impl FnOnce(&mut Intent<Text>)) -> Body<Text> {
    let Body::Intent(mut one) = intent(call, tool, action, "{}") else { unreachable!("an intent") };
    change(&mut one);
    Body::Intent(one)
}

fn of_run(intent: &mut Intent<Text>, run: &str, job: &str) {
    let mut caller = caller();
    caller.job = Job { run_id: text(run), job: text(job), ..caller.job };
    intent.caller = Arc::new(caller);
}

fn agent_event(name: &str, detail: &[(&str, &str)]) -> Body<Text> {
    let detail = detail.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
    Body::Agent(AgentEvent { name: name.into(), detail })
}

/// The answer of a named question.
fn ask(world: &World, arguments: &[&str]) -> Vec<Value> {
    let (code, out, told) = world.run(&[&["query", "--json", "--named"], arguments].concat());
    assert_eq!((code, told.as_str()), (0, ""), "{arguments:?}: {out}");
    out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// These columns of each row.
fn columns(rows: &[Value], names: &[&str]) -> Vec<Value> {
    rows.iter().map(|row| names.iter().map(|name| row[name].clone()).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_told_in_order_with_all_that_belongs_to_its_calls_and_nothing_else() {
    let world = World::start();
    let mut log = Log::new(1);
    log.at(0, intent(1, "echo", Action::Allow, r#"{"a":1}"#));
    log.at(0, changed(2, "other", Action::Allow, |one| of_run(one, "732", "test")));
    log.at(0, outcome(2, CallResult::Ok));
    log.at(1, asked());
    log.at(1, outcome(1, CallResult::ToolError));
    log.at(2, intent(3, "deploy", Action::Hold, "{}"));
    log.send(&world).await;
    // What ends a call may come in a later segment.
    log.at(9, decision(3, HoldEnd::Approved, ["{}", "s"], "release 1.4 as planned"));
    log.at(9, outcome(3, CallResult::Ok));
    log.at(10, flow(Treatment::Terminated));
    log.send(&world).await;

    let told = ask(&world, &["timeline", "--run", "731"]);
    assert_eq!(
        columns(&told, &["seq", "what", "about", "came_of_it"]),
        [
            json!([0, "intent", "tools/call echo", "allow by a-rule"]),
            json!([3, "message", "server_to_client roots/list", "request"]),
            json!([4, "outcome", "", "tool_error"]),
            json!([5, "intent", "tools/call deploy", "hold by a-rule"]),
            json!([6, "decision", "end of the hold", "approved alice"]),
            json!([7, "outcome", "", "ok"]),
            json!([8, "flow", "connection", "terminated, closed"]),
        ]
    );
    assert_eq!(
        ask(&world, &["timeline", "--run", "732"]).len(),
        3,
        "its call, and the message of the same connection"
    );
    assert_eq!(ask(&world, &["timeline", "--run", "733"]).len(), 0);
    let (code, csv, _) =
        world.run(&["query", "--named", "timeline", "--run", "731", "--csv", "--limit", "1"]);
    let lines: Vec<&str> = csv.split("\r\n").collect();
    assert_eq!((code, lines.len()), (0, 3), "{csv}");
    assert!(lines[0].starts_with("time,seq,what,") && lines[1].ends_with(r#","{""a"":1}""#), "{csv}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_called_a_tool_and_what_came_up_first_are_told_since_a_time() {
    let world = World::start();
    let mut log = Log::new(1);
    let digest =
        |digest: &'static str| move |one: &mut Intent<Text>| one.mcp.marks.tool_digest = Some(digest.into());
    log.call(0, 1, changed(1, "deploy", Action::Allow, digest("one")), CallResult::Ok);
    log.call(1, 2, changed(2, "deploy", Action::Deny, digest("one")), CallResult::Refused);
    log.call(
        60,
        3,
        changed(3, "deploy", Action::Allow, |one| {
            of_run(one, "800", "nightly");
            digest("two")(one);
        }),
        CallResult::Ok,
    );
    log.call(61, 4, intent(4, "echo", Action::Allow, "{}"), CallResult::Ok);
    log.send(&world).await;

    let names = ["job", "actor", "executable", "server", "calls", "not_allowed", "runs"];
    let nightly = json!(["nightly", "alice", "/usr/bin/node", "localhost", 1, 0, ["800"]]);
    let deploys = json!(["deploy", "alice", "/usr/bin/node", "localhost", 2, 1, ["731"]]);
    assert_eq!(columns(&ask(&world, &["callers", "--tool", "deploy"]), &names), [nightly.clone(), deploys]);
    let since = log.time(30);
    assert_eq!(columns(&ask(&world, &["callers", "--tool", "deploy", "--since", &since]), &names), [nightly]);
    assert!(ask(&world, &["callers", "--tool", "deploy", "--job", "other"]).is_empty());
    assert_eq!(ask(&world, &["calls", "--tool", "echo"]).len(), 1);

    let names = ["what", "server", "tool", "definition", "calls"];
    assert_eq!(
        columns(&ask(&world, &["first-seen"]), &names),
        [
            json!(["tool", "localhost", "echo", "", 1]),
            json!(["tool", "localhost", "deploy", "two", 1]),
            json!(["server", "localhost", "", "", 4]),
            json!(["tool", "localhost", "deploy", "one", 2]),
        ],
        "a changed definition is new"
    );
    assert_eq!(ask(&world, &["first-seen", "--since", &since]).len(), 2);
    assert_eq!(
        columns(&ask(&world, &["tools"]), &["tool", "definition", "calls", "not_allowed"])[0],
        json!(["deploy", "one", 2, 1])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policy_stopped_is_told_by_rule_and_by_approver() {
    let world = World::start();
    let mut log = Log::new(1);
    log.call(0, 1, intent(1, "delete_repo", Action::Deny, "{}"), CallResult::Refused);
    for (n, end, result) in [
        (2, HoldEnd::Approved, CallResult::Ok),
        (3, HoldEnd::Refused, CallResult::Refused),
        (4, HoldEnd::Expired, CallResult::Expired),
    ] {
        log.at(2, intent(n, "deploy", Action::Hold, "{}"));
        log.at(3, decision(n, HoldEnd::Invalid, ["{}", "x"], "no allowed signer has the key"));
        let Body::Decision(mut said) = decision(n, end, ["{}", "s"], "release 1.4 as planned") else {
            unreachable!("it is one")
        };
        if end == HoldEnd::Expired {
            (said.approver, said.key) = (text(""), String::new());
        }
        log.at(2 + u64::from(n), Body::Decision(said));
        log.at(9, outcome(n, result));
    }
    log.at(10, intent(5, "deploy", Action::Hold, "{}"));
    log.send(&world).await;

    let names = ["rule", "action", "calls", "approved", "refused", "expired", "tools"];
    let mut told = columns(&ask(&world, &["policy"]), &names);
    told.sort_by_key(Value::to_string);
    assert_eq!(
        told,
        [
            json!(["a-rule", "deny", 1, 0, 1, 0, ["delete_repo"]]),
            json!(["a-rule", "hold", 4, 1, 1, 1, ["deploy"]])
        ]
    );
    let names = ["approver", "key", "approved", "refused", "own_runs", "median_wait_s", "tools"];
    assert_eq!(
        columns(&ask(&world, &["approvers"]), &names),
        [json!(["alice", "SHA256:x", 1, 1, 1, 150, ["deploy"]])],
        "nobody signed the one that expired"
    );
    assert_eq!(
        columns(&ask(&world, &["denied"]), &["tool", "result"]),
        [json!(["deploy", "expired"]), json!(["deploy", "refused"]), json!(["delete_repo", "refused"])]
    );
    assert_eq!(
        columns(&ask(&world, &["approvals", "--limit", "1"]), &["decision", "result"]),
        [json!(["", "open"])]
    );
    assert!(ask(&world, &["policy", "--job", "other"]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_secret_is_followed_by_its_pseudonym_and_never_by_itself() {
    let world = World::start();
    let mut log = Log::new(1);
    let sent = payload(&format!(r#"{{"note":"{SECRET}"}}"#));
    let pseudonym = places(sent.text.as_str()).first().expect("a masked secret").pseudonym.to_owned();
    log.at(0, changed(1, "deploy", Action::Allow, |one| one.payload = sent.clone()));
    log.at(0, outcome(1, CallResult::Ok));
    log.at(1, intent(2, "read_config", Action::Allow, r#"{"name":"prod settings"}"#));
    let Body::Outcome(mut answer) = outcome(2, CallResult::Ok) else { unreachable!("an outcome") };
    answer.payload = sent;
    log.at(1, Body::Outcome(answer));
    log.at(
        2,
        changed(3, "echo", Action::Allow, |one| {
            one.caller = Arc::new(weir_core::record::Caller {
                command_line: text(&format!("cli {SECRET}")),
                ..caller()
            });
        }),
    );
    log.send(&world).await;

    let names = ["tool", "way", "job", "times", "runs"];
    assert_eq!(
        columns(&ask(&world, &["spread", "--secret", &format!("[masked:github-token:{pseudonym}]")]), &names),
        [
            json!(["deploy", "to the server", "deploy", 1, ["731"]]),
            json!(["read_config", "from the server", "deploy", 1, ["731"]]),
            json!(["echo", "of the caller", "deploy", 1, ["731"]]),
        ]
    );
    assert!(ask(&world, &["spread", "--secret", "p0:0123456789abcdef"]).is_empty());
    let (code, _, told) = world.run(&["query", "--named", "spread", "--secret", SECRET]);
    assert!(code == 2 && told.contains("never the secret itself") && !told.contains(SECRET), "{told}");
    assert_eq!(
        columns(&ask(&world, &["mentions", "--words", "prod settings"]), &["tool"]),
        [json!(["read_config"])]
    );
    assert!(ask(&world, &["mentions", "--words", "prod setting"]).is_empty(), "whole words");
    for (wrong, says) in [
        (&["timeline"][..], "the question timeline needs --run"),
        (&["gaps", "--tool", "x"], "the question gaps does not ask for that; leave out --tool"),
    ] {
        let (code, _, told) = world.run(&[&["query", "--named"], wrong].concat());
        assert!(code == 2 && told.contains(says), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_verified_identity_are_told_with_what_is_missing() {
    let world = World::start();
    let mut log = Log::new(1);
    log.at(0, intent(1, "echo", Action::Allow, "{}"));
    log.at(1, changed(2, "unproven", Action::Allow, |one| one.server.proof = Proof::Unproven));
    log.at(
        2,
        changed(3, "gone", Action::Allow, |one| {
            one.caller =
                Arc::new(weir_core::record::Caller { seen_alive: false, job: Job::default(), ..caller() });
        }),
    );
    log.send(&world).await;
    assert_eq!(
        columns(&ask(&world, &["unverified"]), &["tool", "why"]),
        [json!(["gone", ["caller_not_seen_alive", "no_job"]]), json!(["unproven", ["server_unproven"]])]
    );
    assert_eq!(ask(&world, &["unverified", "--job", "deploy"]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn silences_clock_steps_and_missing_events_are_told_with_their_places() {
    let world = World::start();
    let mut log = Log::new(1);
    log.at(0, agent_event("agent.started", &[]));
    log.at(4, agent_event("heartbeat", &[]));
    // Within one segment, and past a window's end.
    log.at(34, agent_event("heartbeat", &[]));
    log.at(35, agent_event("clock.step", &[("step_us", "3600000000"), ("wall_us", "1")]));
    log.at(36, agent_event("agent.stopped", &[]));
    log.send(&world).await;
    log.at(95, agent_event("agent.started", &[]));
    log.at(96, agent_event("heartbeat", &[]));
    log.at(97, agent_event("heartbeat", &[]));
    log.at(98, agent_event("heartbeat", &[]));
    log.send(&world).await;
    // Set back, and nobody says so.
    log.at(80, agent_event("heartbeat", &[]));
    log.send(&world).await;

    let told = columns(&ask(&world, &["silences"]), &["last_seq", "next_seq", "was_stopped"]);
    assert_eq!(told[1..], [json!([9, 5, false]), json!([4, 9, true]), json!([1, 2, false])]);
    assert_eq!(told[0], json!([8, null, false]), "up to the present");
    assert_eq!(ask(&world, &["silences"])[3]["seconds"], 1800);
    // An idle log is heard of by its checkpoints, whose events come later.
    let idle =
        "INSERT INTO checkpoints (origin, time, idle) SELECT origin, now64(6), true FROM events LIMIT 1";
    world.execute(idle).await;
    assert_eq!(ask(&world, &["silences"]).len(), 3, "not silent now");

    let told = ask(&world, &["clock"]);
    let told: Vec<_> = told.iter().filter(|row| row["told_by"] != "collector").cloned().collect();
    assert_eq!(
        columns(&told, &["seq", "told_by", "step_s"]),
        [json!([9, "order", -1080]), json!([3, "agent", 3600])],
        "each step by who shows it"
    );

    assert!(ask(&world, &["gaps"]).is_empty());
    // In the middle of a segment, with another row there twice; at its beginning; and by a deletion of either kind.
    world
        .execute("INSERT INTO events SELECT * FROM events WHERE seq = 3 SETTINGS insert_deduplicate = 0")
        .await;
    world.execute("ALTER TABLE events DELETE WHERE seq IN (1, 5) SETTINGS mutations_sync = 2").await;
    world.execute("DELETE FROM events WHERE seq = 7").await;
    assert_eq!(
        columns(&ask(&world, &["gaps"]), &["first_missing_seq", "last_missing_seq", "missing"]),
        [json!([1, 1, 1]), json!([5, 5, 1]), json!([7, 7, 1])]
    );
    let agents = ask(&world, &["agents"]);
    assert_eq!(columns(&agents, &["events", "last_seq", "renamed_to"]), [json!([8, 9, ""])]);
    let renamed_to = || {
        let agents = ask(&world, &["agents"]);
        let ended = agents.iter().find(|row| row["origin"] == log.origin.as_str()).expect("the older log");
        ended["renamed_to"].clone()
    };
    let claim = |host: &'static str| {
        agent_event("log.renamed", &[("log", log.origin.as_str()), ("tenant", "demo"), ("host", host)])
    };
    // One that names another host, and one that began before the log ended, claim what is not theirs.
    for (n, at, host) in [(2, 99, "older"), (3, 90, "runner-1")] {
        let mut other = Log::new(n);
        other.at(at, claim(host));
        other.send(&world).await;
    }
    assert_eq!(renamed_to(), "");
    let mut other = Log::new(4);
    other.at(99, claim("runner-1"));
    other.send(&world).await;
    assert_eq!(renamed_to(), "demo/runner-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_held_against_the_jobs_own_week() {
    let world = World::start();
    let mut log = Log::new(1);
    for window in 0..14_u64 {
        for n in 0..3 + window % 2 {
            log.at(window * 5 + n, intent(1, "echo", Action::Allow, "{}"));
        }
        // Another job is as busy all the time as this one is in its burst.
        for n in 0..40_u64 {
            log.at(window * 5 + n / 10, changed(2, "build", Action::Allow, |one| of_run(one, "9", "busy")));
        }
    }
    for n in 0..40_u64 {
        log.at(71 + n / 20, changed(3, "exfiltrate", Action::Allow, |one| of_run(one, "740", "deploy")));
    }
    log.send(&world).await;
    let told = ask(&world, &["rates"]);
    assert_eq!(
        columns(&told, &["job", "calls", "usual", "history", "tools", "runs"]),
        [json!(["deploy", 40, 3.5, 14, ["exfiltrate"], ["740"]])]
    );
    let deviations = told[0]["deviations"].as_f64().expect("a number");
    assert!((deviations - 36.5).abs() < 0.01, "{deviations}");
    assert!(ask(&world, &["rates", "--since", &log.time(90)]).is_empty());
    assert_eq!(
        ask(&world, &["rates", "--since", &log.time(60)]).len(),
        1,
        "what is before is its history all the same"
    );
    assert!(ask(&world, &["tallies"]).is_empty());
    let twice = "INSERT INTO calls_5m SELECT * FROM calls_5m WHERE gen_ai_tool_name = 'exfiltrate' SETTINGS insert_deduplicate = 0";
    world.execute(twice).await;
    assert_eq!(
        columns(&ask(&world, &["tallies"]), &["calls_5m", "events", "difference"]),
        [json!([80, 40, 40])]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_is_tried_again_counts_once_in_what_is_summed_up() {
    let world = World::start();
    let store = world.operator();
    let origin = Origin::from_random([1; 16]);
    let batch = Batch {
        epoch: 0,
        first_seq: 0,
        digest: "d".repeat(64),
        sealed_us: crate::records::TIME_US,
        agent_uid: 0,
        agent_identity: "uid:0".into(),
        ingested_us: crate::records::TIME_US.cast_signed(),
    };
    let rows: Vec<EventRow> = [
        intent(1, "deploy", Action::Hold, "{}"),
        decision(1, HoldEnd::Approved, ["{}", "s"], "as planned, CHG-7"),
    ]
    .into_iter()
    .zip(0..)
    .map(|(body, seq)| {
        let canonical = event(&origin, seq, body).canonical().expect("canonical bytes");
        let stored = Stored::read(&canonical).expect("an event");
        EventRow::of(stored, canonical, &batch)
    })
    .collect();
    for _ in 0..3 {
        store.insert("events", "origin/0/0", &rows).await.expect("an insert");
    }
    let count = |question: &str| world.number(question);
    assert_eq!(count("SELECT count() FROM events"), 2);
    assert_eq!((count("SELECT sum(calls) FROM calls_5m"), count("SELECT count() FROM held")), (1, 2));
    // Another place in the log, with the same contents.
    store.insert("events", "origin/0/2", &rows).await.expect("an insert");
    assert_eq!((count("SELECT count() FROM events"), count("SELECT sum(calls) FROM calls_5m")), (4, 2));
}
