use serde_json::Value;
use weir_core::ids::Origin;
use weir_core::policy::Action;
use weir_core::record::{CallResult, HoldEnd, Treatment};
use weir_core::wire::{SEGMENTS, SegmentAck};

use crate::agent::Agent;
use crate::records::{asked, decision, flow, intent, outcome, segment};
use crate::world::World;

async fn recorded() -> World {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let origin = Origin::from_random([1; 16]);
    let first = vec![
        intent(1, "echo\u{1b}[2J", Action::Allow, r#"{"a":1}"#),
        outcome(1, CallResult::Ok),
        intent(2, "delete_repo", Action::Deny, "{}"),
        outcome(2, CallResult::Refused),
        intent(3, "deploy", Action::Hold, "{}"),
        decision(3, HoldEnd::Invalid, ["{}", "s0"], "not an approver"),
        decision(3, HoldEnd::Approved, ["{}", "s1"], "release 1.4 as planned"),
        outcome(3, CallResult::Ok),
        intent(4, "slow", Action::Allow, "{}"),
    ];
    agent.post::<SegmentAck>(SEGMENTS, segment(&origin, 0, first)).await.expect("an ack");
    let later = vec![flow(Treatment::Opaque), flow(Treatment::Terminated), asked()];
    agent.post::<SegmentAck>(SEGMENTS, segment(&origin, 12, later)).await.expect("an ack");
    world
}

fn rows(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_named_questions_answer_in_tables_and_json() {
    let world = recorded().await;
    let ask = |arguments: &[&str]| {
        let (code, out, told) = world.run(&[&["query", "--json", "--named"], arguments].concat());
        assert_eq!(code, 0, "{arguments:?}: {told}");
        rows(&out)
    };
    let calls = ask(&["calls"]);
    let told: Vec<_> =
        calls.iter().map(|c| (c["tool"].as_str().unwrap(), c["result"].as_str().unwrap())).collect();
    assert_eq!(
        told,
        [("slow", "open"), ("deploy", "ok"), ("delete_repo", "refused"), ("echo\u{1b}[2J", "ok")],
        "the newest first, each once"
    );
    assert_eq!(calls[3]["ms"], 1.2);
    assert_eq!(ask(&["calls", "--job", "deploy", "--limit", "2"]).len(), 2);
    assert_eq!(ask(&["calls", "--job", "other"]).len(), 0);
    assert_eq!(ask(&["calls", "--since", "2026-01-01T00:00:00Z"]).len(), 4);
    assert_eq!(ask(&["calls", "--since", "2100-01-01T00:00:00Z"]).len(), 0);
    assert_eq!(ask(&["denied"])[0]["tool"], "delete_repo");
    let approvals = ask(&["approvals"]);
    assert_eq!(approvals.len(), 1);
    assert_eq!(
        (&approvals[0]["decision"], &approvals[0]["approver"], &approvals[0]["justification"]),
        (&"approved".into(), &"alice".into(), &"release 1.4 as planned".into())
    );
    assert_eq!(ask(&["opaque"])[0]["destination"], "other.test");
    assert_eq!((&ask(&["agents"])[0]["events"], &ask(&["agents"])[0]["last_seq"]), (&12.into(), &14.into()));
    let gaps = ask(&["gaps"]);
    assert_eq!((gaps.len(), &gaps[0]["first_missing_seq"], &gaps[0]["missing"]), (1, &9.into(), &3.into()));

    let tools = ask(&["tools"]);
    assert!(tools.iter().any(|t| t["tool"].as_str().unwrap().contains("echo") && t["server"] == "localhost"));
    let messages = ask(&["messages"]);
    assert_eq!(messages.len(), 1);
    let of = |name: &str| messages[0][name].as_str().unwrap();
    assert_eq!((of("label"), of("id"), of("unread")), ("request", "\"1\"", "too_deep"));

    let (_, table, _) = world.run(&["query", "--named", "calls"]);
    assert!(
        table.starts_with("time ") && table.contains("echo\\u{1b}[2J") && !table.contains('\u{1b}'),
        "{table}"
    );
    let (code, listed, _) = world.run(&["query", "--list"]);
    assert_eq!((code, listed.lines().count()), (0, 23));
}

#[tokio::test(flavor = "multi_thread")]
async fn free_sql_reads_and_never_writes() {
    let world = recorded().await;
    let (_, out, _) = world.run(&["query", "SELECT '?' AS q, toUInt64(1) AS n, [1, 2] AS list"]);
    assert_eq!(out, "q  n  list\n-  -  -----\n?  1  [1,2]\n");
    let (_, out, _) = world.run(&["query", "--format", "CSV", "SELECT 1, 'a'"]);
    assert_eq!(out, "1,\"a\"\n");
    for write in [
        "DROP TABLE events",
        "INSERT INTO decisions (approval_id) VALUES ('x')",
        "ALTER TABLE events DELETE WHERE 1",
        "DROP TABLE events SETTINGS readonly = 0",
        "SELECT 1; DROP TABLE events",
        "CREATE TABLE copy ENGINE = Memory AS SELECT * FROM events SETTINGS readonly = 0",
    ] {
        let (code, _, told) = world.run(&["query", write]);
        assert!(code == 1 && told.contains("ClickHouse refused"), "{write}: {code} {told}");
    }
    assert_eq!(world.number("SELECT count() FROM events"), 12);
    for (wrong, says) in [
        (&["query"][..], "required arguments were not provided"),
        (&["query", "SELECT 1", "--named", "calls"], "cannot be used with"),
        (&["query", "--named", "nonsense"], "there is no question named"),
        (&["query", "--named", "gaps", "--job", "x"], "the question gaps does not ask for that"),
        (&["query", "--named", "calls", "--since", "soon"], "neither a time"),
    ] {
        let (code, _, told) = world.run(wrong);
        assert!(code == 2 && told.contains(says), "{wrong:?}: {code} {told}");
    }
}
