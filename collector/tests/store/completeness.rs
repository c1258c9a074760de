//! The check of completeness against the real engine: rows are deleted and doubled there, and the check, of the
//! collector that serves and on demand, names exactly them.

use std::time::Duration;

use serde_json::Value;
use weir_collector::completeness::{Asked, report};
use weir_core::ids::Origin;
use weir_core::policy::Action;
use weir_core::record::{Body, CallResult, ConnectVerdict, GapReason};
use weir_core::wire::{SEGMENTS, SegmentAck};
use weir_tests::until;

use crate::agent::Agent;
use crate::records::{Text, counted, gap, intent, outcome, segment, sums, text};
use crate::world::World;

use ConnectVerdict::{Passed, Redirected};

const JOB: &str = "00000000000000aa-0000000000000001";
const OTHER: &str = "00000000000000aa-0000000000000002";

fn origin(n: u8) -> Origin {
    Origin::from_random([n; 16])
}

async fn put(world: &World, origin: &Origin, first_seq: u64, bodies: Vec<Body<Text>>) {
    let agent = Agent::at(world.collector.socket());
    agent.post::<SegmentAck>(SEGMENTS, segment(origin, first_seq, bodies)).await.expect("an ack");
}

/// Two calls and ten redirected and four passed connects of a job, at 0 to 15, and its last sums, at 16.
async fn closed(world: &World) {
    let mut bodies = vec![intent(1, "echo", Action::Allow, "{}"), outcome(1, CallResult::Ok)];
    bodies.extend((0..10).map(|_| counted(JOB, Redirected)));
    bodies.extend((0..4).map(|_| counted(JOB, Passed)));
    bodies.push(sums(JOB, true, 10, 4, 0));
    put(world, &origin(1), 0, bodies).await;
}

/// What the command says: its exit code, and each finding as (job or log, verdict, reason, number).
fn checked(world: &World, arguments: &[&str]) -> (i32, Vec<(String, String, String, i64)>) {
    let (code, out, told) = world.run(&[&["completeness", "--json"], arguments].concat());
    assert_eq!(told, "", "{out}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for line in out.lines() {
        let line: Value = serde_json::from_str(line).expect(line);
        for one in line["findings"].as_array().expect("findings") {
            let whose = if line["log"].is_null() { "job_key" } else { "log" };
            let missing = one["missing"].as_i64().expect("a number");
            found.push((text(&line[whose]), text(&line["verdict"]), text(&one["reason"]), missing));
        }
    }
    (code, found)
}

fn finding(whose: &str, verdict: &str, reason: &str, missing: i64) -> (String, String, String, i64) {
    (whose.to_owned(), verdict.to_owned(), reason.to_owned(), missing)
}

async fn delete(world: &World, which: &str) {
    world.execute(&format!("ALTER TABLE events DELETE WHERE {which} SETTINGS mutations_sync = 2")).await;
}

/// The rows of `findings`, once there are so many.
fn findings(world: &World, count: usize) -> Vec<(String, String, String, i64)> {
    let question = "SELECT job_key, connect_verdict AS verdict, reason, missing FROM findings FINAL \
                    ORDER BY job_key, verdict, reason";
    let rows = until(&format!("{count} findings"), Duration::from_secs(30), || {
        let rows = world.sql(question);
        Ok((rows.len() >= count).then_some(rows))
    });
    let text = |row: &Value, name: &str| row[name].as_str().expect(name).to_owned();
    let told = |row: &Value| {
        let missing = row["missing"].as_i64().expect("a number");
        (text(row, "job_key"), text(row, "verdict"), text(row, "reason"), missing)
    };
    rows.expect("findings").iter().map(told).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_deleted_from_a_closed_job_are_named_to_the_number_whenever_one_asks() {
    let world = World::start();
    closed(&world).await;
    assert_eq!(checked(&world, &[]), (0, vec![]));
    let (code, table, _) = world.run(&["completeness"]);
    assert!(code == 0 && table.contains("the sums close: 1 jobs, 1 of them closed"), "{table}");

    delete(&world, "kind = 'flow' AND seq IN (3, 4, 7)").await;
    let three = finding(JOB, "redirected", "rows_deleted", 3);
    assert_eq!(checked(&world, &[]), (1, vec![three.clone()]));
    delete(&world, "kind = 'flow' AND seq = 12").await;
    let one = finding(JOB, "passed", "rows_deleted", 1);
    for arguments in [&[][..], &["--job", JOB], &["--since", "2026-01-01T00:00:00Z"]] {
        assert_eq!(checked(&world, arguments), (1, vec![three.clone(), one.clone()]), "{arguments:?}");
    }
    let (code, table, _) = world.run(&["completeness"]);
    assert!(
        code == 1 && table.contains("rows_deleted 3") && table.contains("4 that nobody told of"),
        "{table}"
    );

    assert_eq!(checked(&world, &["--since", "2100-01-01T00:00:00Z"]), (0, vec![]));
    let (code, _, told) = world.run(&["completeness", "--job", "none"]);
    assert!(code == 1 && told.contains("there is no job none"), "{told}");
    let (code, _, told) = world.run(&["completeness", "--since", "soon"]);
    assert!(code == 2 && told.contains("neither a time"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serving_collector_names_what_is_missing_when_a_job_closes_and_says_it_once() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let log = origin(1);
    put(&world, &log, 0, (0..10).map(|_| counted(JOB, Redirected)).collect()).await;
    delete(&world, "seq IN (2, 3, 8)").await;
    // 10 and 11 never arrive: two events of a kind that no sum counts.
    let last = segment(&log, 12, vec![sums(JOB, true, 10, 0, 0)]);
    agent.post::<SegmentAck>(SEGMENTS, last.clone()).await.expect("an ack");
    let expected = [
        finding("", "", "rows_deleted", 1),
        finding("", "", "rows_deleted", 2),
        finding("", "", "rows_deleted", 2),
        finding(JOB, "redirected", "rows_deleted", 3),
    ];
    let mut told = findings(&world, 4);
    told.sort();
    assert_eq!(told, expected, "each run of numbers, and what is missing in the job's sum");
    assert_eq!(checked(&world, &[]).1[0], expected[3]);
    assert_eq!(checked(&world, &[]).1[1], finding(log.as_str(), "", "rows_deleted", 2), "what no sum shows");

    // Sent again, it is checked again. The other job's check comes behind it, and is the sign that it is over.
    agent.post::<SegmentAck>(SEGMENTS, last).await.expect("an ack");
    put(&world, &origin(2), 0, vec![counted(OTHER, Passed), sums(OTHER, true, 0, 2, 0)]).await;
    let mut told = findings(&world, 5);
    told.sort();
    assert_eq!(told[..4], expected);
    assert_eq!(told[4], finding(OTHER, "passed", "unexplained", 1));
    let (_, listed, _) = world.run(&["query", "--json", "--named", "findings", "--job", JOB]);
    assert_eq!(listed.lines().count(), 1, "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_begins_checks_what_was_stated_while_none_looked() {
    let mut world = World::start();
    closed(&world).await;
    world.collector.daemon().signal(nix::sys::signal::Signal::SIGTERM).expect("a signal");
    world.collector.daemon().wait(Duration::from_secs(20)).expect("an end");
    delete(&world, "seq = 5").await;
    world.collector.start_again().expect("a collector");
    assert_eq!(findings(&world, 1), [finding(JOB, "redirected", "rows_deleted", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn doubled_rows_are_a_surplus_and_do_not_stand_in_for_deleted_ones() {
    let world = World::start();
    closed(&world).await;
    let twice = "INSERT INTO events SELECT * FROM events WHERE seq IN (2, 3) SETTINGS insert_deduplicate = 0";
    world.execute(twice).await;
    assert_eq!(world.number("SELECT count() FROM events"), 19);
    assert_eq!(checked(&world, &[]), (1, vec![finding(JOB, "redirected", "surplus", -2)]));
    delete(&world, "seq IN (4, 5)").await;
    let both =
        [("rows_deleted", 2), ("surplus", -2)].map(|(reason, n)| finding(JOB, "redirected", reason, n));
    assert_eq!(checked(&world, &[]), (1, both.to_vec()));
    // Rows of other numbers that claim the job: not believed while the agent may still correct its last statement.
    put(&world, &origin(2), 0, vec![counted(JOB, Passed)]).await;
    assert_eq!(checked(&world, &[]).1.len(), 2);
    let older = "ALTER TABLE events UPDATE ingested_at = ingested_at - INTERVAL 1 MINUTE WHERE 1 \
                 SETTINGS mutations_sync = 2";
    world.execute(older).await;
    assert_eq!(checked(&world, &[]).1[2], finding(JOB, "passed", "surplus", -1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_tells_to_have_lost_explains_its_number_and_no_more() {
    let world = World::start();
    let log = origin(1);
    let mut bodies: Vec<_> = (0..6).map(|_| counted(JOB, Redirected)).collect();
    bodies.push(gap(JOB, Redirected, GapReason::AgentEnded, 2));
    bodies.push(gap(JOB, Passed, GapReason::RingFull, 1_000));
    bodies.push(counted(JOB, Passed));
    let mut last = sums(JOB, true, 8, 1_001, 0);
    if let Body::Completeness(sums) = &mut last {
        sums.lost.passed = 1_000;
    }
    bodies.push(last);
    put(&world, &log, 0, bodies).await;
    assert_eq!(checked(&world, &[]), (0, vec![]));
    let (_, told, _) = world.run(&["query", "--json", "--named", "unrecorded", "--job", JOB]);
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(told.len(), 2);
    let mut told: Vec<_> =
        told.iter().map(|one| (one["reason"].as_str(), one["connects"].as_u64())).collect();
    told.sort();
    assert_eq!(told, [(Some("agent_ended"), Some(2)), (Some("ring_full"), Some(1_000))]);
    let (_, table, _) = world.run(&["completeness"]);
    assert!(table.contains("1002 connects without a record that agents told of, 0 that nobody"), "{table}");

    delete(&world, "seq = 0").await;
    assert_eq!(checked(&world, &[]), (1, vec![finding(JOB, "redirected", "rows_deleted", 1)]));
    // With the gap's own row gone the kernel's count of what its ring lost is left, and the number in the log.
    delete(&world, "seq = 7").await;
    let left = [
        finding(JOB, "redirected", "rows_deleted", 1),
        finding(JOB, "passed", "ring_full", 1_000),
        finding(log.as_str(), "", "rows_deleted", 1),
    ];
    assert_eq!(checked(&world, &[]), (1, left.to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_comes_to_life_again_is_judged_where_it_was_closed() {
    let world = World::start();
    closed(&world).await;
    put(&world, &origin(1), 17, vec![counted(JOB, Passed), counted(JOB, Redirected)]).await;
    assert_eq!(checked(&world, &[]), (0, vec![]));
    assert!(world.run(&["completeness"]).1.contains("reopened"));
    delete(&world, "seq IN (2, 13)").await;
    let both =
        [("redirected", 1), ("passed", 1)].map(|(verdict, n)| finding(JOB, verdict, "rows_deleted", n));
    assert_eq!(checked(&world, &[]), (1, both.to_vec()), "what came later stands in for nothing");
    put(&world, &origin(1), 19, vec![sums(JOB, true, 11, 5, 0)]).await;
    assert_eq!(checked(&world, &[]), (1, both.to_vec()));
    assert!(!world.run(&["completeness"]).1.contains("reopened"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_for_a_connect_that_has_its_row_explains_nothing() {
    let world = World::start();
    let lost = |at_ns: &str, pid: &str| {
        let mut gap = gap(JOB, Redirected, GapReason::AgentEnded, 1);
        if let Body::Gap(gap) = &mut gap {
            gap.detail = [("at_ns".to_owned(), text(at_ns)), ("pid".to_owned(), text(pid))].into();
        }
        gap
    };
    // The row's connect was made at 1000 by 4242: the first gap tells of that one, the others of others.
    let bodies =
        vec![counted(JOB, Redirected), lost("1000", "4242"), lost("1001", "4242"), lost("1000", "4243")];
    put(&world, &origin(1), 0, bodies).await;
    put(&world, &origin(1), 4, vec![sums(JOB, true, 3, 0, 0)]).await;
    assert_eq!(checked(&world, &[]), (0, vec![]));
    put(&world, &origin(1), 5, vec![sums(JOB, true, 4, 0, 0)]).await;
    assert_eq!(checked(&world, &[]), (1, vec![finding(JOB, "redirected", "unexplained", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_row_that_is_in_no_sum_is_found_in_its_log() {
    let world = World::start();
    closed(&world).await;
    delete(&world, "kind = 'intent'").await;
    let expected = vec![finding(origin(1).as_str(), "", "rows_deleted", 1)];
    assert_eq!(checked(&world, &[]), (1, expected));
    assert_eq!(checked(&world, &["--job", JOB]), (0, vec![]), "that job's sums close");
    let (_, table, _) = world.run(&["completeness"]);
    assert!(table.contains("Logs with rows that are missing") && table.contains("do NOT close"), "{table}");
}

/// An agent that states a busy job's sums again and again, each time with connects on their way: between begun and
/// recorded, and between told by the kernel and recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_job_gives_no_false_finding_at_any_moment_and_exact_ones_at_its_end() {
    let mut world = World::start();
    let (store, log) = (world.operator(), origin(1));
    let (mut redirected, mut passed, mut flying, mut told, mut seq) = (0u64, 0u64, 0u64, 0u64, 0u64);
    for round in 0..12u64 {
        // Counted first; what happens before the statement is written is not in its sums.
        redirected += 3 + round % 4;
        passed += 2;
        let (stated, stated_passed) = (redirected, passed);
        flying += 3 + round % 4;
        let mut bodies: Vec<Body<Text>> = Vec::new();
        // All that the kernel told until the statement before is recorded by now; of the newest a part.
        bodies.extend((0..told).map(|_| counted(JOB, Passed)));
        told = 2;
        let done = flying.min(round % 6);
        bodies.extend((0..done).map(|_| counted(JOB, Redirected)));
        flying -= done;
        let closing = round == 11;
        if closing {
            bodies.extend((0..flying).map(|_| counted(JOB, Redirected)));
            bodies.extend((0..told).map(|_| counted(JOB, Passed)));
            flying = 0;
        }
        bodies.push(sums(JOB, closing, stated, stated_passed, flying));
        let events = bodies.len() as u64;
        put(&world, &log, seq, bodies).await;
        seq += events;
        let report = report(&store, &Asked::default()).await.expect("a report");
        assert!(report.is_whole(), "round {round}: {}", report.table(None));
    }
    let checked_too = until("the serving collector's check", Duration::from_secs(30), || {
        Ok(world.collector.daemon().log().contains("a job is closed, and its sums close").then_some(()))
    });
    checked_too.expect("a line in its log");
    assert_eq!(world.number("SELECT count() FROM findings"), 0);
    delete(&world, &format!("kind = 'flow' AND seq >= {}", seq - 5)).await;
    let (code, found) = checked(&world, &["--job", JOB]);
    assert_eq!((code, found.iter().map(|one| one.3).sum::<i64>()), (1, 4), "{found:?}");
    assert!(found.iter().all(|one| one.2 == "rows_deleted"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_that_lacks_rows_is_found_while_it_runs() {
    let world = World::start();
    let log = origin(1);
    let mut bodies: Vec<_> = (0..5).map(|_| counted(JOB, Redirected)).collect();
    bodies.push(sums(JOB, false, 5, 0, 0));
    put(&world, &log, 0, bodies).await;
    delete(&world, "seq IN (0, 1)").await;
    assert_eq!(checked(&world, &["--job", JOB]), (0, vec![]), "nothing is behind its first statement yet");
    put(&world, &log, 6, vec![sums(JOB, false, 5, 0, 0)]).await;
    assert_eq!(checked(&world, &["--job", JOB]), (1, vec![finding(JOB, "redirected", "rows_deleted", 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_jobs_than_one_round_asks_for_are_all_checked() {
    let world = World::start();
    let job = |n: u64| format!("00000000000000aa-{n:016x}");
    let jobs = 0..1_203u64;
    let bodies = jobs.clone().flat_map(|n| [counted(&job(n), Redirected), sums(&job(n), true, 1, 0, 0)]);
    put(&world, &origin(1), 0, bodies.collect()).await;
    assert_eq!(checked(&world, &[]), (0, vec![]));
    // The flow of job n is at 2n.
    let gone = [0, 499, 500, 1_202];
    for n in gone {
        delete(&world, &format!("seq = {}", 2 * n)).await;
    }
    let named: Vec<_> = gone.iter().map(|n| finding(&job(*n), "redirected", "rows_deleted", 1)).collect();
    assert_eq!(checked(&world, &[]), (1, named));
    assert_eq!(world.run(&["completeness", "--json"]).1.lines().count(), 1_203);
}
