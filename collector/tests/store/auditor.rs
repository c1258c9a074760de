//! What an auditor finds by the command although every signature in the store is right: connects that nothing accounts for, and a
//! store that was set back as a whole.

use std::path::Path;

use weir_core::policy::Action;
use weir_core::record::{AgentEvent, Body, CallResult, ConnectVerdict, GapReason};
use weir_core::wire::{CHECKPOINTS, CheckpointAck, ENROL, EnrolAck, SEGMENTS, SegmentAck};

use crate::agent::Agent;
use crate::log::Log;
use crate::records::{Text, counted, gap, intent, outcome, sums};
use crate::verify::{findings, second};
use crate::world::World;

fn stopped() -> Body<Text> {
    Body::Agent(AgentEvent { name: "agent.stopped".into(), detail: [].into() })
}

async fn enrol(agent: &Agent, log: &Log) {
    agent.post::<EnrolAck>(ENROL, log.enrolment()).await.expect("a key");
}

async fn put(agent: &Agent, segment: Vec<u8>) {
    agent.post::<SegmentAck>(SEGMENTS, segment).await.expect("an ack");
}

/// Writes what the store names now, for an auditor to keep.
fn trust(world: &World, file: &Path) {
    let (code, trust, told) = world.run(&["trust"]);
    assert_eq!(code, 0, "{told}");
    std::fs::write(file, trust).expect("a trust file");
}

#[tokio::test(flavor = "multi_thread")]
async fn connects_that_no_signed_row_accounts_for_are_found_and_those_that_a_gap_tells_of_are_not() {
    let world = World::start();
    let agent = Agent::at(world.collector.socket());
    // Of two hosts, each of which signs what it says: three connects, and two of them have a row.
    let mut logs = [Log::new(1), Log::new(2)];
    for log in &mut logs {
        enrol(&agent, log).await;
        let job = format!("{}-0000000000000001", &log.origin().as_str()[..16]);
        let mut bodies: Vec<Body<Text>> =
            vec![intent(1, "echo", Action::Allow, "{}"), outcome(1, CallResult::Ok)];
        bodies.extend((0..2).map(|_| counted(&job, ConnectVerdict::Redirected)));
        if log.origin().as_str().starts_with("02") {
            bodies.push(gap(&job, ConnectVerdict::Redirected, GapReason::AgentEnded, 1));
        }
        bodies.extend([sums(&job, true, 3, 0, 0), stopped()]);
        put(&agent, log.sealed(bodies)).await;
    }
    let (file, export) = (world.folder.path().join("trust.json"), world.folder.path().join("export.tar"));
    let (trusted, exported) = (file.to_str().expect("UTF-8"), export.to_str().expect("UTF-8"));
    trust(&world, &file);
    let verify = ["verify", "--json", "--settle", "0", "--trust", trusted];
    let (code, told, wrong) = world.run(&verify);
    let origin = logs[0].origin().to_string();
    let unaccounted = |seq: u64| {
        let job = format!("job {}-0000000000000001", &origin[..16]);
        ("unaccounted".to_owned(), origin.clone(), 0, seq, seq, job)
    };
    assert_eq!((code, findings(&told)), (1, vec![unaccounted(4)]), "{wrong}");
    assert!(told.contains("redirected") && told.contains("unexplained"), "{told}");
    // Its proofs are right, and an export has no more than those.
    let (code, told, _) = world.run(&["export", "--settle", "0", "-o", exported]);
    assert_eq!(code, 0, "{told}");
    let (code, told, _) = world.run(&["verify", "--json", "--trust", trusted, "--export", exported]);
    assert_eq!((code, findings(&told), second(&export, &file, "all")), (0, vec![], vec![]));

    // Nobody excuses it by a stone that no witness signed.
    let stone = format!(
        "INSERT INTO tombstones (tenant, host_name, origin, epoch, first_seq, last_seq, policy, note) \
         VALUES ('demo', 'runner-1', '{origin}', 1, 0, 9, 'mine', 'no note')"
    );
    world.execute(&stone).await;
    let (code, told, _) = world.run(&verify);
    assert!(code == 1 && findings(&told).contains(&unaccounted(4)), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_set_back_as_a_whole_is_found_by_what_the_witness_put_elsewhere() {
    let mut world = World::start();
    let elsewhere = world.folder.path().join("elsewhere");
    let config = std::fs::read_to_string(world.collector.config()).expect("a configuration");
    let config = format!("{config}\n[witness]\npublish_dir = {elsewhere:?}\n");
    std::fs::write(world.collector.config(), config).expect("a configuration");
    world.collector.daemon().terminate().expect("an end");
    world.collector.start_again().expect("a collector");
    let agent = Agent::at(world.collector.socket());
    let mut logs = [Log::new(1), Log::new(2)];
    for log in &mut logs {
        enrol(&agent, log).await;
        put(&agent, log.outcomes(1, 3)).await;
        put(&agent, log.sealed(vec![outcome(2, CallResult::Ok), stopped()])).await;
    }
    // The auditor looks, and comes again later.
    let file = world.folder.path().join("trust.json");
    trust(&world, &file);
    let (trusted, folder) = (file.to_str().expect("UTF-8"), elsewhere.to_str().expect("UTF-8"));
    for log in &mut logs {
        let _: CheckpointAck = agent.post(CHECKPOINTS, log.idle("{\"idle\":true}")).await.expect("an ack");
        put(&agent, log.outcomes(3, 2)).await;
        put(&agent, log.sealed(vec![outcome(4, CallResult::Ok), stopped()])).await;
    }
    let alone = ["verify", "--json", "--settle", "0", "--trust", trusted];
    let with_witness = [&alone[..], &["--witnessed", folder]].concat();
    for (verify, what) in [(&alone[..], "alone"), (&with_witness, "with the witness's folder")] {
        let (code, told, wrong) = world.run(verify);
        assert_eq!((code, findings(&told)), (0, vec![]), "{what}: {wrong}");
    }

    // Whoever has the store, the collector's key and a backup sets all of it back to what the auditor saw.
    for (table, place) in [
        ("events", "seq"),
        ("batches", "first_seq"),
        ("checkpoints", "first_seq + tree_size - 1"),
        ("identities", "first_seq"),
    ] {
        let back = format!("ALTER TABLE {table} DELETE WHERE {place} >= 5 SETTINGS mutations_sync = 2");
        world.execute(&back).await;
    }
    assert_eq!(world.number("SELECT count() FROM events"), 10);
    let (code, told, wrong) = world.run(&alone);
    assert_eq!((code, findings(&told)), (0, vec![]), "by what is in the store nothing is wrong: {wrong}");
    let (code, told, _) = world.run(&with_witness);
    let back = |log: &Log| ("rolled_back".to_owned(), log.origin().to_string(), 1, 5, 9, "log".to_owned());
    assert_eq!((code, findings(&told)), (1, logs.iter().map(back).collect()), "{told}");
    // A folder that is not there is no reason to believe that nothing was witnessed.
    let (code, _, told) = world.run(&["verify", "--trust", trusted, "--witnessed", "/nowhere"]);
    assert!(code == 2 && told.contains("/nowhere"), "{told}");
}
