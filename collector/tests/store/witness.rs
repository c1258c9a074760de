//! The collector as a witness: what it cosigns, what it refuses and tells of, and that two of them at once are as one.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Barrier;
use weir_core::evidence::TreeState;
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::key::{SigningKey, VerifyingKey};
use weir_core::evidence::note::SignedNote;
use weir_core::wire::{CHECKPOINTS, CheckpointAck, ENROL, EnrolAck, Reason, Refusal, SEGMENTS, SegmentAck};
use weir_tests::Collector;

use crate::agent::{Agent, reason};
use crate::log::{Log, with_last_note};
use crate::records::{many, policy, policy_loaded};
use crate::world::World;

/// Forks that race, of each kind.
const RACES: u8 = 20;

async fn enrol(agent: &Agent, log: &Log) -> Result<VerifyingKey, Refusal> {
    agent.post::<EnrolAck>(ENROL, log.enrolment()).await.map(|ack| ack.witness)
}

async fn put(agent: &Agent, bytes: Vec<u8>) -> Result<SegmentAck, Refusal> {
    agent.post(SEGMENTS, bytes).await
}

async fn post(agent: &Agent, body: Vec<u8>) -> Result<CheckpointAck, Refusal> {
    agent.post(CHECKPOINTS, body).await
}

/// The tree's size that a witness has cosigned in a note; 0 when it has not.
fn cosigned(note: &str, witness: &VerifyingKey) -> u64 {
    let note: SignedNote = note.parse().expect("a note");
    note.cosigned(witness).map_or(0, |_| Checkpoint::read(&note).expect("a checkpoint").size)
}

/// A log that is known, and so many events of it that are stored.
async fn begun(world: &World, events: u64) -> (Agent, Log, VerifyingKey) {
    let agent = Agent::at(world.collector.socket());
    let mut log = Log::new(1);
    let witness = enrol(&agent, &log).await.expect("a key");
    put(&agent, log.outcomes(1, events)).await.expect("an ack");
    (agent, log, witness)
}

fn findings(world: &World) -> Vec<(String, String)> {
    let rows = world.sql("SELECT DISTINCT origin, reason FROM findings FINAL ORDER BY found_at");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    rows.iter().map(|row| (text(&row["origin"]), text(&row["reason"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_cosigned_as_it_grows_with_segments_and_without_and_over_a_change_of_its_key() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let mut log = Log::new(1);
    let first = log.clone().outcomes(1, 3);
    assert_eq!(reason(put(&agent, first).await), Reason::UnknownKey, "nobody said whose log it is");
    let witness = enrol(&agent, &log).await.expect("a witness's key");
    assert_eq!(enrol(&agent, &log).await.expect("again"), witness);
    let (_, told, _) = world.run(&["witness-key"]);
    assert_eq!(told.trim(), witness.to_string(), "the command prints the key that it is");

    let segments = [log.sealed(vec![policy_loaded("no-deletes")]), log.outcomes(1, 4)];
    let mut acked = Vec::new();
    for bytes in &segments {
        let ack = put(&agent, bytes.clone()).await.expect("an ack");
        assert!(!ack.advice.begin_epoch);
        acked.push(cosigned(&ack.checkpoint.clone().expect("a note"), &witness));
        let again = put(&agent, bytes.clone()).await.expect("again");
        assert_eq!(again.checkpoint, ack.checkpoint, "to the letter");
    }
    assert_eq!(acked, [1, 5]);
    // Idle: two heartbeats, witnessed without an event; then they come with their segment.
    for (text, size) in [("one", 6), ("two", 7)] {
        let ack = post(&agent, log.idle(text)).await.expect("an ack");
        assert_eq!(cosigned(&ack.checkpoint, &witness), size);
    }
    assert_eq!(world.number("SELECT count() FROM events"), 5, "no event was stored for it");
    let ack = put(&agent, log.sealed_bytes(vec![b"\xffthree".to_vec()])).await.expect("an ack");
    assert_eq!(cosigned(&ack.checkpoint.expect("a note"), &witness), 8);

    log.begin_epoch(Some(SigningKey::from_seed(&[99; 32])));
    enrol(&agent, &log).await.expect("the statement of both keys");
    let ack = put(&agent, log.outcomes(2, 2)).await.expect("an ack");
    assert_eq!(cosigned(&ack.checkpoint.expect("a note"), &witness), 2);
    log.begin_epoch(None);
    enrol(&agent, &log).await.expect("the same key");
    let keys = world.sql(
        "SELECT epoch, first_seq, certified_by, rotation != '' AS rotated FROM identities ORDER BY epoch",
    );
    let told: Vec<_> = keys
        .iter()
        .map(|key| {
            (
                key["first_seq"].as_u64().unwrap(),
                key["certified_by"].as_str().unwrap(),
                key["rotated"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(told, [(0, "uid:0", 0), (8, "rotation", 1), (10, "same key", 0)]);

    let policies = world.sql("SELECT policy_digest, event_detail['rules'] AS rules FROM policies");
    let loaded = policy("no-deletes");
    assert_eq!(
        (policies.len(), &policies[0]["policy_digest"], &policies[0]["rules"]),
        (1, &loaded.digest().into(), &loaded.text().into())
    );
    assert_eq!(world.number("SELECT countIf(parse_error != '') FROM events"), 3, "any leaf is kept");
    assert_eq!(
        world.number("SELECT count() FROM events WHERE leaf_hash = SHA256(concat(unhex('00'), canonical)) AND epoch > 0"),
        10
    );
    let leaves = "SELECT count() FROM batches AS b ARRAY JOIN b.leaf_hashes AS leaf, arrayEnumerate(b.leaf_hashes) AS n \
                  INNER JOIN events AS e ON e.origin = b.origin AND e.seq = toUInt64(b.first_seq + n - 1) AND e.leaf_hash = leaf";
    assert_eq!(world.number(leaves), 10, "each batch has its events' leaves");
    assert_eq!(findings(&world), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_no_statement_names_is_taken_on_an_operators_word_alone() {
    let world = World::start();
    let (agent, mut log, _) = begun(&world, 2).await;
    log.begin_epoch(None);
    log.key = SigningKey::from_seed(&[77; 32]);
    let refused = enrol(&agent, &log).await.expect_err("the old key is lost");
    let key = log.key.verifying(&log.name.to_string()).expect("a name").to_string();
    assert!(refused.message.contains(&format!("agents certify --key '{key}' --first-seq 2")), "{refused}");
    let certify = |first_seq: &str, reason: &str| {
        let (code, _, told) =
            world.run(&["agents", "certify", "--key", &key, "--first-seq", first_seq, "--reason", reason]);
        (code, told)
    };
    assert!(certify("2", "lost").1.contains("at least 15 characters"));
    assert!(certify("1", "its disk was replaced, INC-77").1.contains("are stored"));
    let (code, told) = certify("2", "its disk was replaced, INC-77");
    assert_eq!((code, told.as_str()), (0, ""));
    enrol(&agent, &log).await.expect("the key that was certified");
    put(&agent, log.outcomes(1, 2)).await.expect("an ack");
    let by = world.sql("SELECT certified_by FROM identities WHERE epoch = 2");
    assert!(
        by[0]["certified_by"].as_str().expect("who").ends_with(": its disk was replaced, INC-77"),
        "{by:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_whose_only_segment_was_lost_needs_no_operator_and_is_told() {
    let world = World::start();
    let (agent, mut log, _) = begun(&world, 2).await;
    log.begin_epoch(None);
    log.outcomes(1, 2);
    let before = log.clone();
    // The key of epoch 3 is named by that of epoch 2, which is that of epoch 1 as far as anybody knows.
    log.begin_epoch(Some(SigningKey::from_seed(&[99; 32])));
    enrol(&agent, &log).await.expect("a rotation that can be followed");
    put(&agent, log.outcomes(1, 1)).await.expect("an ack");
    let refused = enrol(&agent, &before).await.expect_err("what is over does not come back");
    assert_eq!(refused.reason, Reason::Conflict, "{refused}");
    let seen = |reason: &str| (log.origin().to_string(), reason.to_owned());
    assert_eq!(findings(&world), [seen("skipped_epochs"), seen("rollback")]);

    // Behind a number near the last of all nothing more could come.
    let mut far = log.clone();
    far.name = far.name.at_epoch(u32::MAX);
    let refused = enrol(&agent, &far).await.expect_err("a jump that is too far");
    assert!(refused.reason == Reason::Conflict && refused.message.contains("4096"), "{refused}");

    // One more change of keys of which nothing came cannot be followed.
    log.begin_epoch(Some(SigningKey::from_seed(&[98; 32])));
    log.begin_epoch(Some(SigningKey::from_seed(&[97; 32])));
    let refused = enrol(&agent, &log).await.expect_err("a key that nothing leads to");
    assert!(refused.message.contains("agents certify"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_ends_before_what_was_cosigned_and_an_old_key_behind_the_next_are_refused() {
    let world = World::start();
    let (agent, mut log, witness) = begun(&world, 2).await;
    let mut fork = log.clone();
    log.idle("not posted");
    let ack = post(&agent, log.idle("posted")).await.expect("an ack");
    assert_eq!(cosigned(&ack.checkpoint, &witness), 4);
    // It contradicts no size that the witness knows: nothing but its end is suspicious.
    let refused = put(&agent, fork.outcomes(2, 1)).await.expect_err("a fork");
    assert_eq!(refused.reason, Reason::Unproven, "{refused}");
    assert_eq!(findings(&world), [(log.origin().to_string(), "rollback".to_owned())]);
    let whole = log.outcomes(1, 1);
    put(&agent, whole.clone()).await.expect("what goes on from it");

    let mut stolen = log.clone();
    log.begin_epoch(Some(SigningKey::from_seed(&[99; 32])));
    enrol(&agent, &log).await.expect("the next key");
    let refused = post(&agent, stolen.idle("by the old key")).await.expect_err("that epoch is over");
    assert_eq!(refused.reason, Reason::Unproven, "{refused}");
    put(&agent, whole).await.expect("what is stored already comes again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_begins_behind_what_was_retired_too() {
    let world = World::start();
    let (agent, mut log, _) = begun(&world, 4).await;
    world.execute("ALTER TABLE events DELETE WHERE seq >= 1 SETTINGS mutations_sync = 2").await;
    let mut back = Log::new(1);
    back.tree = TreeState::begin(1, 2);
    back.begin_epoch(None);
    assert_eq!(enrol(&agent, &back).await.expect_err("a rollback").reason, Reason::Conflict);
    log.begin_epoch(None);
    enrol(&agent, &log).await.expect("one that begins behind it");
}

fn is_fork(refused: &Refusal) -> bool {
    matches!(refused.reason, Reason::Conflict | Reason::Unproven)
}

/// Another collector of the same store, with the same witness's key.
fn beside(world: &World) -> (Collector, PathBuf) {
    let folder = world.folder.path().join("beside");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::copy(world.folder.path().join("witness.key"), folder.join("witness.key")).expect("a key");
    let collector = Collector::start(&world.store, &folder, "info", false).expect("a collector");
    (collector, folder)
}

/// Both at once.
async fn at_once<A: Send + 'static, B: Send + 'static>(
    one: impl Future<Output = A> + Send + 'static,
    two: impl Future<Output = B> + Send + 'static,
) -> (A, B) {
    let barrier = Arc::new(Barrier::new(2));
    let other = barrier.clone();
    let one = tokio::spawn(async move {
        barrier.wait().await;
        one.await
    });
    let two = tokio::spawn(async move {
        other.wait().await;
        two.await
    });
    (one.await.expect("one"), two.await.expect("two"))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_forks_at_two_collectors_at_once_one_is_cosigned_and_the_other_is_refused_and_told_of() {
    let world = World::start();
    let (second, _folder) = beside(&world);
    let agents = [Agent::at(world.collector.socket()), Agent::at(second.socket())];
    for n in 1..=RACES {
        let mut log = Log::new(n);
        let witness = enrol(&agents[usize::from(n) % 2], &log).await.expect("a key");
        put(&agents[0], log.outcomes(1, 2)).await.expect("an ack");
        let mut fork = log.clone();
        // Forks of one length and of different ones.
        let forks = [log.outcomes(1, 3), fork.outcomes(2, 3 + u64::from(n % 3))];
        let [one, two] = agents.clone();
        let [first, other] = forks.clone();
        let (one, two) =
            at_once(async move { put(&one, first).await }, async move { put(&two, other).await }).await;
        let winner = match (&one, &two) {
            (Ok(_), Err(refused)) if is_fork(refused) => 0,
            (Err(refused), Ok(_)) if is_fork(refused) => 1,
            both => panic!("race {n}: {both:?}"),
        };
        // Whichever collector is asked again.
        let ack = put(&agents[1 - winner], forks[winner].clone()).await.expect("again");
        assert!(cosigned(&ack.checkpoint.expect("a note"), &witness) > 2);
        let refused = put(&agents[winner], forks[1 - winner].clone()).await.expect_err("a fork");
        assert!(is_fork(&refused), "{refused}");
        let origin = log.origin();
        let of =
            |table: &str| world.number(&format!("SELECT count() FROM {table} WHERE origin = '{origin}'"));
        assert_eq!((of("batches"), of("checkpoints")), (2, 2), "race {n}");
        assert!(findings(&world).contains(&(origin.to_string(), "fork".into())), "race {n}");
        let rows = format!("SELECT count() - uniqExact(seq) FROM events WHERE origin = '{origin}'");
        assert_eq!(world.number(&rows), 0, "race {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_idle_fork_at_once_with_another_or_with_a_segment_at_most_one_is_cosigned() {
    let world = World::start();
    let (second, _folder) = beside(&world);
    let [one, two] = [Agent::at(world.collector.socket()), Agent::at(second.socket())];
    let (mut cosigned_once, mut forks) = (0, 0);
    for n in 1..=RACES {
        let mut log = Log::new(n);
        let witness = enrol(&one, &log).await.expect("a key");
        put(&one, log.outcomes(1, 2)).await.expect("an ack");
        let mut fork = log.clone();
        // Two idle ones of different lengths, or a segment and an idle one.
        let idle = fork.idle("a fork");
        let note = |ack: CheckpointAck| ack.checkpoint;
        let (agent, other) = (one.clone(), two.clone());
        let results = if n % 2 == 0 {
            log.idle("first");
            let body = log.idle("second");
            let (a, b) =
                at_once(async move { post(&agent, body).await }, async move { post(&other, idle).await })
                    .await;
            [a.map(note), b.map(note)]
        } else {
            let bytes = log.outcomes(1, 2);
            let (a, b) =
                at_once(async move { put(&agent, bytes).await }, async move { post(&other, idle).await })
                    .await;
            [a.map(|ack| ack.checkpoint.expect("a note")), b.map(note)]
        };
        let good = results.iter().flatten().filter(|note| cosigned(note, &witness) > 2).count();
        assert!(good <= 1, "race {n}: both forks are cosigned: {results:?}");
        cosigned_once += good;
        forks += usize::from(findings(&world).iter().any(|(origin, _)| *origin == log.origin().to_string()));
    }
    assert!(cosigned_once > 0 && forks > 0, "{cosigned_once} {forks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_proven_is_refused_told_of_and_stops_its_own_log_alone() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let mut other = Log::new(200);
    enrol(&agent, &other).await.expect("a key");
    let mut expected = Vec::new();
    let mut refused =
        async |n: u8, reason: &'static str, change: fn(&mut Log) -> Vec<u8>, path: &'static str| {
            let mut log = Log::new(n);
            let witness = enrol(&agent, &log).await.expect("a key");
            put(&agent, log.outcomes(1, 3)).await.expect("an ack");
            post(&agent, log.idle("one")).await.expect("an ack");
            let mut bad = log.clone();
            let body = change(&mut bad);
            let answer = agent.post::<serde_json::Value>(path, body).await.expect_err(reason);
            assert_eq!(answer.reason, Reason::Unproven, "{reason}: {answer}");
            expected.push((log.origin().to_string(), reason.to_owned()));
            // What is true still comes in, of this log and of any other.
            let ack = put(&agent, log.outcomes(1, 1)).await.expect(reason);
            assert_eq!(cosigned(&ack.checkpoint.expect("a note"), &witness), 5);
            let ack = put(&agent, other.outcomes(1, 1)).await.expect("another log");
            assert!(cosigned(&ack.checkpoint.expect("a note"), &witness) > 0);
        };
    let another_key = |log: &mut Log| {
        log.key = SigningKey::from_seed(&[77; 32]);
        log.outcomes(1, 2)
    };
    // The same frames with a checkpoint of another tree.
    let another_root = |log: &mut Log| {
        let mut forged = log.clone();
        forged.sealed_bytes(vec![b"another".to_vec(), b"story".to_vec()]);
        with_last_note(&log.outcomes(1, 2), &forged.checkpoint())
    };
    refused(1, "bad_signature", another_key, SEGMENTS).await;
    refused(2, "bad_root", another_root, SEGMENTS).await;
    refused(
        3,
        "fork",
        |log| {
            log.forget_idle();
            log.sealed_bytes(vec![b"another".to_vec(), b"story".to_vec()])
        },
        SEGMENTS,
    )
    .await;
    refused(
        4,
        "fork",
        |log| {
            log.forget_idle();
            log.idle("another")
        },
        CHECKPOINTS,
    )
    .await;
    refused(
        5,
        "rollback",
        |log| {
            log.forget_idle();
            log.idle_without_leaf()
        },
        CHECKPOINTS,
    )
    .await;
    refused(
        6,
        "bad_signature",
        |log| {
            log.key = SigningKey::from_seed(&[77; 32]);
            log.idle("two")
        },
        CHECKPOINTS,
    )
    .await;
    // Nothing that has no checkpoint comes in behind the first epoch's beginning.
    refused(7, "bad_signature", |log| many(log.origin(), 3, 2), SEGMENTS).await;
    assert_eq!(findings(&world), expected);
    let (_, shown, _) = world.run(&["query", "SELECT reason, detail FROM findings WHERE detail = ''"]);
    assert_eq!(shown.trim().lines().count(), 2, "each tells what it saw: {shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_has_one_host_one_first_key_and_hands_over_by_both() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    let mut log = Log::new(1);
    enrol(&agent, &log).await.expect("a key");
    let refused = async |log: &Log, expected: Reason| {
        let answer = enrol(&agent, log).await.expect_err("a refusal");
        assert_eq!(answer.reason, expected, "{answer}");
    };
    let mut second = log.clone();
    second.key = SigningKey::from_seed(&[9; 32]);
    refused(&second, Reason::Conflict).await;
    let mut elsewhere = log.clone();
    elsewhere.name.host = "runner-2".into();
    refused(&elsewhere, Reason::Forbidden).await;
    put(&agent, log.outcomes(1, 3)).await.expect("an ack");

    // Without the old key's word, and in the middle of what is stored.
    let mut taken_over = log.clone();
    taken_over.key = SigningKey::from_seed(&[9; 32]);
    taken_over.begin_epoch(None);
    refused(&taken_over, Reason::Conflict).await;
    let mut back = Log::new(1);
    back.outcomes(1, 2);
    back.begin_epoch(None);
    refused(&back, Reason::Conflict).await;

    log.begin_epoch(Some(SigningKey::from_seed(&[9; 32])));
    enrol(&agent, &log).await.expect("both keys' statement");
    put(&agent, log.outcomes(1, 1)).await.expect("an ack");
    assert_eq!(world.number("SELECT count() FROM identities"), 2);
    let reasons: Vec<String> = findings(&world).into_iter().map(|(_, reason)| reason).collect();
    assert!(reasons.contains(&"second_key".into()) && reasons.contains(&"rollback".into()), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_hole_events_are_kept_and_nothing_is_cosigned_until_another_epoch_begins() {
    let mut world = World::start();
    // What is cosigned is put into a folder besides.
    let published = world.folder.path().join("published");
    let config = std::fs::read_to_string(world.collector.config()).expect("a configuration");
    let config = format!("{config}\n[witness]\npublish_dir = \"{}\"\n", published.display());
    std::fs::write(world.collector.config(), config).expect("a configuration");
    world.collector.daemon().kill().expect("a kill");
    world.collector.start_again().expect("a collector");
    let (agent, mut log, witness) = begun(&world, 3).await;
    let lost = log.outcomes(1, 4);
    for _ in 0..2 {
        let ack = put(&agent, log.outcomes(1, 2)).await.expect("an ack");
        assert!(ack.advice.begin_epoch);
        assert_eq!(cosigned(&ack.checkpoint.expect("a note"), &witness), 0);
    }
    let ack = post(&agent, log.idle("one")).await.expect("an ack");
    assert!(ack.advice.begin_epoch && cosigned(&ack.checkpoint, &witness) == 0);
    assert_eq!(world.number("SELECT count() FROM events"), 7);
    assert_eq!(findings(&world), [(log.origin().to_string(), "hole".into())]);
    let mut next = log.clone();
    next.begin_epoch(None);
    enrol(&agent, &next).await.expect("the same key");
    let ack = put(&agent, next.outcomes(1, 2)).await.expect("an ack");
    assert!(!ack.advice.begin_epoch && cosigned(&ack.checkpoint.expect("a note"), &witness) == 2);
    // What was lost turns up after all, and closes the hole.
    let ack = put(&agent, lost).await.expect("an ack");
    assert_eq!(cosigned(&ack.checkpoint.expect("a note"), &witness), 7);
    let ack = post(&agent, log.idle_without_leaf()).await.expect("an ack");
    assert_eq!(cosigned(&ack.checkpoint, &witness), 12, "and what stands behind it is proven by it");
    assert_eq!(
        reason(post(&agent, log.idle("two")).await),
        Reason::Unproven,
        "the next epoch has begun there"
    );
}
