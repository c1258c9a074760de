//! Verification of a real store: an untouched one raises no alarm, and nothing that its operator does by SQL goes unseen; of what
//! an export can show, both verifiers say the same.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use weir_collector::verify::{Asked, Besides, read_trust, store as verify_store};
use weir_core::evidence::Frontier;
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::verify::{Finding, Report, Trust};
use weir_core::ids::{Origin, hex};
use weir_core::policy::Action;
use weir_core::record::{AgentEvent, Body, CallResult, Treatment};
use weir_core::wire::{CHECKPOINTS, CheckpointAck, ENROL, EnrolAck, SEGMENTS, SegmentAck};
use weir_tests::places::{Setup, workspace};

use crate::agent::Agent;
use crate::log::Log;
use crate::records::{flow, intent, outcome};
use crate::world::World;

const TABLES: [&str; 4] = ["events", "batches", "checkpoints", "identities"];
/// Every row counts, also one that is there already.
const EACH: &str = "SETTINGS insert_deduplicate = 0, deduplicate_insert = 'disable'";

/// A store with three logs, and an auditor's trust in it.
pub struct Audited {
    pub world: World,
    trust: Trust,
    trust_file: PathBuf,
    origins: Vec<Origin>,
}

impl Audited {
    pub async fn begin() -> Self {
        let world = World::start();
        let agent = Agent::at(world.collector.socket());
        let mut origins = Vec::new();
        for n in 1..=3 {
            let mut log = Log::new(n);
            enrol(&agent, &log).await;
            put(&agent, log.sealed(vec![intent(1, "echo", Action::Allow, "{}"), outcome(1, CallResult::Ok)]))
                .await;
            put(&agent, log.outcomes(2, 4)).await;
            if n == 2 {
                log.begin_epoch(Some(SigningKey::from_seed(&[77; 32])));
                enrol(&agent, &log).await;
            }
            let _: CheckpointAck =
                agent.post(CHECKPOINTS, log.idle("{\"idle\":true}")).await.expect("an ack");
            put(&agent, log.sealed(vec![flow(Treatment::Opaque), outcome(3, CallResult::Error)])).await;
            let stopped = AgentEvent { name: "agent.stopped".into(), detail: [].into() };
            put(&agent, log.sealed(vec![outcome(4, CallResult::Ok), Body::Agent(stopped)])).await;
            origins.push(log.origin().clone());
        }
        let (code, trust, told) = world.run(&["trust"]);
        assert!(code == 0 && told.contains("compare"), "{told}");
        let trust_file = world.folder.path().join("trust.json");
        std::fs::write(&trust_file, trust).expect("a trust file");
        let trust = read_trust(&trust_file, None).expect("a trust file");
        for table in TABLES {
            world.execute(&format!("CREATE TABLE kept_{table} AS {table}")).await;
            world.execute(&format!("INSERT INTO kept_{table} SELECT * FROM {table} {EACH}")).await;
        }
        Self { world, trust, trust_file, origins }
    }

    pub async fn restore(&self) {
        for table in TABLES {
            self.world.execute(&format!("TRUNCATE TABLE {table}")).await;
            self.world.execute(&format!("INSERT INTO {table} SELECT * FROM kept_{table} {EACH}")).await;
        }
    }

    /// Each view's name, and the statement that makes it.
    pub fn views(&self) -> Vec<(String, String)> {
        let views = self.world.sql(
            "SELECT name, create_table_query AS made FROM system.tables \
             WHERE database = currentDatabase() AND engine IN ('View', 'MaterializedView') ORDER BY name",
        );
        let text = |view: &serde_json::Value, name: &str| view[name].as_str().expect("text").to_owned();
        views.iter().map(|view| (text(view, "name"), text(view, "made"))).collect()
    }

    pub async fn restore_views(&self, views: &[(String, String)]) {
        for (name, made) in views {
            self.world.execute(&format!("DROP VIEW IF EXISTS {name} SYNC")).await;
            self.world.execute(made).await;
        }
    }

    /// The logs and columns alone: definitions are asked for by the command.
    async fn verify(&self) -> Report {
        let besides = Besides { settle: Duration::ZERO, everything: false };
        verify_store(&self.world.operator(), &Asked::All, &self.trust, besides).await.expect("a verdict")
    }

    pub fn trust_file(&self) -> &str {
        self.trust_file.to_str().expect("UTF-8")
    }

    /// What the two verifiers say of an export that is made now.
    fn both(&self, name: &str) -> (Vec<Place>, Vec<Place>) {
        let file = self.world.folder.path().join(name);
        let path = file.to_str().expect("UTF-8");
        let (code, told, wrong) = self.world.run(&["export", "--settle", "0", "-o", path]);
        assert!(code == 0 && told.contains("events in"), "{told}{wrong}");
        let arguments = ["verify", "--trust", self.trust_file(), "--export", path, "--json"];
        let (_, told, wrong) = self.world.run(&arguments);
        assert!(wrong.is_empty(), "{wrong}");
        (findings(&told), second(&file, &self.trust_file, "all"))
    }
}

async fn enrol(agent: &Agent, log: &Log) {
    let _: EnrolAck = agent.post(ENROL, log.enrolment()).await.expect("a key");
}

async fn put(agent: &Agent, segment: Vec<u8>) {
    let ack: SegmentAck = agent.post(SEGMENTS, segment).await.expect("an ack");
    assert!(ack.checkpoint.is_some_and(|note| note.lines().count() == 8), "it is cosigned");
}

pub type Place = (String, String, u64, u64, u64, String);

/// What `verify --json` told.
pub fn findings(lines: &str) -> Vec<Place> {
    let rows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
    let place = |one: serde_json::Value| {
        let one = one.get("finding").unwrap_or(&one).clone();
        let text = |name: &str| one[name].as_str().map(str::to_owned);
        let number = |name: &str| one[name].as_u64().unwrap_or_default();
        let kind = text("kind")?;
        Some((kind, text("origin")?, number("epoch"), number("first_seq"), number("last_seq"), text("what")?))
    };
    let mut found: Vec<Place> = rows.filter_map(place).collect();
    found.sort();
    found
}

pub fn second(export: &Path, trust: &Path, scope: &str) -> Vec<Place> {
    let python = Setup::locate().expect("a setup folder").python();
    let mut second = Command::new(python);
    second
        .arg(workspace().join("docs/verify.py"))
        .args([export, trust])
        .args(["--json", &format!("--scope={scope}")]);
    let output = second.output().expect("Python runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code < 2) && told.is_empty(), "{told}");
    findings(&String::from_utf8_lossy(&output.stdout))
}

fn kinds(report: &Report) -> Vec<&'static str> {
    let mut kinds: Vec<_> = report.findings.iter().map(|one: &Finding| one.kind.as_str()).collect();
    kinds.dedup();
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untouched_store_is_clean_for_both_verifiers_whole_and_in_parts() {
    let audited = Audited::begin().await;
    let world = &audited.world;
    let (code, told, wrong) = world.run(&["verify", "--settle", "0", "--trust", audited.trust_file()]);
    assert!(code == 0 && told.contains("clean: 33 events of 3 logs"), "{code} {told} {wrong}");
    for name in ["whole.tar", "whole.tar.zst"] {
        assert_eq!(audited.both(name), (vec![], vec![]), "{name}");
    }
    let origin = audited.origins[1].to_string();
    for part in [&["--run", "731"][..], &["--origin", &origin], &["--from", "2020-01-01T00:00:00Z"]] {
        let file = world.folder.path().join("part.tar.zst");
        let path = file.to_str().expect("UTF-8");
        let (code, _, wrong) =
            world.run(&[&["verify", "--settle", "0", "--trust", audited.trust_file()], part].concat());
        assert_eq!(code, 0, "{part:?}: {wrong}");
        let (code, told, wrong) = world.run(&[&["export", "--settle", "0", "-o", path], part].concat());
        assert!(code == 0 && !told.starts_with("0 "), "{part:?}: {told}{wrong}");
        let scope = if part[0] == "--from" { "range" } else { &part[0][2..] };
        let exported = ["verify", "--trust", audited.trust_file(), "--export", path];
        let (code, told, wrong) = world.run(&[&exported[..], &["--scope", scope]].concat());
        assert!(code == 0 && told.contains("clean"), "{part:?}: {told}{wrong}");
        assert_eq!(second(&file, &audited.trust_file, scope), []);
        // It is not what it says that counts, but what was asked for.
        let (code, told, _) = world.run(&exported);
        assert!(code == 1 && told.contains("--scope"), "{part:?}: {told}");
        assert_eq!(second(&file, &audited.trust_file, "all").len(), 1);
    }
    let (code, _, told) = world.run(&["verify", "--trust", "/nowhere"]);
    assert!(code == 2 && told.contains("/nowhere"), "{code} {told}");
    let (code, _, told) = world.run(&["verify", "--trust", audited.trust_file(), "--run", "no such run"]);
    assert!(code == 1 && told.contains("no such run"), "{code} {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_at_the_ends_of_a_part_and_rows_of_no_log_are_found() {
    let audited = Audited::begin().await;
    let world = &audited.world;
    let origin = &audited.origins[0];
    // The batch in the middle goes with all that tells of it; of its time nothing of the log is left.
    let batches = world.sql(&format!(
        "SELECT first_seq, last_seq, toUnixTimestamp64Micro(sealed_at) AS at FROM batches WHERE origin = '{origin}' ORDER BY first_seq"
    ));
    let number = |name: &str| batches[1][name].as_u64().expect(name);
    let (first, last) = (number("first_seq"), number("last_seq"));
    for (table, what) in [
        ("batches", format!("first_seq = {first}")),
        ("events", format!("seq BETWEEN {first} AND {last}")),
        ("checkpoints", format!("tree_size = {}", last + 1)),
    ] {
        let gone = format!(
            "ALTER TABLE {table} DELETE WHERE origin = '{origin}' AND {what} SETTINGS mutations_sync = 2"
        );
        world.execute(&gone).await;
    }
    let at = i64::try_from(number("at")).expect("a time");
    let besides = Besides { settle: Duration::ZERO, everything: false };
    let parts = [
        Asked::Range { from_us: at, to_us: at },
        Asked::Range { from_us: at - 500_000, to_us: at + 1_500_000 },
        Asked::Run("731".into()),
    ];
    for part in parts {
        let report =
            verify_store(&world.operator(), &part, &audited.trust, besides).await.expect("a verdict");
        let found =
            report.findings.iter().any(|one| (one.kind.as_str(), one.first_seq) == ("deleted", first));
        assert!(found, "{part:?}: {:?}", kinds(&report));
    }
    audited.restore().await;
    world
        .execute(&format!(
            "INSERT INTO events SELECT * REPLACE('no log' AS origin) FROM events LIMIT 1 {EACH}"
        ))
        .await;
    assert_eq!(kinds(&audited.verify().await), ["unpinned"]);
}

/// What is done to the store: its name, the statements, what verification must find, and where.
type Act<'a> = (&'a str, Vec<String>, &'a [&'a str], (u64, u64));

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_of_the_store_does_by_sql_is_found_and_named() {
    let audited = Audited::begin().await;
    let (one, two) = (&audited.origins[0], &audited.origins[1]);
    let changed = "replaceOne(canonical, '\"ok\"', '\"no\"')";
    let update = |table: &str, set: &str, what: &str| {
        format!(
            "ALTER TABLE {table} UPDATE {set} WHERE origin = '{one}' AND {what} SETTINGS mutations_sync = 2"
        )
    };
    let delete = |table: &str, what: &str| {
        format!("ALTER TABLE {table} DELETE WHERE {what} SETTINGS mutations_sync = 2")
    };
    let of_one = |what: &str| format!("origin = '{one}' AND {what}");
    let of = |seq: u64| format!("(SELECT canonical FROM events WHERE origin = '{one}' AND seq = {seq})");
    let swapped = format!("canonical = if(seq = 3, {}, {})", of(4), of(3));
    let tail = [
        delete("events", &of_one("seq >= 6")),
        delete("batches", &of_one("first_seq >= 6")),
        delete("checkpoints", &of_one("first_seq + tree_size > 6")),
    ];
    let whole: Vec<String> = TABLES.iter().map(|table| delete(table, &format!("origin = '{one}'"))).collect();
    let back = ["seq >= 6 AND seq < 1000", "first_seq >= 6", "first_seq + tree_size > 6", "first_seq >= 6"];
    let rolled: Vec<String> = TABLES.iter().zip(back).map(|(table, what)| delete(table, what)).collect();
    let leaf = format!("canonical = {changed}, leaf_hash = SHA256(concat(unhex('00'), {changed}))");
    let theirs = format!(
        "INSERT INTO events SELECT * REPLACE ('{one}' AS origin, toUInt64(11) AS seq) FROM \
         (SELECT * FROM events WHERE origin = '{two}' AND seq = 3) {EACH}"
    );
    let again = format!("INSERT INTO events SELECT * FROM events WHERE origin = '{one}' AND seq = 3 {EACH}");
    let forged = forged(&audited).await;
    let acts: [Act<'_>; 15] = [
        (
            "canonical",
            vec![update("events", &format!("canonical = {changed}"), "seq = 3")],
            &["altered"],
            (3, 3),
        ),
        ("canonical and leaf", vec![update("events", &leaf, "seq = 3")], &["altered"], (3, 3)),
        ("column", vec![update("events", "result = 'refused'", "seq = 3")], &["projection"], (3, 3)),
        (
            "digest of a batch",
            vec![update("batches", "batch_digest = 'other'", "first_seq = 2")],
            &["projection"],
            (2, 5),
        ),
        (
            "digest of a batch, in both tables",
            vec![
                update("batches", "batch_digest = 'other'", "first_seq = 2"),
                update("events", "batch_digest = 'other'", "seq BETWEEN 2 AND 5"),
            ],
            &["projection"],
            (2, 5),
        ),
        (
            "when it was signed",
            vec![update(
                "checkpoints",
                "witnessed_at = addHours(witnessed_at, 1), host_name = 'x'",
                "tree_size = 6",
            )],
            &["projection"],
            (5, 5),
        ),
        ("row", vec![delete("events", &of_one("seq = 3"))], &["deleted"], (3, 3)),
        (
            "batch",
            vec![
                delete("events", &of_one("seq BETWEEN 2 AND 5")),
                delete("batches", &of_one("first_seq = 2")),
            ],
            &["deleted"],
            (2, 5),
        ),
        ("tail", tail.to_vec(), &["rolled_back", "truncated"], (6, 10)),
        ("origin", whole, &["deleted"], (0, u64::MAX)),
        ("row twice", vec![again], &["doubled"], (3, 3)),
        ("rows swapped", vec![update("events", &swapped, "seq IN (3, 4)")], &["reordered"], (3, 4)),
        ("row of another log", vec![theirs], &["spliced"], (11, 11)),
        ("another key", forged, &["another_key"], (2, 5)),
        ("back", rolled, &["rolled_back"], (6, 10)),
    ];
    for (act, statements, expected, (first, last)) in acts {
        for statement in &statements {
            audited.world.execute(statement).await;
        }
        let report = audited.verify().await;
        let named = report.findings.iter().any(|finding| {
            finding.fault
                && expected.contains(&finding.kind.as_str())
                && finding.origin == one.as_str()
                && (finding.first_seq <= last && finding.last_seq >= first)
        });
        assert!(named, "{act}: {:?}", report.findings.iter().collect::<Vec<_>>());
        let (by_export, by_python) = audited.both("changed.tar");
        assert_eq!(by_export, by_python, "{act}");
        // What is not in an export cannot be found in it.
        assert_eq!(by_export.is_empty(), expected == ["projection"], "{act}: {by_export:?}");
        audited.restore().await;
    }
    let report = audited.verify().await;
    assert_eq!(kinds(&report), Vec::<&str>::new());

    let view = "CREATE OR REPLACE VIEW flows AS SELECT * FROM events WHERE kind = 'flow' AND server_name != 'evil.test'";
    audited.world.execute(view).await;
    audited.world.execute("ALTER TABLE decisions ADD COLUMN hidden String").await;
    let (code, told, _) = audited.world.run(&["verify", "--settle", "0", "--trust", audited.trust_file()]);
    assert!(
        code == 1 && told.contains("definition: (flows)") && told.contains("definition: (decisions)"),
        "{told}"
    );
}

/// Statements that rewrite the batch at 2: another leaf, and checkpoints of that tree under keys of the forger's.
async fn forged(audited: &Audited) -> Vec<String> {
    let one = &audited.origins[0];
    let rows = audited.world.sql(&format!(
        "SELECT note, arrayMap(x -> hex(x), frontier) AS frontier, arrayMap(x -> hex(x), leaf_hashes) AS leaves \
         FROM batches WHERE origin = '{one}' AND first_seq = 2"
    ));
    let hashes = |name: &str| -> Vec<[u8; 32]> {
        let texts = rows[0][name].as_array().expect("a list");
        let byte = |text: &str, at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex");
        texts.iter().map(|text| std::array::from_fn(|at| byte(text.as_str().expect("hex"), at))).collect()
    };
    let mut tree = Frontier::of_parts(2, hashes("frontier")).expect("a tree");
    let mut leaves = hashes("leaves");
    leaves[1] = weir_core::evidence::leaf_hash(b"{}");
    tree.extend(leaves.iter().copied());
    let honest: SignedNote = rows[0]["note"].as_str().expect("a note").parse().expect("a note");
    let mut lines: Vec<String> = honest.text().lines().map(str::to_owned).collect();
    lines[2] = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, tree.root());
    let mut note = SignedNote::new(format!("{}\n", lines.join("\n"))).expect("a note");
    note.sign(&SigningKey::from_seed(&[200; 32]), &lines[0]).expect("a signature");
    let witness = audited.trust.witnesses[0].name();
    let bare = hex(note.to_string().as_bytes());
    note.cosign(&SigningKey::from_seed(&[201; 32]), witness, 1_795_300_000).expect("a signature");
    let cosigned = hex(note.to_string().as_bytes());
    let leaf = hex(&leaves[1]);
    let root = hex(&tree.root());
    vec![
        format!(
            "ALTER TABLE events UPDATE canonical = '{{}}', leaf_hash = unhex('{leaf}') \
             WHERE origin = '{one}' AND seq = 3 SETTINGS mutations_sync = 2"
        ),
        format!(
            "ALTER TABLE batches UPDATE note = unhex('{bare}'), root = unhex('{root}'), \
                leaf_hashes = arrayMap((x, n) -> if(n = 2, toFixedString(unhex('{leaf}'), 32), x), leaf_hashes, arrayEnumerate(leaf_hashes)) \
             WHERE origin = '{one}' AND first_seq = 2 SETTINGS mutations_sync = 2"
        ),
        format!(
            "ALTER TABLE checkpoints UPDATE note = unhex('{cosigned}'), root = unhex('{root}') \
             WHERE origin = '{one}' AND tree_size = 6 SETTINGS mutations_sync = 2"
        ),
    ]
}
