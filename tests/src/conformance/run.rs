//! Runs a suite twice, and puts what the suite found beside what Weir recorded.
//!
//! Of a tested server the suite itself is the job that goes through Weir, of a tested client the client is; what is on the other
//! side runs as Weir's servers do, unseen. Through Weir and without it the commands are the same, and so are the addresses.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::checks::{Difference, Results};
use super::messages::{Log, Said, differences, tells_of_refusal};
use super::suite::{Revision, Side, Suite, client_scenarios, harness};
use crate::job::Job;
use crate::machine::JOB_UID;
use crate::places::free_ports;
use crate::sdk_server::SdkServer;
use crate::server::Scheme;
use crate::wait::until;
use crate::world::{SHIP_DEADLINE, World, WorldPlan};

/// For one run of a suite.
const RUN_DEADLINE: Duration = Duration::from_secs(600);
/// What the suite gives one scenario: much, so that a busy machine is no difference.
const TIMEOUT_MS: u32 = 120_000;
/// Ports that the suite's own servers and ours take from.
const PORTS: u16 = 512;
/// How many of them each tested server may need.
const SERVER_PORTS: u16 = 32;

/// The world in which suites run, and the ports that are intercepted in it.
#[derive(Debug)]
pub struct Ground {
    pub world: World,
    ports: RangeInclusive<u16>,
    runs: u16,
}

/// What came of one suite.
#[derive(Debug, Serialize)]
pub struct Compared {
    pub suite: String,
    pub scenarios: usize,
    pub checks: u64,
    pub passed: u64,
    pub differences: Vec<Difference>,
    /// By the kernel's own count.
    pub connections: u64,
    /// How many of them have a flow record that says terminated.
    pub terminated: u64,
    /// Those that ask the server for a certificate of another name, in a scenario that is compared in plain text; refused.
    pub misnamed: u64,
    /// How many of those there may be: of the scenarios in [`PLAIN_ALONE`](super::suite::PLAIN_ALONE) one asks so, once.
    pub may_be_misnamed: u64,
    /// Those that the client closed before it had said a word: there is nothing to terminate.
    pub silent: u64,
    /// What became of each of the rest.
    pub others: Vec<String>,
    /// The connections that the suite itself made, of a tested server, or accepted, of a tested client: none that the kernel did not
    /// count, and none of a client's that Weir did not terminate. One that is given up in its handshake the suite does not tell of.
    pub seen_by_suite: u64,
    #[serde(skip)]
    side: Side,
    pub messages: usize,
    /// Requests that Weir itself refused, as the suite's log and as the record tell it.
    pub refused: u64,
    pub refusals_recorded: u64,
    /// Messages of the suite's log that are not in the record, and the other way about.
    pub unrecorded: Vec<String>,
    pub unlogged: Vec<String>,
    pub seconds: f64,
}

impl Compared {
    pub fn holds(&self) -> bool {
        self.differences.is_empty()
            && self.checks > 0
            && self.connections > 0
            && self.terminated + self.misnamed + self.silent == self.connections
            && self.misnamed <= self.may_be_misnamed
            && self.seen_by_suite_is_so()
            && self.others.is_empty()
            && self.messages > 0
            && self.refused == self.refusals_recorded
            && self.unrecorded.is_empty()
            && self.unlogged.is_empty()
    }

    fn seen_by_suite_is_so(&self) -> bool {
        let most = match self.side {
            Side::Server => self.connections,
            Side::Client => self.terminated,
        };
        (1..=most).contains(&self.seen_by_suite)
    }
}

/// One run's folder, which the job may write to.
struct Place {
    folder: PathBuf,
}

impl Place {
    fn make(above: &Path, name: &str) -> Result<Self> {
        let folder = above.join(name);
        std::fs::create_dir_all(&folder)?;
        std::os::unix::fs::chown(&folder, Some(JOB_UID), Some(JOB_UID))?;
        Ok(Self { folder })
    }

    fn results(&self) -> PathBuf {
        self.folder.join("results")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log.jsonl")
    }
}

impl Ground {
    pub fn start() -> Result<Self> {
        let ports = free_ports(PORTS)?;
        let plan = WorldPlan {
            kind: "conformance",
            more_ports: ports.clone().collect(),
            rules: String::new(),
            log: "warn",
            ..WorldPlan::default()
        };
        Ok(Self { world: World::start(&plan)?, ports, runs: 0 })
    }

    /// Runs a suite directly and through Weir.
    pub fn compare(&mut self, suite: &Suite) -> Result<Compared> {
        let began = Instant::now();
        let (server, url) = match suite.side {
            Side::Server => {
                // Another port each time: nothing that was learned of one server is another's.
                let port = self.ports.start() + self.runs % SERVER_PORTS;
                let server = SdkServer::start(&self.world, suite.sdk, suite.scheme, port)?;
                let url = server.url("localhost");
                (Some(server), url)
            }
            Side::Client => (None, String::new()),
        };
        let directly = self.run(suite, &url, false)?;
        let (before, seq) = (self.world.agent.status()?.connects.redirected, self.last_seq()?);
        let through = self.run(suite, &url, true)?;
        drop(server);
        let connections = self.world.agent.status()?.connects.redirected - before;
        let flows = self.flows(seq, connections)?;
        let (recorded, refusals_recorded) = self.recorded(seq)?;
        let log = Log::read(&through.log())?;
        let (messages, refused, seen_by_suite) = (log.messages.len(), log.refused, log.connections);
        let (missing, surplus) = differences(log, recorded);
        let [directly, through] = [directly, through].map(|place| Results::read(&place.results()));
        let (directly, through) = (directly?, through?);
        let compares = |scenario: &str| suite.compares(scenario);
        let (checks, passed) = directly.count(compares);
        let others: Vec<_> = flows
            .iter()
            .filter(|flow| !is_terminated(flow) && !is_misnamed(flow) && !is_silent(flow))
            .collect();
        let tell = |all: Vec<Said>| all.iter().map(Said::tell).collect();
        Ok(Compared {
            suite: suite.to_string(),
            scenarios: directly.scenarios().filter(|name| compares(name)).count(),
            checks,
            passed,
            differences: directly.differences(&through, compares),
            connections,
            terminated: flows.iter().filter(|flow| is_terminated(flow)).count() as u64,
            silent: flows.iter().filter(|flow| is_silent(flow)).count() as u64,
            others: others.into_iter().map(Value::to_string).collect(),
            misnamed: flows.iter().filter(|flow| is_misnamed(flow)).count() as u64,
            may_be_misnamed: u64::from((suite.side, suite.scheme) == (Side::Server, Scheme::Https)),
            seen_by_suite,
            side: suite.side,
            messages,
            refused,
            refusals_recorded,
            unrecorded: tell(missing),
            unlogged: tell(surplus),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Runs the suite once; where its results are.
    fn run(&mut self, suite: &Suite, url: &str, through: bool) -> Result<Place> {
        self.runs += 1;
        let name = format!("conformance-{}", self.runs);
        let place = Place::make(self.world.folder(), &name)?;
        let each: Vec<Option<String>> = match (&suite.scenarios, suite.side) {
            (Some(scenarios), _) => scenarios.iter().map(|name| Some((*name).to_owned())).collect(),
            (None, Side::Server) => vec![None],
            // One by one: by itself the suite starts all clients at once, and on a small machine some give up by the clock.
            (None, Side::Client) => {
                client_scenarios(&self.world.setup, suite.revision)?.into_iter().map(Some).collect()
            }
        };
        for scenario in each {
            let mut command = self.harness(suite, &place);
            match suite.side {
                Side::Server => command.extend(["server".into(), "--url".into(), url.into()]),
                Side::Client => {
                    let client = self.client(suite, &place, through)?;
                    command.extend(["client".into(), "--command".into(), client.into()]);
                }
            }
            match scenario {
                None => command.extend(["--requirements", suite.revision.name()].map(OsString::from)),
                Some(name) => {
                    let revision = suite.revision.name();
                    command.extend(["--scenario", &name, "--spec-version", revision].map(OsString::from));
                }
            }
            command.extend(["--timeout".into(), TIMEOUT_MS.to_string().into()]);
            command.extend(["-o".into(), place.results().into()]);
            self.run_command(suite, &place, &command, through)?;
        }
        Ok(place)
    }

    fn harness(&self, suite: &Suite, place: &Place) -> Vec<OsString> {
        let first = self.ports.start() + SERVER_PORTS;
        let mut command: Vec<OsString> = vec!["/usr/bin/env".into()];
        command.push(format!("WEIR_TAP={}", place.log().display()).into());
        if suite.side == Side::Client {
            command.push(format!("WEIR_TAP_PORTS={first}-{}", self.ports.end()).into());
        }
        command.extend(harness(&self.world.setup));
        command
    }

    fn run_command(&self, suite: &Suite, place: &Place, command: &[OsString], through: bool) -> Result<()> {
        let mut job: Job = match (suite.side, through) {
            (Side::Server, true) => self.world.job().command(command)?,
            (Side::Server, false) => self.world.job_outside().command(command)?,
            // Its client joins the watched cgroup by itself, which takes root.
            (Side::Client, _) => self.world.job_outside().command_as_root(command)?,
        };
        // A scenario that fails makes the suite fail: what counts is in its results.
        job.wait(RUN_DEADLINE)?;
        let output = || format!("{}{}", job.stdout().unwrap_or_default(), job.stderr().unwrap_or_default());
        ensure!(place.results().exists(), "the suite has no results; it said: {}", output());
        Ok(())
    }

    /// A file that runs the client as a job does: in the watched cgroup or beside it.
    fn client(&self, suite: &Suite, place: &Place, through: bool) -> Result<PathBuf> {
        let cgroup = if through { &self.world.selected } else { &self.world.outside };
        let quoted = |word: OsString| format!("'{}'", word.to_string_lossy());
        let command: Vec<String> = suite.sdk.client(&self.world.setup)?.into_iter().map(quoted).collect();
        let text = format!(
            "#!/bin/sh\necho $$ > '{}/cgroup.procs' || exit 97\n\
             exec setpriv --reuid {JOB_UID} --regid {JOB_UID} --clear-groups --no-new-privs -- {} \"$@\"\n",
            cgroup.path().display(),
            command.join(" "),
        );
        let file = place.folder.join("client.sh");
        std::fs::write(&file, text)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
        Ok(file)
    }

    fn last_seq(&self) -> Result<u64> {
        self.world.until_shipped()?;
        self.world.number("SELECT max(seq) FROM events")
    }

    /// The records of the connections since, once there are as many as the kernel counted.
    fn flows(&self, since: u64, connections: u64) -> Result<Vec<Value>> {
        let question = format!(
            "SELECT flow_treatment, flow_end, tls_client_server_name, server_port, bytes_up, bytes_down, connect_reason FROM flows WHERE seq > {since}"
        );
        let mut last = Vec::new();
        let enough = until("each connection to have its record", SHIP_DEADLINE, || {
            last = self.world.sql(&question)?;
            Ok((last.len() as u64 >= connections).then_some(()))
        });
        enough.with_context(|| format!("{} of {connections} connections", last.len()))?;
        self.world.until_shipped()?;
        Ok(last)
    }

    /// The messages recorded since, and how many refusals of Weir's own.
    fn recorded(&self, since: u64) -> Result<(Vec<Said>, u64)> {
        let question = format!(
            "SELECT e.kind AS kind, if(e.kind = 'outcome', c.jsonrpc_request_id, e.jsonrpc_request_id) AS jsonrpc_request_id, \
             e.mcp_method_name AS mcp_method_name, e.message_direction AS message_direction, e.message_label AS message_label, \
             e.result AS result, e.rpc_response_status_code AS rpc_response_status_code, e.payload AS payload, \
             e.payload_truncated AS payload_truncated, e.payload_masked_detectors AS payload_masked_detectors \
             FROM events AS e LEFT JOIN (SELECT call_id, jsonrpc_request_id FROM events WHERE kind = 'intent') AS c \
             ON e.call_id = c.call_id WHERE e.seq > {since} AND e.kind IN ('intent', 'outcome', 'message') ORDER BY e.seq"
        );
        let rows = self.world.sql(&question)?;
        let refusals = rows.iter().filter(|row| tells_of_refusal(row)).count() as u64;
        let said = rows.iter().map(Said::recorded).collect::<Result<Vec<_>>>()?;
        Ok((said.into_iter().flatten().collect(), refusals))
    }
}

fn is_terminated(flow: &Value) -> bool {
    flow["flow_treatment"] == "terminated"
}

fn is_silent(flow: &Value) -> bool {
    let bytes = |column: &str| flow[column].as_u64().or_else(|| flow[column].as_str()?.parse().ok());
    flow["flow_treatment"] == "refused"
        && flow["flow_end"] == "closed"
        && bytes("bytes_up") == Some(0)
        && bytes("bytes_down") == Some(0)
}

fn is_misnamed(flow: &Value) -> bool {
    let name = flow["tls_client_server_name"].as_str().unwrap_or_default();
    flow["flow_end"] == "upstream_untrusted" && !["", "localhost"].contains(&name)
}

/// The revisions that a caller may ask for, by name.
impl std::str::FromStr for Revision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::BOTH.into_iter().find(|revision| revision.name() == name);
        known.ok_or_else(|| format!("{name} is none of the suite's revisions: 2025-11-25, 2026-07-28"))
    }
}
