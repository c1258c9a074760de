//! A whole small world: the store, the collector, the agent and the MCP server, a cgroup that the agent watches and one that
//! it does not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::{Agent, AgentConfig};
use crate::approver::Approver;
use crate::cgroup::Cgroup;
use crate::client::{ClientKind, Conversation};
use crate::collector::Collector;
use crate::daemon::{Daemon, tail};
use crate::fleet;
use crate::job::{Job, JobPlan, Trust};
use crate::machine::require_kernel;
use crate::mounts::Mounted;
use crate::net::Net;
use crate::pins::PinFolder;
use crate::places::{Setup, fresh_folder};
use crate::server::{LEGACY_SSE, McpServer, Scheme};
use crate::service::{AGENT_UID, Service};
use crate::store::Store;
use crate::wait::until;

/// How long a client may take for its calls.
pub const CLIENT_DEADLINE: Duration = Duration::from_secs(90);
/// How long a record may take from the wire to the store.
pub const SHIP_DEADLINE: Duration = Duration::from_secs(30);
/// Who approves, unless a test brings others.
pub const APPROVER: &str = "alice@example.test";

/// The rules of the demo and of most tests.
pub const RULES: &str = r#"
[[rule]]
id = "no-deletes"
when = { server = "localhost", method = "tools/call", tool = "delete_*" }
action = "deny"

[[rule]]
id = "deploys-need-a-human"
when = { method = "tools/call", tool = "deploy" }
action = "hold"
"#;

/// What a world is to be like. The default is what most tests want.
#[derive(Debug, Clone)]
pub struct WorldPlan {
    /// In the names of its cgroup and folder.
    pub kind: &'static str,
    pub scheme: Scheme,
    /// Names the MCP server answers to.
    pub names: Vec<&'static str>,
    /// Whether it answers with plain JSON instead of event streams.
    pub answers_json: bool,
    /// Whether it speaks HTTP+SSE, the transport of 2024-11-05.
    pub legacy_sse: bool,
    /// Whether the server's port is on the intercept list.
    pub lists_port: bool,
    /// Ports on that list besides the server's.
    pub more_ports: Vec<u16>,
    /// What the intercept list holds besides it.
    pub intercept_names: Vec<&'static str>,
    pub intercept_cidrs: Vec<&'static str>,
    pub rules: String,
    /// Roots that the agent is told of besides the server's CA.
    pub roots: Vec<PathBuf>,
    /// What else is in the agent's `[upstream]`.
    pub upstream: String,
    /// What is in the agent's `[failure]`.
    pub failure: &'static str,
    /// As whom the agent runs; None: root.
    pub service: Option<Service>,
    pub deadline: &'static str,
    pub keepalive: &'static str,
    /// What else is in the agent's `[approval]`.
    pub approval: &'static str,
    /// Approvers besides the usual one.
    pub colleagues: Vec<&'static str>,
    /// The bytes of a file system of its own below the agent's state; the test has mounts of its own then.
    pub state_bytes: Option<u64>,
    /// Whether the agent ships over TLS, as one of another host does; [`World::enrol`] lets it in.
    pub from_afar: bool,
    /// Whether the agent is told of the server's CA.
    pub trusts_server: bool,
    /// What the agent and the collector log (`RUST_LOG`).
    pub log: &'static str,
    /// Whether the processes live on when the world is gone.
    pub outlives: bool,
}

impl Default for WorldPlan {
    fn default() -> Self {
        Self {
            kind: "world",
            scheme: Scheme::Https,
            names: vec!["localhost"],
            answers_json: false,
            legacy_sse: false,
            lists_port: true,
            more_ports: Vec::new(),
            intercept_names: vec!["localhost"],
            intercept_cidrs: vec!["127.0.0.0/8", "::1/128"],
            rules: RULES.to_owned(),
            roots: Vec::new(),
            upstream: String::new(),
            failure: "",
            service: None,
            deadline: "2m",
            keepalive: "1s",
            approval: "",
            colleagues: Vec::new(),
            state_bytes: None,
            from_afar: false,
            trusts_server: true,
            log: "info",
            outlives: false,
        }
    }
}

/// The world. Dropping it ends all of it, the agent first.
#[derive(Debug)]
pub struct World {
    pub agent: Agent,
    /// Where the agent's hooks outlive it.
    pub pins: PinFolder,
    pub collector: Collector,
    pub store: Store,
    pub server: McpServer,
    pub approver: Approver,
    /// Who else may approve, as the plan names them.
    pub colleagues: Vec<Approver>,
    /// The cgroup whose jobs are intercepted.
    pub selected: Cgroup,
    /// One beside it that is not.
    pub outside: Cgroup,
    parent: Cgroup,
    pub setup: Setup,
    _state_disk: Option<Mounted>,
    folder: tempfile::TempDir,
    jobs: std::cell::Cell<u32>,
}

impl World {
    pub fn start(plan: &WorldPlan) -> Result<Self> {
        let (setup, folder) = Self::ground(plan)?;
        let place = folder.path().join("server");
        let options = [("--json", plan.answers_json), (LEGACY_SSE, plan.legacy_sse)];
        let options: Vec<&str> =
            options.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect();
        let server =
            McpServer::start_with(&setup, &place, plan.scheme, &plan.names, plan.outlives, &options)?;
        Self::around(plan, setup, folder, server)
    }

    /// A world around a server that is started so, with its files in the folder that it is given.
    pub fn around_server(
        plan: &WorldPlan,
        start: impl FnOnce(&Setup, &Path) -> Result<McpServer>,
    ) -> Result<Self> {
        let (setup, folder) = Self::ground(plan)?;
        let server = start(&setup, &folder.path().join("server"))?;
        Self::around(plan, setup, folder, server)
    }

    /// A world around a server in another network namespace, at these addresses.
    pub fn around_server_in(plan: &WorldPlan, net: &Net, addresses: &[&str]) -> Result<Self> {
        let (setup, folder) = Self::ground(plan)?;
        let options: Vec<&str> = addresses.iter().flat_map(|address| ["--address", address]).collect();
        let place = folder.path().join("server");
        let server = McpServer::start_inside(
            Some(net),
            &setup,
            &place,
            plan.scheme,
            &plan.names,
            plan.outlives,
            &options,
        )?;
        Self::around(plan, setup, folder, server)
    }

    fn ground(plan: &WorldPlan) -> Result<(Setup, tempfile::TempDir)> {
        require_kernel()?;
        Ok((Setup::complete()?, fresh_folder(plan.kind)?))
    }

    fn around(plan: &WorldPlan, setup: Setup, folder: tempfile::TempDir, server: McpServer) -> Result<Self> {
        let parent = Cgroup::fresh(plan.kind)?;
        let (selected, outside) = (parent.child("job")?, parent.child("outside")?);
        let store = Store::start(&setup, folder.path(), plan.outlives)?;
        let agent_uid = plan.service.as_ref().map(|_| AGENT_UID);
        let collector = match plan.from_afar {
            true => Collector::start_for_others(&store, folder.path(), plan.log, plan.outlives)?,
            false => Collector::start_for(&store, folder.path(), plan.log, plan.outlives, agent_uid)?,
        };
        let afar = collector.for_others().map(|others| format!("\n[collector]\nurl = {:?}\n", others.url()));
        let approver = Approver::with_new_key(folder.path(), APPROVER)?;
        let colleague = |name: &&str| Approver::with_new_key(folder.path(), name);
        let colleagues = plan.colleagues.iter().map(colleague).collect::<Result<Vec<_>>>()?;
        let signers = folder.path().join("allowed_signers");
        let lines = std::iter::once(&approver).chain(&colleagues).map(Approver::allowed_signers_line);
        std::fs::write(&signers, lines.collect::<Result<String>>()?)?;
        let pins = PinFolder::fresh(plan.kind);
        let config = AgentConfig {
            tenant: "demo".into(),
            default_action: "allow".into(),
            cgroups: vec![selected.path().to_path_buf()],
            pin_dir: pins.path().to_path_buf(),
            failure: plan.failure.into(),
            service: plan.service.clone(),
            collector: afar.is_none().then(|| collector.socket().to_path_buf()),
            protect: vec![store.address().port()],
            names: plan.intercept_names.iter().map(ToString::to_string).collect(),
            cidrs: plan.intercept_cidrs.iter().map(ToString::to_string).collect(),
            // 443: an entry needs a port.
            ports: [&[if plan.lists_port { server.port() } else { 443 }], plan.more_ports.as_slice()]
                .concat(),
            roots: (plan.trusts_server && plan.scheme == Scheme::Https)
                .then(|| server.ca())
                .into_iter()
                .chain(plan.roots.clone())
                .collect(),
            upstream: plan.upstream.clone(),
            allowed_signers: Some(signers),
            deadline: plan.deadline.into(),
            keepalive: plan.keepalive.into(),
            approval: plan.approval.into(),
            rules: plan.rules.clone() + &afar.unwrap_or_default(),
        };
        let state = folder.path().join("state");
        let state_disk = plan.state_bytes.map(|bytes| Mounted::in_memory(&state, bytes)).transpose()?;
        let agent = Agent::start(&config, folder.path(), plan.log, plan.outlives)?;
        let jobs = std::cell::Cell::new(0);
        Ok(Self {
            agent,
            pins,
            collector,
            store,
            server,
            approver,
            colleagues,
            selected,
            outside,
            parent,
            setup,
            _state_disk: state_disk,
            folder,
            jobs,
        })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A job in the watched cgroup that trusts Weir.
    pub fn job(&self) -> JobPlan<'_> {
        self.job_in(&self.selected, Some(self.agent.trust()))
    }

    /// A job beside it, as it was before Weir came.
    pub fn job_outside(&self) -> JobPlan<'_> {
        self.job_in(&self.outside, self.server.trust())
    }

    pub fn job_in<'a>(&'a self, cgroup: &'a Cgroup, trust: Option<Trust>) -> JobPlan<'a> {
        let number = self.jobs.replace(self.jobs.get() + 1);
        JobPlan {
            setup: &self.setup,
            cgroup,
            folder: self.folder.path(),
            name: format!("job-{number}"),
            trust,
        }
    }

    /// Runs a client in the watched cgroup until it ends.
    pub fn converse(&self, kind: ClientKind, host: &str, arguments: &[&str]) -> Result<Conversation> {
        self.start_client(kind, host, arguments)?.finish(CLIENT_DEADLINE)
    }

    /// Starts a client in the watched cgroup.
    pub fn start_client(&self, kind: ClientKind, host: &str, arguments: &[&str]) -> Result<Job> {
        self.job().client(kind, &self.server.url(host), arguments)
    }

    /// Has the agent's host enrolled at the collector, by a new token.
    pub fn enrol(&self) -> Result<()> {
        let others =
            self.collector.for_others().context("the world has no door for agents of other hosts")?;
        let told =
            fleet::enrol(&self.collector, &others.ca.join("ca.pem"), &others.url(), self.agent.config())?;
        ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        Ok(())
    }

    /// Waits until everything the agent has recorded is in the store.
    pub fn until_shipped(&self) -> Result<()> {
        until("the spool to be shipped", SHIP_DEADLINE, || {
            Ok((self.agent.status()?.spool.unshipped_events == 0).then_some(()))
        })
    }

    /// Free SQL over what has arrived; each row an object.
    pub fn sql(&self, question: &str) -> Result<Vec<Value>> {
        self.collector.sql(question)
    }

    /// The rows of a question, once there are `count` of them: what was just seen on the wire may still be on its way.
    pub fn sql_until(&self, count: usize, question: &str) -> Result<Vec<Value>> {
        let mut last = Vec::new();
        let enough = until("rows to arrive in the store", SHIP_DEADLINE, || {
            last = self.sql(question)?;
            Ok((last.len() >= count).then_some(()))
        });
        enough.with_context(|| format!("{count} rows of {question}; there are {last:?}"))?;
        Ok(last)
    }

    /// The one number that a question asks for.
    pub fn number(&self, question: &str) -> Result<u64> {
        let rows = self.sql(question)?;
        let value = rows.first().and_then(Value::as_object).and_then(|row| row.values().next());
        // ClickHouse may quote 64-bit integers in JSON.
        value
            .and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()))
            .with_context(|| format!("no number in {rows:?} for {question}"))
    }

    /// Its processes.
    pub fn daemons(&mut self) -> [&mut Daemon; 4] {
        [self.agent.daemon(), self.collector.daemon(), self.store.daemon(), self.server.daemon()]
    }

    /// Leaves everything in place when dropped. For processes that live on, the plan must say so.
    pub fn keep(&mut self) {
        for cgroup in [&mut self.selected, &mut self.outside, &mut self.parent] {
            cgroup.keep();
        }
        for daemon in self.daemons() {
            daemon.keep();
        }
        self.pins.keep();
        self.folder.disable_cleanup(true);
    }

    /// Shows the end of each process's log.
    pub fn show_logs(&mut self) {
        for daemon in self.daemons() {
            eprintln!("---- the end of {}'s log\n{}", daemon.name(), tail(daemon.log_path(), 30));
        }
    }

    /// The cgroup that holds the others.
    pub fn parent(&self) -> &Cgroup {
        &self.parent
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("the world's files stay in {}", self.folder.path().display());
        }
    }
}
