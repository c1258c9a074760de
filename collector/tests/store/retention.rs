//! Retention at the real engine: what it deletes and what it keeps, what its tombstones prove, and that it ends what was
//! cut off.

use serde_json::Value;
use weir_core::evidence::key::VerifyingKey;
use weir_core::evidence::tombstone::Tombstone;
use weir_core::policy::Action;
use weir_core::record::{Body, CallResult, ConnectVerdict};
use weir_core::wire::{ENROL, EnrolAck, SEGMENTS, SegmentAck};
use weir_tests::places::{Setup, workspace};

use crate::agent::Agent;
use crate::log::Log;
use crate::records::{Text, counted, intent, outcome, sums};
use crate::verify::{findings, second};
use crate::world::World;

const JOB: &str = "00000000000000aa-0000000000000001";

/// Lets the collector's policy keep events for so many days, and what else it says.
fn policy(world: &World, days: u32, more: &str) {
    let path = world.collector.config();
    let text = std::fs::read_to_string(path).expect("a configuration");
    let text = text.split("\n[retention]").next().unwrap_or_default().to_owned();
    let text = format!("{text}\n[retention]\nname = \"audit\"\nevents_days = {days}\n{more}\n");
    std::fs::write(path, text).expect("a configuration");
}

/// `retention apply`: its exit code, and each stretch as (from, to, state).
fn apply(world: &World, arguments: &[&str]) -> (i32, Vec<(u64, u64, String)>) {
    let (code, out, told) = world.run(&[&["retention", "apply", "--json"], arguments].concat());
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line} {told}: {e}"));
        let number = |name: &str| line[name].as_u64().expect(name);
        (number("first_seq"), number("last_seq"), line["state"].as_str().expect("a state").to_owned())
    };
    (code, out.lines().map(line).collect())
}

/// A witness's key, and a log with three segments, long ago: a job with a call and connects at 0 to 5, two outcomes at 6 and 7,
/// two at 8 and 9.
async fn scene(world: &World) -> (VerifyingKey, Log) {
    let agent = Agent::at(world.collector.socket());
    let mut log = Log::new(1);
    let enrolled: EnrolAck = agent.post(ENROL, log.enrolment()).await.expect("a witness");
    let mut job: Vec<Body<Text>> = vec![intent(1, "echo", Action::Allow, "{}")];
    job.extend((0..3).map(|_| counted(JOB, ConnectVerdict::Redirected)));
    job.extend([outcome(1, CallResult::Ok), outcome(3, CallResult::Ok)]);
    for bytes in [log.sealed(job), log.outcomes(2, 2), log.outcomes(2, 2)] {
        agent.post::<SegmentAck>(SEGMENTS, bytes).await.expect("an ack");
    }
    // What was counted stands in a segment of today.
    log.time_us = u64::try_from(jiff::Timestamp::now().as_microsecond()).expect("after 1970");
    let last = log.sealed(vec![sums(JOB, true, 3, 0, 0)]);
    agent.post::<SegmentAck>(SEGMENTS, last).await.expect("an ack");
    (enrolled.witness, log)
}

fn stones(world: &World, witness: &VerifyingKey) -> Vec<(u64, u64)> {
    let rows = world.sql("SELECT note FROM tombstones ORDER BY first_seq");
    let stone = |row: &Value| {
        let note = row["note"].as_str().expect("a note").parse().expect("a note");
        let stone = Tombstone::open(&note, std::slice::from_ref(witness)).expect("the witness's");
        assert!(stone.policy.starts_with("audit (events older than"), "{}", stone.policy);
        (stone.first_seq, stone.last_seq)
    };
    rows.iter().map(stone).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_retired_leaves_its_proofs_a_signed_stone_and_sums_that_close() {
    let world = World::start();
    let (witness, _) = scene(&world).await;
    let (code, _, told) = world.run(&["retention", "apply"]);
    assert!(code == 1 && told.contains("[retention] with events_days"), "{told}");

    policy(&world, 1, "");
    let due = [(0, 9, "retired".to_owned())];
    assert_eq!(apply(&world, &["--dry-run"]), (0, due.to_vec()));
    assert_eq!((world.number("SELECT count() FROM events"), stones(&world, &witness)), (11, vec![]));
    assert_eq!(apply(&world, &[]), (0, due.to_vec()));
    assert_eq!(stones(&world, &witness), [(0, 9)], "one stone for segments side by side");
    assert_eq!(world.number("SELECT count() FROM events"), 1);
    assert_eq!(world.number("SELECT sum(length(leaf_hashes)) FROM batches"), 11, "all leaves stay");
    assert_eq!(apply(&world, &[]), (0, vec![]), "once is enough");

    let (code, out, told) = world.run(&["completeness", "--json"]);
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!((code, lines.len()), (0, 1), "{out} {told}");
    assert_eq!(lines[0]["gaps"]["retired"], 3, "{out}");
    // A stone that nobody signed explains nothing.
    world.execute("ALTER TABLE tombstones UPDATE note = replaceOne(note, 'last_seq', 'next_seq') WHERE 1 SETTINGS mutations_sync = 2").await;
    let (code, out, _) = world.run(&["completeness", "--json"]);
    assert!(code == 1 && out.contains("rows_deleted"), "{out}");
    // A number that no stone tells of is missing still.
    let (_, mut other) = (0, Log::new(2));
    let agent = Agent::at(world.collector.socket());
    agent.post::<EnrolAck>(ENROL, other.enrolment()).await.expect("a witness");
    agent.post::<SegmentAck>(SEGMENTS, other.outcomes(1, 3)).await.expect("an ack");
    world.execute("ALTER TABLE events DELETE WHERE origin = '02020202020202020202020202020202' AND seq = 1 SETTINGS mutations_sync = 2").await;
    let (code, out, _) = world.run(&["completeness", "--json"]);
    assert!(code == 1 && out.contains("rows_deleted"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_passes_behind_it_and_names_what_was_retired_and_by_which_policy() {
    let world = World::start();
    let (_, log) = scene(&world).await;
    let file = |name: &str| world.folder.path().join(name);
    // What the auditor holds is from before.
    let (code, trust, told) = world.run(&["trust"]);
    assert_eq!(code, 0, "{told}");
    std::fs::write(file("trust.json"), trust).expect("a trust file");
    let (trust, export) = (file("trust.json"), file("export.tar"));
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let verify =
        |more: &[&str]| world.run(&[&["verify", "--settle", "0", "--trust", &path(&trust)], more].concat());
    let (code, told, wrong) = verify(&[]);
    assert!(code == 0 && told.contains("clean: 11 events of 1 logs"), "{told}{wrong}");

    // One policy keeps the run of the first segment; another one comes after it.
    let run = world.sql("SELECT DISTINCT cicd_pipeline_run_id AS run FROM events WHERE kind = 'intent'");
    policy(&world, 1, &format!("keep_runs = [{}]", run[0]["run"]));
    assert_eq!(apply(&world, &[]).1, [(0, 5, "kept".to_owned()), (6, 9, "retired".to_owned())]);
    policy(&world, 1, "");
    let config = std::fs::read_to_string(world.collector.config()).expect("a configuration");
    let other = config.replace("name = \"audit\"", "name = \"all of it\"");
    std::fs::write(world.collector.config(), other).expect("a configuration");
    assert_eq!(apply(&world, &[]), (0, vec![(0, 5, "retired".to_owned())]));

    let (code, told, wrong) = verify(&[]);
    let by = |from: u64, to: u64, policy: &str| {
        let place = format!("retired (expected): log {} epoch 1 events {from} to {to} (event)", log.origin());
        told.contains(&format!("{place}: deleted by the policy {policy} (events older than 1 days)\n"))
    };
    assert!(code == 0 && by(0, 5, "all of it") && by(6, 9, "audit"), "{told}{wrong}");
    assert!(told.contains("10 retired") && told.contains("clean: 1 events of 1 logs"), "{told}");

    // An export of what is left says the same to both.
    let both = || {
        let (code, told, _) = world.run(&["export", "--settle", "0", "-o", &path(&export)]);
        assert_eq!(code, 0, "{told}");
        let (code, told, _) = verify_export(&world, &path(&export), &path(&trust));
        (code, findings(&told), second(&export, &trust, "all"))
    };
    let retired = [(0, 5), (6, 9)]
        .map(|(from, to)| ("retired".to_owned(), log.origin().to_string(), 1, from, to, "event".to_owned()));
    assert_eq!(both(), (0, retired.to_vec(), retired.to_vec()));
    let told = python(&export, &trust);
    for policy in ["by all of it (events older than 1 days)", "by audit (events older than 1 days)", "clean"]
    {
        assert!(told.contains(policy), "{told}");
    }

    // A stone of another length explains nothing, and what no stone tells of is missing.
    world.execute("ALTER TABLE tombstones UPDATE note = replaceOne(note, 'last_seq 9', 'last_seq 8') WHERE 1 SETTINGS mutations_sync = 2").await;
    let (code, told, _) = verify(&["--json"]);
    let gone = ("deleted".to_owned(), log.origin().to_string(), 1, 6, 9, "event".to_owned());
    assert!(code == 1 && findings(&told).contains(&gone), "{told}");
    let (code, first, by_python) = both();
    assert!(code == 1 && first == by_python && first.contains(&gone), "{first:?} {by_python:?}");
}

fn verify_export(world: &World, export: &str, trust: &str) -> (i32, String, String) {
    world.run(&["verify", "--json", "--trust", trust, "--export", export])
}

/// What the second verifier prints for people.
fn python(export: &std::path::Path, trust: &std::path::Path) -> String {
    let mut second = std::process::Command::new(Setup::locate().expect("a setup folder").python());
    let output = second.arg(workspace().join("docs/verify.py")).args([export, trust]).output();
    String::from_utf8(output.expect("Python runs").stdout).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_asked_to_keep_and_what_was_altered_stays() {
    let world = World::start();
    let (witness, _) = scene(&world).await;
    let run = world.sql("SELECT DISTINCT cicd_pipeline_run_id AS run FROM events WHERE kind = 'intent'");
    let run = run[0]["run"].as_str().expect("a run");
    policy(&world, 1, &format!("keep_runs = [\"{run}\"]"));
    world
        .execute(
            "ALTER TABLE events UPDATE cicd_pipeline_run_id = 'other' WHERE 1 SETTINGS mutations_sync = 2",
        )
        .await;
    let kept = (0, 5, "kept".to_owned());
    assert_eq!(apply(&world, &["--dry-run"]), (0, vec![kept, (6, 9, "retired".into())]));
    policy(&world, 1, "keep_origins = [\"01010101010101010101010101010101\"]");
    assert_eq!(apply(&world, &[]), (0, vec![(0, 9, "kept".into())]));

    policy(&world, 1, "");
    world.execute("ALTER TABLE events UPDATE canonical = replace(canonical, 'demo', 'DEMO') WHERE seq = 7 SETTINGS mutations_sync = 2").await;
    let altered = [(0, 5, "retired"), (6, 7, "altered"), (8, 9, "retired")];
    assert_eq!(
        apply(&world, &[]),
        (1, altered.map(|(from, to, state)| (from, to, state.to_owned())).to_vec())
    );
    assert_eq!(stones(&world, &witness), [(0, 5), (8, 9)]);
    assert_eq!(world.number("SELECT groupBitmap(seq) FROM events"), 3, "6, 7 and 10 are there");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_a_segment_old_enough_by_its_columns() {
    let world = World::start();
    let (witness, _) = scene(&world).await;
    // Keys of partitions: they are written anew, as somebody would who wants today's events gone with a stone over them.
    for table in ["events", "batches"] {
        let last = if table == "events" { "seq = 10" } else { "first_seq = 10" };
        let old = "toDateTime64('2020-01-01 00:00:00', 6, 'UTC')";
        let copy =
            format!("INSERT INTO {table} SELECT * REPLACE({old} AS sealed_at) FROM {table} WHERE {last}");
        world.execute(&copy).await;
        let gone = format!(
            "ALTER TABLE {table} DELETE WHERE {last} AND sealed_at > {old} SETTINGS mutations_sync = 2"
        );
        world.execute(&gone).await;
    }
    policy(&world, 1, "");
    let found = [(0, 9, "retired".to_owned()), (10, 10, "altered".to_owned())];
    assert_eq!(apply(&world, &[]), (1, found.to_vec()));
    assert_eq!((stones(&world, &witness), world.number("SELECT max(seq) FROM events")), (vec![(0, 9)], 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_are_retired_as_others_are() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let mut log = Log::new(1);
    agent.post::<EnrolAck>(ENROL, log.enrolment()).await.expect("a witness");
    let bytes = log.sealed_bytes(vec![b"\xff\xfe".to_vec()]);
    agent.post::<SegmentAck>(SEGMENTS, bytes).await.expect("an ack");
    policy(&world, 1, "");
    assert_eq!(apply(&world, &[]), (0, vec![(0, 0, "retired".to_owned())]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_cut_off_behind_its_stone_is_ended_without_another() {
    let world = World::start();
    let (witness, _) = scene(&world).await;
    world.execute("CREATE TABLE kept AS events ENGINE = MergeTree ORDER BY seq").await;
    world.execute("INSERT INTO kept SELECT * FROM events WHERE seq BETWEEN 2 AND 6").await;
    policy(&world, 1, "");
    assert_eq!(apply(&world, &[]).0, 0);
    // As if the deletion had not come through for these.
    world.execute("INSERT INTO events SELECT * FROM kept").await;
    assert_eq!(apply(&world, &[]), (0, vec![(0, 7, "retired".into())]));
    assert_eq!((stones(&world, &witness), world.number("SELECT count() FROM events")), (vec![(0, 9)], 1));
}
