//! A store that does wrong while segments come: each event stands there once in the end, and no origin is stopped for it.

use std::time::Duration;

use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::key::VerifyingKey;
use weir_core::evidence::note::SignedNote;
use weir_core::ids::Origin;
use weir_core::wire::{CHECKPOINTS, CheckpointAck, ENROL, EnrolAck, Reason, SEGMENTS, SegmentAck};
use weir_tests::soak::{Draw, Soak};
use weir_tests::{Between, Collector, Wrong};

use crate::agent::Agent;
use crate::log::Log;
use crate::world::{World, store};

/// Events of a segment.
const EVENTS: u64 = 20;
/// Puts of one origin, one behind the other.
const PUTS_OF_AN_ORIGIN: u64 = 25;
/// One put in so many is an idle log's checkpoint, and no segment.
const IDLE_IN: u64 = 5;
/// One fault in so many is a kill of the store: it takes a second to come back.
const KILL_IN: u64 = 16;
/// How long the agent waits for an answer; longer than any takes that comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// One case in so many is waited out: the collector itself gives the store up. That takes half a minute or a whole one.
const WAITED_OUT_IN: u64 = 1000;
/// And one of those that each run of the tests has.
const WAITED_OUT_AT: u64 = 100;
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
    if seed == WAITED_OUT_AT || seed.is_multiple_of(WAITED_OUT_IN) {
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
    let (mut origins, mut happened, mut refused, mut waited_out) = (0_u128, 0, 0, 0);
    let has_one_to_wait_out = (soak.seed()..soak.seed() + soak.cases()).contains(&WAITED_OUT_AT);
    while let Some(first) = soak.next_seed() {
        origins += 1;
        let mut log = Log::new(1);
        log.name.origin = Origin::from_random(origins.to_be_bytes());
        let enrolled: EnrolAck = agent.post(ENROL, log.enrolment()).await.expect("an enrolment");
        let (mut segments, mut requests) = (2, 0);
        for _ in 0..segments {
            let before = between.requests();
            Put::segment(&mut log).send(&agent, PATIENCE).await.expect("an ack in peace");
            requests = between.requests() - before;
        }
        assert!(requests >= 3, "{requests} requests for a segment: the faults would miss it");
        for _ in 0..PUTS_OF_AN_ORIGIN {
            let Some(seed) = soak.next_seed() else { break };
            let fault = draw(seed, requests);
            // What is waited out is one of a segment's requests: an idle log's checkpoint takes fewer.
            let idle = seed.is_multiple_of(IDLE_IN) && !matches!(fault, Fault::WaitedOut(_));
            let put = if idle { Put::idle(&mut log) } else { Put::segment(&mut log) };
            segments += u64::from(put.path == SEGMENTS);
            let (did, told) = with(fault, &mut world, &between, &agent, &put).await;
            let refusal = told.err().flatten();
            assert!(
                refusal.is_none_or(|reason| reason == Reason::Unavailable),
                "{fault:?}, seed {seed}: {refusal:?}"
            );
            let note = again(&agent, &put, &format!("{fault:?}, seed {seed}")).await;
            assert_eq!(
                cosigned(&note, &enrolled.witness),
                log.tree.frontier.size(),
                "{fault:?}, seed {seed}"
            );
            // What is late comes now, after the same has been acknowledged.
            between.let_go();
            (happened, refused) = (happened + u64::from(did), refused + u64::from(refusal.is_some()));
            waited_out += u64::from(did && matches!(fault, Fault::WaitedOut(_)));
            soak.held(1);
        }
        // With what was idle.
        Put::segment(&mut log).send(&agent, PATIENCE).await.expect("an ack in peace");
        all_is_there_once(&world, &log, segments + 1, first);
    }
    eprintln!(
        "{} puts, {happened} faults happened, {refused} were told as unavailable, {waited_out} were waited out",
        soak.cases()
    );
    assert!(waited_out > 0 || !has_one_to_wait_out, "the collector never gave the store up");
    // An idle log's checkpoint takes fewer requests than a segment does.
    assert!(happened * 5 >= soak.cases() * 4, "only {happened} faults happened");
    assert!(refused * 4 >= happened, "only {refused} of {happened} faults were felt");
}

/// What a log sends, to the letter: the same is sent until it is acknowledged.
struct Put {
    path: &'static str,
    body: Vec<u8>,
}

/// The cosigned note; else the refusal, if there was one.
type Told = Result<String, Option<Reason>>;

impl Put {
    fn segment(log: &mut Log) -> Self {
        Self { path: SEGMENTS, body: log.outcomes(1, EVENTS) }
    }

    fn idle(log: &mut Log) -> Self {
        Self { path: CHECKPOINTS, body: log.idle("a heartbeat") }
    }

    async fn send(&self, agent: &Agent, patience: Duration) -> Told {
        let note = async {
            let body = self.body.clone();
            if self.path == SEGMENTS {
                let ack = agent.try_post::<SegmentAck>(SEGMENTS, body).await;
                ack.map(|told| told.map(|ack| ack.checkpoint.expect("a cosigned checkpoint")))
            } else {
                let ack = agent.try_post::<CheckpointAck>(CHECKPOINTS, body).await;
                ack.map(|told| told.map(|ack| ack.checkpoint))
            }
        };
        match tokio::time::timeout(patience, note).await {
            Ok(Ok(told)) => told.map_err(|refusal| Some(refusal.reason)),
            // Of what is not answered in time, nobody knows anything.
            Ok(Err(_)) | Err(_) => Err(None),
        }
    }
}

fn cosigned(note: &str, witness: &VerifyingKey) -> u64 {
    let note: SignedNote = note.parse().expect("a note");
    note.cosigned(witness).expect("a cosignature");
    Checkpoint::read(&note).expect("a checkpoint").size
}

/// A put with a fault: whether it happened, and how it was told.
async fn with(fault: Fault, world: &mut World, between: &Between, agent: &Agent, put: &Put) -> (bool, Told) {
    let before = between.happened();
    let told = match fault {
        Fault::Wrong(after, wrong) => {
            between.wrong_after(after, wrong);
            let told = match wrong {
                Wrong::Unanswered | Wrong::Late => unless_held(between, put.send(agent, PATIENCE)).await,
                _ => put.send(agent, PATIENCE).await,
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
            let told = put.send(agent, LONG_PATIENCE).await;
            assert_eq!(told.as_ref().err(), Some(&Some(Reason::Unavailable)), "{fault:?}");
            between.mend();
            between.let_go();
            told
        }
        Fault::Killed(then_us) => {
            let sent = put.send(agent, PATIENCE);
            let killed = async {
                // Not a wait for something: the moment is what is drawn.
                tokio::time::sleep(Duration::from_micros(then_us)).await;
                world.store.daemon().kill().expect("a kill");
                world.store.start_again().expect("a store");
            };
            let (told, ()) = tokio::join!(sent, killed);
            return (true, told);
        }
    };
    (between.happened() > before, told)
}

/// Gives the put up as soon as nobody will answer it.
async fn unless_held(between: &Between, put: impl Future<Output = Told>) -> Told {
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

/// Sends it until it is acknowledged, as an agent does.
async fn again(agent: &Agent, put: &Put, what: &str) -> String {
    let mut refusals = Vec::new();
    for _ in 0..TRIES {
        match put.send(agent, PATIENCE).await {
            Ok(note) => return note,
            Err(refusal) => refusals.push(refusal),
        }
    }
    panic!("{what}: not acknowledged behind the fault: {refusals:?}");
}

fn all_is_there_once(world: &World, log: &Log, segments: u64, seed: u64) {
    let number = |what: &str, table: &str| {
        world.number(&format!("SELECT {what} FROM {table} WHERE origin = '{}'", log.origin()))
    };
    let told = format!("the origin's seeds are from {seed} on");
    let all = log.tree.next_seq();
    for what in ["count()", "uniqExact(seq)", "max(seq) + 1"] {
        assert_eq!(number(what, "events"), all, "{what}; {told}");
    }
    for what in ["count()", "uniqExact(first_seq)"] {
        assert_eq!(number(what, "batches"), segments, "{what}; {told}");
    }
    assert_eq!(number("sum(events)", "batches"), all, "{told}");
    assert_eq!(number("count()", "findings"), 0, "nobody did wrong but the store; {told}");
}
