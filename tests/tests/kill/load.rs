//! The load: several real clients with many calls at a time, and what they and the server's log say while it runs.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use weir_tests::client::Line;
use weir_tests::job::JobPlan;
use weir_tests::server::Executed;
use weir_tests::{Call, ClientKind, Conversation, Job, Trust, World, until};

/// Client processes. More Python than TypeScript: when the agent dies, the TypeScript SDK does not fail the calls whose
/// answer had begun, but lets them run into their timeout.
const PROCESSES: [ClientKind; 4] =
    [ClientKind::Python, ClientKind::Python, ClientKind::Python, ClientKind::TypeScript];
/// Calls that each of them keeps in flight.
const AT_ONCE: usize = 100;
/// How long the server takes over a call: long enough that most of the calls wait for it, and not for a processor.
const DELAY_MS: u32 = 5000;
/// How long a client waits for an answer.
const TIMEOUT_MS: u32 = 15_000;
/// The code of a refusal.
pub const REFUSED: i64 = -31403;

/// What the server's log and the clients have said so far.
#[derive(Default)]
pub struct Seen {
    pub executed: HashMap<String, Executed>,
    /// Nonces that the log holds more than once.
    pub executed_again: Vec<String>,
    pub told: HashMap<String, Call>,
    in_flight: HashSet<String>,
    /// When the agent died last, and with it all that was in flight: not each client tells of that.
    died_us: i64,
}

impl Seen {
    pub fn executes(&mut self, executed: Executed) {
        if executed.time_ns / 1000 > self.died_us {
            self.in_flight.insert(executed.nonce.clone());
        }
        if let Some(before) = self.executed.insert(executed.nonce.clone(), executed) {
            self.executed_again.push(before.nonce);
        }
    }

    pub fn tells(&mut self, call: Call) {
        self.in_flight.remove(&call.nonce);
        self.told.insert(call.nonce.clone(), call);
    }

    /// Calls that the server has begun and whose answer no client has.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What was in flight when the agent died is so no more.
    pub fn agent_died(&mut self, at_us: i64) {
        self.died_us = at_us;
        self.in_flight.clear();
    }
}

/// The clients, and the one whose calls policy refuses.
pub struct Load {
    jobs: Vec<(ClientKind, Job, Lines)>,
    refused: (Job, Lines),
    log: Lines,
    pub seen: Seen,
    /// Calls for which the client came to the server itself and did not believe that it was the server.
    turned_away: HashMap<ClientKind, usize>,
}

impl Load {
    /// Starts all clients; they trust Weir's CA and nothing else.
    pub fn start(world: &World) -> Result<Self> {
        let server_log = world.folder().join("server/calls.jsonl");
        File::options().create(true).append(true).open(&server_log)?;
        let arguments = format!("{{\"delay_ms\":{DELAY_MS}}}");
        let (at_once, timeout) = (AT_ONCE.to_string(), TIMEOUT_MS.to_string());
        let mut jobs = Vec::new();
        for (number, kind) in PROCESSES.into_iter().enumerate() {
            let name = format!("load-{number}");
            let options = [
                "--in-flight",
                &at_once,
                "--arguments",
                &arguments,
                "--nonce",
                &name,
                "--timeout-ms",
                &timeout,
            ];
            let (job, lines) = start(world, kind, &name, &options)?;
            jobs.push((kind, job, lines));
        }
        let options = ["--tool", "delete_repo", "--nonce", "refused", "--timeout-ms", &timeout];
        let refused = start(world, ClientKind::TypeScript, "refused", &options)?;
        Ok(Self {
            jobs,
            refused,
            log: Lines::of(&server_log)?,
            seen: Seen::default(),
            turned_away: HashMap::new(),
        })
    }

    /// Reads what has come since the last time. The server's log first: what it has told and the client has not had
    /// the answer of afterwards was in flight at the moment between.
    pub fn look(&mut self) -> Result<()> {
        self.log.fresh()?.into_iter().for_each(|executed| self.seen.executes(executed));
        let outputs = self.jobs.iter_mut().map(|(kind, _, lines)| (*kind, lines));
        for (kind, lines) in outputs.chain([(ClientKind::TypeScript, &mut self.refused.1)]) {
            for line in lines.fresh()? {
                let call = match line {
                    Line::Call(call) => call,
                    // A Python session that cannot begin makes no calls.
                    Line::SessionLost { message } if is_turned_away(&message) => {
                        *self.turned_away.entry(kind).or_default() += 1;
                        continue;
                    }
                    _ => continue,
                };
                if call.message.as_deref().is_some_and(is_turned_away) {
                    *self.turned_away.entry(kind).or_default() += 1;
                }
                self.seen.tells(call);
            }
        }
        Ok(())
    }

    /// How often clients of a kind came to the server without Weir, and turned away.
    pub fn turned_away(&self, kind: ClientKind) -> usize {
        self.turned_away.get(&kind).copied().unwrap_or_default()
    }

    /// Waits until the server has executed so many more calls.
    pub fn until_executed(&mut self, more: usize, deadline: Duration) -> Result<()> {
        let goal = self.seen.executed.len() + more;
        until(&format!("{more} more calls to be executed"), deadline, || {
            self.look()?;
            Ok((self.seen.executed.len() >= goal).then_some(()))
        })
    }

    /// Waits until so many calls are in flight.
    pub fn until_in_flight(&mut self, calls: usize, deadline: Duration) -> Result<()> {
        let waited = until(&format!("{calls} calls to be in flight"), deadline, || {
            self.look()?;
            Ok((self.seen.in_flight() >= calls).then_some(()))
        });
        waited.with_context(|| format!("{} are", self.seen.in_flight()))
    }

    /// Lets the clients end the calls they have begun, and start no more. Gives what each told.
    pub fn stop(&mut self, deadline: Duration) -> Result<Vec<Conversation>> {
        let mut jobs: Vec<&mut Job> = self.jobs.iter_mut().map(|(_, job, _)| job).collect();
        jobs.push(&mut self.refused.0);
        for job in &mut jobs {
            ensure!(job.ended()?.is_none(), "a client ended by itself:\n{}", job.stderr()?);
            job.signal_client(Signal::SIGTERM)?;
        }
        let told = jobs.into_iter().map(|job| job.finish(deadline)).collect();
        self.look()?;
        told
    }
}

fn start(world: &World, kind: ClientKind, name: &str, options: &[&str]) -> Result<(Job, Lines)> {
    // Not the bundle: the CA of the server itself is in there too.
    let trust = Trust::only(&world.agent.status()?.ca.certificate);
    let (setup, cgroup, name) = (&world.setup, &world.selected, name.to_owned());
    let output = world.folder().join(format!("{name}.out"));
    let plan = JobPlan { setup, cgroup, folder: world.folder(), name, trust: Some(trust) };
    let options = [&["--load"], options].concat();
    Ok((plan.client(kind, &world.server.url("localhost"), &options)?, Lines::of(&output)?))
}

/// Node says it by OpenSSL's name for it, Python by its sentence.
fn is_turned_away(message: &str) -> bool {
    ["SELF_SIGNED_CERT_IN_CHAIN", "UNABLE_TO_VERIFY_LEAF_SIGNATURE", "CERTIFICATE_VERIFY_FAILED"]
        .iter()
        .any(|name| message.contains(name))
}

/// The whole lines of a file that grows, each once.
pub struct Lines {
    file: File,
    rest: Vec<u8>,
}

impl Lines {
    pub fn of(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { file, rest: Vec::new() })
    }

    /// Those that came since the last time.
    pub fn fresh<T: DeserializeOwned>(&mut self) -> Result<Vec<T>> {
        self.file.read_to_end(&mut self.rest)?;
        let end = self.rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let whole = self.rest.drain(..end).collect::<Vec<_>>();
        let lines = whole.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let text = || format!("a line: {}", String::from_utf8_lossy(line));
                serde_json::from_slice(line).with_context(text)
            })
            .collect()
    }
}
