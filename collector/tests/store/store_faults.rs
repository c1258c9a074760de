//! A store that does wrong while segments come: each event stands there once in the end, and no origin is stopped for it.

use std::time::Duration;

use weir_core::ids::Origin;
use weir_core::wire::{Reason, SEGMENTS, SegmentAck};
use weir_tests::soak::{Draw, Soak};
use weir_tests::{Between, Collector, Wrong};

use crate::agent::Agent;
use crate::records::many;
use crate::world::{World, store};

/// Events of a segment.
const EVENTS: u64 = 20;
/// Segments of one origin, all below one another.
const SEGMENTS_OF_AN_ORIGIN: u64 = 25;
/// One fault in so many is a kill of the store: it takes a second to come back.
const KILL_IN: u64 = 16;
/// How long the agent waits for an answer; longer than any takes that comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// One case in so many is waited out: the collector itself gives the store up.
const WAITED_OUT_IN: u64 = 1000;
/// Longer than the collector waits for a commit.
const LONG_PATIENCE: Duration = Duration::from_secs(85);
/// How often a segment is sent again behind a fault that is over.
const TRIES: usize = 4;
/// The latest moment of a kill.
const KILL_WITHIN_US: u64 = 60_000;

/// What is done to one put.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// At the request to the store after so many others.
    Wrong(u64, Wrong),
    /// So many microseconds after the put's first byte.
    Killed(u64),
    /// The store does not answer this request for as long as the collector waits.
    WaitedOut(u64),
}

fn draw(seed: u64, requests: u64) -> Fault {
    let mut draw = Draw(seed);
    if seed.is_multiple_of(WAITED_OUT_IN) {
        return Fault::WaitedOut(draw.below(requests));
    }
    if draw.below(KILL_IN) == 0 {
        return Fault::Killed(draw.below(KILL_WITHIN_US));
    }
    let part = u8::try_from(draw.below(100)).unwrap_or(0);
    let wrong = [
        Wrong::ErrorBefore,
        Wrong::ErrorAfter,
        Wrong::ResetWithin(part),
        Wrong::ResetAfter,
        Wrong::Truncated(part),
        Wrong::Unanswered,
        Wrong::Late,
    ];
    let wrong = draw.one_of(&wrong).unwrap_or(Wrong::ErrorAfter);
    Fault::Wrong(draw.below(requests), wrong)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_stored_once_whatever_the_store_does_meanwhile() {
    let mut soak = Soak::of("store", 200, 1).expect("a number");
    let (store, folder) = store();
    let between = Between::to(store.address()).expect("a proxy");
    let collector =
        Collector::start_behind(&between.url(), &store, folder.path(), "warn").expect("a collector");
    let mut world = World { collector, store, folder };
    let agent = Agent::at(world.collector.socket());
    let (mut origins, mut happened, mut refused) = (0_u64, 0, 0);
    while let Some(first) = soak.next() {
        origins += 1;
        let origin = Origin::from_random(u128::from(origins).to_be_bytes());
        let before = between.requests();
        put(&agent, &origin, 0).await.expect("an ack in peace");
        let requests = between.requests() - before;
        assert!(requests >= 3, "{requests} requests for a segment: the faults would miss it");
        let mut stored = 1;
        while let Some(seed) = soak.next().filter(|_| stored < SEGMENTS_OF_AN_ORIGIN) {
            let fault = draw(seed, requests);
            let (did, refusal) = with(fault, &mut world, &between, &agent, &origin, stored).await;
            assert!(
                refusal.is_none_or(|reason| reason == Reason::Unavailable),
                "{fault:?}, seed {seed}: {refusal:?}"
            );
            again(&agent, &origin, stored, &format!("{fault:?}, seed {seed}")).await;
            // What is late comes now, after the same has been acknowledged.
            between.let_go();
            (happened, refused) = (happened + u64::from(did), refused + u64::from(refusal.is_some()));
            stored += 1;
            soak.held(1);
        }
        each_event_is_there_once(&world, &origin, stored, first);
    }
    eprintln!("{} puts, {happened} faults happened, {refused} were told as unavailable", soak.cases());
    assert!(happened * 10 >= soak.cases() * 9, "only {happened} faults happened");
    assert!(refused * 4 >= happened, "only {refused} of {happened} faults were felt");
}

async fn put(agent: &Agent, origin: &Origin, number: u64) -> Result<SegmentAck, Option<Reason>> {
    put_within(PATIENCE, agent, origin, number).await
}

async fn put_within(
    patience: Duration,
    agent: &Agent,
    origin: &Origin,
    number: u64,
) -> Result<SegmentAck, Option<Reason>> {
    let sent = agent.try_post::<SegmentAck>(SEGMENTS, many(origin, number * EVENTS, EVENTS));
    match tokio::time::timeout(patience, sent).await {
        Ok(Ok(Ok(ack))) => Ok(ack),
        Ok(Ok(Err(refusal))) => Err(Some(refusal.reason)),
        // Of what is not answered in time, nobody knows anything.
        Ok(Err(_)) | Err(_) => Err(None),
    }
}

/// A put with a fault: whether it happened, and how it was told.
async fn with(
    fault: Fault,
    world: &mut World,
    between: &Between,
    agent: &Agent,
    origin: &Origin,
    number: u64,
) -> (bool, Option<Reason>) {
    let before = between.happened();
    let told = match fault {
        Fault::Wrong(after, wrong) => {
            between.wrong_after(after, wrong);
            let told = match wrong {
                Wrong::Unanswered | Wrong::Late => unless_held(between, put(agent, origin, number)).await,
                _ => put(agent, origin, number).await,
            };
            between.mend();
            match wrong {
                // The collector that asked is gone when the store hears of it: its successor stores the same.
                Wrong::Late if between.happened() > before => {
                    world.collector.daemon().kill().expect("a kill");
                    world.collector.start_again().expect("a collector");
                }
                // A collector goes on with a segment whose sender has gone; the same log waits for it.
                Wrong::Unanswered => between.let_go(),
                _ => {}
            }
            told
        }
        Fault::WaitedOut(after) => {
            between.wrong_after(after, Wrong::Unanswered);
            let told = put_within(LONG_PATIENCE, agent, origin, number).await;
            assert_eq!(told.as_ref().err(), Some(&Some(Reason::Unavailable)), "{fault:?}");
            between.mend();
            between.let_go();
            told
        }
        Fault::Killed(then_us) => {
            let sent = put(agent, origin, number);
            let killed = async {
                // Not a wait for something: the moment is what is drawn.
                tokio::time::sleep(Duration::from_micros(then_us)).await;
                world.store.daemon().kill().expect("a kill");
                world.store.start_again().expect("a store");
            };
            let (told, ()) = tokio::join!(sent, killed);
            return (true, told.err().flatten());
        }
    };
    (between.happened() > before, told.err().flatten())
}

/// Gives the put up as soon as nobody will answer it.
async fn unless_held(
    between: &Between,
    put: impl Future<Output = Result<SegmentAck, Option<Reason>>>,
) -> Result<SegmentAck, Option<Reason>> {
    let (held_to, held) = tokio::sync::oneshot::channel();
    let between = between.clone();
    // Should nothing be held, it waits until something is; a thread that waits costs nothing.
    std::thread::spawn(move || {
        between.until_held();
        let _ = held_to.send(());
    });
    tokio::select! {
        told = put => told,
        _ = held => Err(None),
    }
}

/// Sends a segment until it is acknowledged, as an agent does.
async fn again(agent: &Agent, origin: &Origin, number: u64, what: &str) {
    let mut refusals = Vec::new();
    for _ in 0..TRIES {
        match put(agent, origin, number).await {
            Ok(_) => return,
            Err(refusal) => refusals.push(refusal),
        }
    }
    panic!("{what}: not acknowledged behind the fault: {refusals:?}");
}

fn each_event_is_there_once(world: &World, origin: &Origin, segments: u64, seed: u64) {
    let question = |what: &str| format!("SELECT {what} FROM events WHERE origin = '{origin}'");
    let all = segments * EVENTS;
    for what in ["count()", "uniqExact(seq)", "max(seq) + 1"] {
        assert_eq!(world.number(&question(what)), all, "{what}; the origin's seeds are from {seed} on");
    }
}
