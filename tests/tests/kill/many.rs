//! The same promise, kill after kill: the agent with its real hooks, collector and store, and between them clients and a server
//! without an SDK, so that two hundred calls are in flight again at once. The oracle is that server's log.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use weir_tests::client::Line;
use weir_tests::job::JobPlan;
use weir_tests::server::Executed;
use weir_tests::soak::{Draw, Soak};
use weir_tests::{Job, McpServer, Scheme, World, WorldPlan, until};

use crate::load::{Lines, Seen};
use crate::schedule::{Moment, Part, shipping};
use crate::{DEADLINE, IN_FLIGHT, SCHEDULED_AT_LEAST, Struck, deal, oracle, segments, until_all_arrived};

/// Clients, each with one call at a time.
const CLIENTS: usize = 260;
/// How long the server takes over a call.
const DELAY: Duration = Duration::from_millis(2500);
/// Calls in flight before a kill is dealt: some end before it strikes.
const BEFORE_A_KILL: usize = 230;
/// What is killed. All clients come back to a new agent, which takes as long as several kills of the others.
const PARTS: [Part; 5] = [Part::Agent, Part::Collector, Part::Collector, Part::Store, Part::Store];
/// Kills with so many calls in flight, of both tests together.
const AT_LEAST: u64 = 50;
/// Each of these met them: one that did not is no case. Of the schedule's twelve some may not have.
const KILLS: u64 = AT_LEAST - SCHEDULED_AT_LEAST;
/// Kills of one world; then all is looked at, and a new one begins.
const KILLS_OF_A_WORLD: u64 = 100;
/// More calls before a kill, and microseconds, at most.
const CALLS: u64 = 40;
const THEN_US: u64 = 300_000;

const RULES: &str = "[[rule]]\nid = \"no-deletes\"\nwhen = { method = \"tools/call\", tool = \"delete_*\" }\naction = \"deny\"\n";

#[test]
fn nothing_is_lost_when_they_are_killed_again_and_again_under_load() -> Result<()> {
    let mut soak = Soak::of("kill", KILLS, 1)?;
    while let Some(first) = soak.next_seed() {
        let kills = (soak.seed() + soak.cases() - first).min(KILLS_OF_A_WORLD);
        let plan = WorldPlan {
            kind: "kills",
            scheme: Scheme::Http,
            rules: RULES.into(),
            log: "warn",
            ..WorldPlan::default()
        };
        let swift = |setup: &_, folder: &Path| McpServer::start_swift(setup, folder, DELAY);
        let mut world = World::around_server(&plan, swift)?;
        // A panic leaves the world's files in place.
        killed_with(&mut world, first..first + kills, &mut soak).unwrap_or_else(|error| {
            panic!("a world of the seeds {first} to {}: {error:?}", first + kills - 1)
        });
    }
    Ok(())
}

fn killed_with(world: &mut World, seeds: std::ops::Range<u64>, soak: &mut Soak) -> Result<()> {
    let began = Instant::now();
    let kills = seeds.end - seeds.start;
    let mut swarm = Swarm::start(world)?;
    let mut struck = Vec::new();
    for seed in seeds {
        strike(world, &mut swarm, seed, &mut struck).with_context(|| format!("seed {seed}"))?;
    }
    swarm.until_in_flight()?;
    swarm.stop()?;
    let events = until_all_arrived(world)?;
    let calls = oracle::recorded(world)?;
    let boots = 1 + struck.iter().filter(|kill| kill.part == Part::Agent).count();
    oracle::the_log_is_whole(world, events, boots)?;
    oracle::each_executed_call_was_recorded_before(&swarm.seen, &calls)?;
    oracle::open_calls_became_unknown(world, &struck, &calls)?;
    let counted = oracle::calls_were_in_flight(IN_FLIGHT, 0, &struck, &swarm.seen, &calls)?;
    let took = began.elapsed().as_secs();
    eprintln!(
        "{kills} kills, {counted} of them with {IN_FLIGHT} calls in flight; {} calls executed, {events} events, {took} s: {:?}",
        swarm.seen.executed.len(),
        oracle::results(&calls)
    );
    // On a busy machine some calls end between the look and the kill. Such a kill was judged like the others, and is no case.
    ensure!(2 * counted as u64 >= kills, "only {counted} of {kills} kills met {IN_FLIGHT} calls in flight");
    soak.held(counted as u64);
    Ok(())
}

fn strike(world: &mut World, swarm: &mut Swarm, seed: u64, struck: &mut Vec<Struck>) -> Result<()> {
    let mut draw = Draw(seed);
    let part = draw.one_of(&PARTS).context("a part")?;
    // Half of them while a segment is on its way.
    let moment = match draw.below(2) {
        0 if part != Part::Agent => shipping(&mut draw),
        _ => Moment::Load { calls: usize::try_from(draw.below(CALLS))?, then_us: draw.below(THEN_US) },
    };
    loop {
        swarm.until_in_flight()?;
        let then_us = match moment {
            Moment::Load { calls, then_us } => {
                swarm.until_executed(calls)?;
                then_us
            }
            Moment::Shipping { then_us } | Moment::WhileDown { then_us, .. } => {
                until_another_is_sealed(world)?;
                then_us
            }
        };
        // Not a wait for something: the moment is what is drawn.
        std::thread::sleep(Duration::from_micros(then_us));
        swarm.look()?;
        if swarm.seen.in_flight() >= BEFORE_A_KILL {
            break;
        }
    }
    let dealt = deal(world, part, moment)?;
    match part {
        Part::Agent => {
            swarm.seen.agent_died(dealt.dead_us);
            let trimmed_below = segments(world)?.first().copied();
            struck.push(Struck { trimmed_below, ..dealt });
            world.agent.start_again()
        }
        Part::Collector => {
            struck.push(dealt);
            world.collector.start_again()
        }
        Part::Store => {
            struck.push(dealt);
            world.store.start_again()
        }
    }
}

/// Waits until a segment is sealed. Unlike the schedule's, it does not wait until those before it are gone: on a busy machine
/// one always waits.
fn until_another_is_sealed(world: &World) -> Result<()> {
    let active = segments(world)?.last().copied();
    until(
        "a segment to be sealed",
        DEADLINE,
        || Ok((segments(world)?.last().copied() > active).then_some(())),
    )
}

/// The clients, in one process.
struct Swarm {
    job: Job,
    told: Lines,
    log: Lines,
    seen: Seen,
}

impl Swarm {
    fn start(world: &World) -> Result<Self> {
        let log = world.server.log();
        std::fs::File::options().create(true).append(true).open(log)?;
        let name = "swarm".to_owned();
        let output = world.folder().join("swarm.out");
        let (setup, cgroup) = (&world.setup, &world.selected);
        let plan = JobPlan { setup, cgroup, folder: world.folder(), name, trust: None };
        let script = include_str!("../../clients/swarm.py");
        let (url, clients) = (world.server.url("127.0.0.1"), CLIENTS.to_string());
        let words =
            [setup.python().into(), "-c".into(), script.into(), url.into(), clients.into(), "n".into()];
        let job = plan.command(&words)?;
        Ok(Self { job, told: Lines::of(&output)?, log: Lines::of(log)?, seen: Seen::default() })
    }

    /// The log first: what it has told and no client has had the answer of is in flight.
    fn look(&mut self) -> Result<()> {
        self.log.fresh::<Executed>()?.into_iter().for_each(|executed| self.seen.executes(executed));
        for line in self.told.fresh()? {
            if let Line::Call(call) = line {
                self.seen.tells(call);
            }
        }
        Ok(())
    }

    fn until_in_flight(&mut self) -> Result<()> {
        until(&format!("{BEFORE_A_KILL} calls to be in flight"), DEADLINE, || {
            self.look()?;
            Ok((self.seen.in_flight() >= BEFORE_A_KILL).then_some(()))
        })
        .with_context(|| format!("{} are", self.seen.in_flight()))
    }

    fn until_executed(&mut self, more: usize) -> Result<()> {
        let goal = self.seen.executed.len() + more;
        until(&format!("{more} more calls to be executed"), DEADLINE, || {
            self.look()?;
            Ok((self.seen.executed.len() >= goal).then_some(()))
        })
    }

    /// Lets the clients end the calls they have begun, and start no more.
    fn stop(&mut self) -> Result<()> {
        ensure!(self.job.ended()?.is_none(), "the clients ended by themselves:\n{}", self.job.stderr()?);
        self.job.signal_client(Signal::SIGTERM)?;
        self.job.finish(DEADLINE)?;
        self.look()
    }
}
