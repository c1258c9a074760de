use std::time::{Duration, Instant};

use weir_core::evidence::note::SignedNote;
use weir_core::ids::Origin;
use weir_core::wire::{
    ENROL, EnrolAck, HOLDS, HoldAck, POLL, PollRequest, PollResponse, Reason, SEGMENTS, SegmentAck,
};

use crate::agent::{Agent, Broken, reason};
use crate::log::Log;
use crate::records::{TIME_US, hold, many};
use crate::world::{World, run_with};

/// Moments of a put at which something is killed, in sixths of the time that a whole put takes: from its first byte to
/// behind its answer.
const MOMENTS: std::ops::Range<u32> = 0..8;
const EVENTS: u64 = 1500;

fn batch(origin: &Origin, round: u64) -> Vec<u8> {
    many(origin, round * EVENTS, EVENTS)
}

/// Puts the first batch in peace, and says how long it took.
async fn measured(agent: &Agent, origin: &Origin) -> Duration {
    let began = Instant::now();
    agent.post::<SegmentAck>(SEGMENTS, batch(origin, 0)).await.expect("an ack");
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_nothing_is_acknowledged_and_later_everything_is() {
    let mut world = World::start();
    let agent = Agent::at(world.collector.socket());
    let origin = Origin::from_random([1; 16]);
    let (segment, hold) = (many(&origin, 0, 3), hold(1, &origin, TIME_US, TIME_US * 2));
    let hold = serde_json::to_vec(&hold).expect("JSON");
    let open = vec!["01".repeat(16).parse().expect("an id")];
    let poll = serde_json::to_vec(&PollRequest { origin, open, wait_ms: 100 }).expect("JSON");

    world.store.daemon().kill().expect("a kill");
    assert_eq!(reason(agent.post::<SegmentAck>(SEGMENTS, segment.clone()).await), Reason::Unavailable);
    assert_eq!(reason(agent.post::<HoldAck>(HOLDS, hold.clone()).await), Reason::Unavailable);
    assert_eq!(reason(agent.post::<PollResponse>(POLL, poll.clone()).await), Reason::Unavailable);

    world.store.start_again().expect("a store");
    assert!(agent.post::<SegmentAck>(SEGMENTS, segment).await.is_ok());
    assert!(agent.post::<HoldAck>(HOLDS, hold).await.is_ok());
    assert!(agent.post::<PollResponse>(POLL, poll).await.is_ok());
    assert_eq!(world.number("SELECT count() FROM events"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_killed_during_a_put_keeps_each_event_once() {
    let mut world = World::start();
    let agent = Agent::at(world.collector.socket());
    let origin = Origin::from_random([1; 16]);
    let whole = measured(&agent, &origin).await;
    for moment in MOMENTS {
        let round = u64::from(moment) + 1;
        let segment = batch(&origin, round);
        let put = tokio::spawn({
            let (agent, segment) = (agent.clone(), segment.clone());
            async move { agent.post::<SegmentAck>(SEGMENTS, segment).await }
        });
        // Not a wait for something: the moment is what is varied.
        tokio::time::sleep(whole / 6 * moment).await;
        world.store.daemon().kill().expect("a kill");
        let first = put.await.expect("a put");
        if let Err(refusal) = &first {
            assert_eq!(refusal.reason, Reason::Unavailable, "{refusal}");
        }
        world.store.start_again().expect("a store");
        let stored = world.number(&format!("SELECT count() FROM events WHERE seq >= {}", round * EVENTS));
        assert!(first.is_err() || stored == EVENTS, "acknowledged, and {stored} are there");
        agent.post::<SegmentAck>(SEGMENTS, segment).await.expect("an ack");
    }
    let all = (MOMENTS.len() as u64 + 1) * EVENTS;
    assert_eq!(world.number("SELECT count() FROM events"), all);
    assert_eq!(world.number("SELECT uniqExact(seq) FROM events"), all);
    assert_eq!(world.number("SELECT count() FROM gaps"), 0);
}

/// At whichever step it dies, its successor comes to the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_killed_during_a_put_keeps_each_event_once_and_cosigns_it() {
    let mut world = World::start();
    let agent = Agent::at(world.collector.socket());
    let mut log = Log::new(1);
    let witness = agent.post::<EnrolAck>(ENROL, log.enrolment()).await.expect("a witness's key").witness;
    let began = Instant::now();
    agent.post::<SegmentAck>(SEGMENTS, log.outcomes(1, EVENTS)).await.expect("an ack");
    let whole = began.elapsed();
    for moment in MOMENTS {
        let segment = log.outcomes(1, EVENTS);
        let put = tokio::spawn({
            let (agent, segment) = (agent.clone(), segment.clone());
            async move { agent.try_post::<SegmentAck>(SEGMENTS, segment).await }
        });
        // Not a wait for something: the moment is what is varied.
        tokio::time::sleep(whole / 6 * moment).await;
        world.collector.daemon().kill().expect("a kill");
        let first = put.await.expect("a put");
        assert!(matches!(first, Err(Broken) | Ok(Ok(_))), "{first:?}");
        // Its socket's file is stale now, and is replaced.
        world.collector.start_again().expect("a collector");
        let ack = agent.post::<SegmentAck>(SEGMENTS, segment).await.expect("an ack");
        let note: SignedNote = ack.checkpoint.expect("a note").parse().expect("a note");
        note.cosigned(&witness).expect("a cosignature");
    }
    let segments = MOMENTS.len() as u64 + 1;
    let all = segments * EVENTS;
    assert_eq!(
        world.number("SELECT count() * 10 + toUInt8(count() = uniqExact(seq)) FROM events"),
        all * 10 + 1
    );
    assert_eq!(world.number("SELECT count() FROM batches"), segments);
    assert_eq!(world.number("SELECT count() FROM checkpoints"), segments);
}

#[test]
fn each_fault_of_the_operators_is_one_sentence_with_its_mend() {
    let mut world = World::start();
    let (secret, socket) =
        (world.store.secret().display().to_string(), world.collector.socket().to_path_buf());
    let wrong = world.folder.path().join("wrong.secret");
    std::fs::write(&wrong, "nonsense\n").expect("a file");
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    let config = |url: &str, secret: &str, listen: &str| {
        format!(
            "[store]\nurl = \"{url}\"\npassword_file = \"{secret}\"\n[listen]\nsocket = \"{listen}\"\nagent_uids = [0]\n"
        )
    };
    let url = world.store.url();
    let taken = socket.display().to_string();
    let free = world.folder.path().join("free.sock").display().to_string();
    let nowhere = world.folder.path().join("no/where.sock").display().to_string();
    let cases = [
        (1, config("http://127.0.0.1:1", &secret, &free), "no ClickHouse answers at http://127.0.0.1:1"),
        (1, config(&url, &wrong.display().to_string(), &free), "mend [store] user and password_file"),
        (1, config(&url, &secret, &taken), "another program listens at"),
        (1, config(&url, &secret, &nowhere), "its folder must exist"),
        (2, config(&url, "/etc/passwd", &free), "is open to others (mode 0644)"),
        (2, "[store]\nurl = 1\n".into(), "other.toml:2:7: invalid type"),
    ];
    for (expected, config, says) in cases {
        let (code, _, told) = run_with(&world.folder, &config, &["serve"]);
        assert_eq!(code, expected, "{told}");
        assert!(told.contains(says) && told.trim_end().lines().count() == 1, "{says}: {told}");
    }
    // The one whose socket was asked for lives on.
    assert!(world.collector.daemon().ended().expect("its state").is_none());

    world.store.daemon().kill().expect("a kill");
    let (code, _, told) = world.run(&["query", "SELECT 1"]);
    assert!(code == 1 && told.contains("start it, or mend [store] url"), "{told}");
}
