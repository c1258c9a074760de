//! A running agent: every room set up, in order, and taken down again in order. `weir agent` runs one until
//! it is told to stop; `weir run` runs one for as long as its command lives.

mod renamed;
mod replace;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir_core::ids::Boot;
use weir_core::mask::{MaskKey, Masker};
use weir_core::record::policy_loaded;
use weir_ebpf::{Settings, action};

use crate::account::{Accounts, Listener};
use crate::admin::{
    self, CaStatus, CallStatus, ConnectStatus, Desk, EvidenceStatus, ListenStatus, SpoolStatus, Status,
};
use crate::approval::Approvals;
use crate::config::{Config, Failure, Mode};
use crate::gate::{Gate, HeldCalls, Place, Sessions};
use crate::handover::{Asking, Sockets};
use crate::intercept::{Interceptor, Listeners};
use crate::kernel::pins::Pins;
use crate::kernel::{Hooks, KernelError, Plan, check_host, may_enter_namespaces};
use crate::ledger::{Ledger, LedgerConfig, Tap};
use crate::lineage::Lineage;
use crate::netns::Namespaces;
use crate::process::Processes;
use crate::select::Selection;
use crate::share::Shares;
use crate::ship::{Collector, Exempt, Shipper, Witness};
use crate::spool::{Folder, Limits};
use crate::tasks::Tasks;
use crate::tls::{Minter, UpstreamTls};
use crate::trust::{Authority, secret};
use crate::watch::watch;
use crate::{memory, random};
use replace::Old;

/// How long flows may finish what they carry when the agent ends.
const DRAIN: Duration = Duration::from_secs(5);
/// How long flows that did not finish may take to close.
const CLOSE: Duration = Duration::from_secs(5);
/// How long the last events may take to be on disk.
const LAST_EVENTS: Duration = Duration::from_secs(10);
/// How long the last records may take to arrive.
const LAST_SHIPMENT: Duration = Duration::from_secs(5);
/// How long a connect that was never accepted keeps its origin.
const PENDING_KEPT: Duration = Duration::from_secs(60);
/// How often such origins are looked for.
const SWEEP: Duration = Duration::from_secs(15);

/// See the module.
pub struct Agent {
    hooks: Arc<Hooks>,
    accounts: Arc<Accounts>,
    gate: Arc<Gate>,
    authority: Arc<Authority>,
    shipper: Option<Arc<Shipper>>,
    status: Arc<dyn Fn() -> Status + Send + Sync>,
    boot: Boot,
    /// Where connections come in, to be handed over.
    sockets: Vec<Sockets>,
    /// Processes that ask to take this one's place.
    successors: mpsc::Receiver<Asking>,
    /// Cancelled when flows have ended: everything else does.
    ending: CancellationToken,
    background: Vec<JoinHandle<()>>,
    accepting: JoinHandle<()>,
    /// What only one agent may do at a time, and until when.
    on_duty: CancellationToken,
    duties: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Sets everything up and attaches the hooks; when it returns, connections are being intercepted. `tap`
    /// sees each event as soon as it is on disk.
    ///
    /// # Errors
    /// One sentence that names the fault and the mend: no privilege, no BTF or cgroup2, a port that is taken,
    /// a CA that is not Weir's, a spool that another agent writes.
    pub async fn start(config: Config, tap: Option<Tap>) -> Result<Self> {
        Self::begin(config, tap, None).await
    }

    async fn begin(config: Config, tap: Option<Tap>, old: Option<Old>) -> Result<Self> {
        check_host()?;
        let state_dir = config.state_dir.clone();
        make_state_dir(&state_dir)?;
        let host = hostname();
        let authority = Arc::new(Authority::open_or_create(&state_dir.join("ca"), &host)?);
        let masker = Masker::new(MaskKey::new(secret(&state_dir.join("keys"), "mask.key")?));
        let upstream = UpstreamTls::new(&config.upstream)?;
        // What is wrong is to be found before anything is taken from anybody.
        Selection::new(&config.select)?;
        let (old, lock) = old.map_or((None, None), |old| (Some(old.agent), old.lock));
        let pins = match (config.kernel.pin_dir.as_deref(), lock) {
            (Some(folder), Some(lock)) => Some(Pins::take_over(folder, lock).map_err(KernelError::from)?),
            (Some(folder), None) => Some(Pins::open(folder).map_err(KernelError::from)?),
            (None, _) => None,
        };
        let plan = Plan { pins, own_ports: &config.protected_ports, ..Plan::default() };
        let hooks = Arc::new(Hooks::load(plan)?);
        let processes = Arc::new(Processes::new(masker.clone(), hooks.epoch()));

        let boot = Boot::from_random(random::bytes());
        let folder = Folder::open(state_dir.join("spool")).context("cannot open the spool")?;
        let (tenant, masked) = (config.tenant.clone(), masker.clone());
        let own_folder: Arc<Folder> =
            Arc::new(Folder::open(&state_dir).context("cannot open the state folder")?);
        let ledger_config = LedgerConfig {
            keys: own_folder.clone(),
            limits: Limits { seal_bytes: config.spool.segment_bytes, ..Limits::of(config.spool.max_bytes) },
            seal_after: config.spool.seal_after,
            idle_seal_after: config.spool.idle_seal_after,
            heartbeat: config.spool.heartbeat,
            tap,
            ..LedgerConfig::new(Arc::new(folder), tenant, host.clone(), boot.clone(), masked)
        };
        let for_one_command = ledger_config.tap.is_some();
        let listen = &config.listen;
        let (ledger, listeners, letting_go) = match old {
            Some(old) => replace::take_over(old, ledger_config, hooks.netns_cookie(), listen).await?,
            None => {
                let listeners = Listeners::open(listen)?;
                (replace::open(ledger_config, state_dir.join("spool")).await?, listeners, None)
            }
        };
        let (v4, v6) = listeners.addresses().context("cannot tell the listeners' addresses")?;
        let (failure, unknown) = (config.failure, config.egress.default.action());
        hooks.change_settings(|settings| hold_without_an_agent(settings, failure))?;
        listeners.announce(&hooks)?;
        // What comes later goes before what is the same.
        let destinations = [config.egress.destinations(), config.intercept.destinations()].concat();
        hooks.set_destinations(&destinations)?;
        hooks.change_settings(|settings| settings.unknown = unknown)?;
        // Only now is the folder this agent's alone: the bundle may be another's, that is running.
        authority.write_bundle(&config.upstream.roots)?;
        let place = Place { tenant: config.tenant.clone(), host, origin: ledger.origin().clone() };
        let collector = config.collector.as_ref().map(|place| Collector::of(place, Some(exempt(&hooks))));
        let approvals = Approvals::new(collector.clone(), place.origin.clone());
        // Before any call is decided on by it.
        ledger.note(policy_loaded(&config.policy, &masker)).await.context("cannot record the policy")?;
        let gate = Arc::new(Gate {
            policy: config.policy,
            ledger: ledger.clone(),
            masker: masker.clone(),
            approvals: approvals.clone(),
            approval: config.approval,
            limits: config.limits,
            place: place.clone(),
            held: HeldCalls::default(),
            sessions: Sessions::default(),
            shares: Shares::new(&config.limits),
            tasks: Tasks::default(),
        });
        let ending = CancellationToken::new();
        let own_ports = config.protected_ports.iter().copied().chain([v4.port(), v6.port()]).collect();
        let minter = Minter::new(authority.clone())?;
        let every = config.accounting.every;
        let (namespaces, wanted, opened) = Namespaces::new(hooks.clone(), ledger.clone(), masker.clone())
            .context("cannot look at this network namespace in /proc")?;
        let seeing = namespaces.clone();
        let listener: Listener = Arc::new(move |origin| seeing.refused(origin));
        let accounts = Accounts::new(hooks.clone(), ledger.clone(), processes, every, Some(listener));
        let interceptor = Interceptor::new(
            gate.clone(),
            accounts.clone(),
            hooks.clone(),
            config.intercept,
            minter,
            upstream,
            own_ports,
        );
        let interceptor = Arc::new(interceptor);
        let shipper = collector
            .map(|collector| Arc::new(Shipper::new(collector, ledger.clone(), masker.clone(), own_folder)));
        let listen = ListenStatus { v4: v4.to_string(), v6: v6.to_string() };
        let witness = shipper.as_ref().map(|shipper| shipper.witness());
        let status = status(hooks.clone(), ledger.clone(), authority.clone(), place, listen, witness);
        let (ask, successors) = mpsc::channel(1);
        let successors_to = (!for_one_command).then_some(ask);
        let desk = Desk {
            status: status.clone(),
            namespaces: namespaces.clone(),
            ledger: ledger.clone(),
            successors: successors_to,
        };
        let admin = admin::socket(&state_dir);
        let admin = admin::listen(&admin).with_context(|| format!("cannot listen on {}", admin.display()))?;

        // Before the hooks are touched: the old agent watches them.
        let predecessor = match letting_go {
            Some(old) => {
                tokio::task::spawn_blocking(move || old.until_done()).await?;
                Some(replace::gone(ledger.clone()))
            }
            None => None,
        };
        // Until here the old agent followed what was selected, and may have put its own settings back with that.
        hooks.take_over()?;
        hooks.change_settings(|settings| {
            hold_without_an_agent(settings, failure);
            settings.unknown = unknown;
        })?;
        let lineage = Lineage::start(
            hooks.clone(),
            accounts.clone(),
            &config.select,
            &config.stdio,
            namespaces.clone(),
        )?;
        hooks.settle()?;
        // Before anybody is told that the agent is ready.
        namespaces.take_up().await?;
        let sockets =
            vec![listeners.sockets(hooks.netns_cookie()).context("cannot copy a listener's handle")?];
        let on_duty = ending.child_token();
        let mut duties = vec![
            tokio::spawn(lineage.run(ledger.clone(), on_duty.clone())),
            tokio::spawn(namespaces.clone().run(wanted, on_duty.clone())),
            tokio::spawn(admin::serve(admin, Arc::new(desk), on_duty.clone())),
            tokio::spawn(accounts.clone().run(predecessor, on_duty.clone())),
            tokio::spawn(until(on_duty.clone(), sweep(accounts.clone()))),
            tokio::spawn(until(on_duty.clone(), give_back(gate.clone()))),
            tokio::spawn(until(
                on_duty.clone(),
                watch(hooks.clone(), gate.ledger.clone(), gate.masker.clone()),
            )),
        ];
        let background = vec![tokio::spawn(until(ending.clone(), async move { approvals.run().await }))];
        let accepting = tokio::spawn(interceptor.accept(listeners, opened));
        if let Some(shipper) = shipper.clone() {
            // A collector that does not answer must not keep the agent from ending.
            let collector = shipper.collector.clone();
            duties
                .push(tokio::spawn(until(on_duty.clone(), async move { collector.keep_certified().await })));
            duties.push(tokio::spawn(until(on_duty.clone(), async move { shipper.run().await })));
        }
        Ok(Self {
            hooks,
            accounts,
            gate,
            authority,
            shipper,
            status,
            boot,
            sockets,
            successors,
            ending,
            background,
            accepting,
            on_duty,
            duties,
        })
    }

    pub fn status(&self) -> Status {
        (self.status)()
    }

    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    pub fn ledger(&self) -> &Ledger {
        &self.gate.ledger
    }

    /// The variables that make a job's clients trust Weir's CA.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        self.authority.environment()
    }

    /// Lets flows finish, writes the last events, and ships what it can. What does not arrive in time waits
    /// in the spool for the next start.
    pub async fn stop(self) -> Result<()> {
        let Self { hooks, accounts, gate, shipper, ending, background, accepting, duties, .. } = self;
        if !gate.tasks.end(DRAIN, CLOSE).await {
            tracing::warn!("connections that did not end in time were closed");
        }
        accounts.finish().await;
        accounts.end();
        ending.cancel();
        for task in background.into_iter().chain([accepting]).chain(duties) {
            task.await.context("a task of the agent's failed")?;
        }
        let written = tokio::time::timeout(LAST_EVENTS, gate.ledger.shutdown()).await;
        written
            .context("the disk did not take the last events in time")?
            .context("the last events were lost")?;
        if let Some(shipper) = shipper {
            match tokio::time::timeout(LAST_SHIPMENT, shipper.ship_all()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the last records wait in the spool"),
                Err(_) => tracing::warn!("the last records wait in the spool: the collector is slow"),
            }
        }
        drop(hooks);
        Ok(())
    }
}

fn status(
    hooks: Arc<Hooks>,
    ledger: Ledger,
    authority: Arc<Authority>,
    place: Place,
    listen: ListenStatus,
    witness: Option<Arc<Witness>>,
) -> Arc<dyn Fn() -> Status + Send + Sync> {
    let missing = missing(&hooks);
    Arc::new(move || {
        let counts = hooks.counts();
        let ready = counts.is_ok();
        let counts = counts.unwrap_or_default();
        let (usage, health) = (ledger.usage(), ledger.health());
        Status {
            ready,
            pid: std::process::id(),
            origin: place.origin.clone(),
            listen: listen.clone(),
            missing: missing.clone(),
            connects: ConnectStatus {
                redirected: counts.redirected,
                passed: counts.passed,
                refused: counts.refused,
                unanswered: counts.unanswered,
                failed: counts.failed,
            },
            calls: CallStatus {
                open: health.open_calls,
                owed_outcomes: health.owed_outcomes,
                lost_notes: health.lost_notes,
                unwaited_intents: health.unwaited_intents,
                fault: health.fault,
            },
            spool: SpoolStatus {
                segments: usage.segments,
                unshipped_events: usage.events,
                bytes: usage.bytes,
                set_aside_bytes: usage.aside_bytes,
                seal_after_ms: u64::try_from(health.seal_after.as_millis()).unwrap_or(u64::MAX),
            },
            evidence: EvidenceStatus {
                standing: ledger.standing(),
                witnessed: witness.as_ref().and_then(|witness| witness.to()),
            },
            ca: CaStatus {
                issuer: authority.issuer().to_owned(),
                certificate: authority.certificate_path(),
                bundle: authority.bundle_path(),
            },
        }
    })
}

/// What this host does not let Weir do, with what is lost by it.
fn missing(hooks: &Hooks) -> Vec<String> {
    let unseen = |why| {
        format!(
            "sockets of families that no hook sees (AF_PACKET and the like) are looked for each second alone, and one that lived for less is not recorded: {why}"
        )
    };
    let mut missing: Vec<String> = hooks.socket_fault().map(unseen).into_iter().collect();
    if !may_enter_namespaces() {
        missing
            .push("connects of jobs in network namespaces of their own are refused: no CAP_SYS_ADMIN".into());
    }
    missing
}

/// What the hooks do when nobody listens.
fn hold_without_an_agent(settings: &mut Settings, failure: Failure) {
    let open = |mode: Mode, action: u32| u32::from(mode == Mode::Open) << action;
    settings.open_actions =
        open(failure.intercepted, action::INTERCEPT) | open(failure.relayed, action::RELAY);
    settings.errno = failure.errno.number();
}

async fn until(ending: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = ending.cancelled() => {}
    }
}

/// What keeps the hooks off the agent's own connections, should its cgroup or its user be selected.
fn exempt(hooks: &Arc<Hooks>) -> Exempt {
    let hooks = hooks.clone();
    Arc::new(move |socket| hooks.exempt(socket).map_err(std::io::Error::other))
}

async fn sweep(accounts: Arc<Accounts>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        match accounts.sweep(PENDING_KEPT).await {
            Ok(0) => {}
            Ok(swept) => tracing::warn!(swept, "connects that were never accepted"),
            Err(error) => tracing::error!(%error, "cannot look for connects that were never accepted"),
        }
    }
}

async fn give_back(gate: Arc<Gate>) {
    memory::give_back_when_idle(|| gate.shares.no_flows()).await;
}

/// Others may pass through (jobs read the CA's bundle below it), and may not look.
pub fn make_state_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path).with_context(|| {
        format!("cannot make the state folder {}; set state_dir to one that can be", path.display())
    })
}

/// What this host calls itself.
pub fn hostname() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}
