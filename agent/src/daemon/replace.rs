//! An agent that takes another's place, and one whose place is taken. See [`crate::handover`] for what the two say.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use weir_core::record::AgentEvent;

use super::{Agent, CLOSE, DRAIN, LAST_EVENTS, renamed};
use crate::config::{Config, Listen};
use crate::handover::{Asking, Estate, HandoverError, Inheritance, Predecessor, give};
use crate::intercept::Listeners;
use crate::ledger::{Ledger, LedgerConfig};

/// What a held call's end may take beyond its deadline.
const AFTER_A_HOLD: Duration = Duration::from_secs(60);
/// How long the tasks of an agent that was replaced may take to end.
const LETTING_GO: Duration = Duration::from_secs(20);

/// An agent that was asked to let this process take its place.
pub(super) struct Old {
    pub(super) agent: Predecessor,
    /// Of its folder of pins.
    pub(super) lock: Option<File>,
}

impl Agent {
    /// Takes the place of the agent that runs for this state folder: its connections and held calls go on, and no
    /// connection meets nobody. If there is none, this is a start like any other.
    ///
    /// # Errors
    /// As for a start; the other agent then goes on as if nothing had been.
    pub async fn replace(config: Config) -> Result<Self> {
        let state_dir = config.state_dir.clone();
        let asked = tokio::task::spawn_blocking(move || Predecessor::ask(&state_dir)).await?;
        let old = match asked {
            Ok((agent, lock)) => Some(Old { agent, lock }),
            Err(HandoverError::NoAgent(why)) => {
                tracing::info!(%why, "there is no agent to replace");
                None
            }
            Err(error) => return Err(error.into()),
        };
        Self::begin(config, None, old).await
    }

    /// Waits until a process asks to take this one's place.
    pub async fn asked(&mut self) -> Asking {
        match self.successors.recv().await {
            Some(asking) => asking,
            None => std::future::pending().await,
        }
    }

    /// Hands everything over that only one agent may have. After an error this one goes on.
    pub async fn hand_over(&mut self, asking: Asking) -> Result<(), HandoverError> {
        let Self { gate, hooks, boot, .. } = self;
        let (ledger, boot, hooks) = (gate.ledger.clone(), boot.clone(), hooks.clone());
        let sockets = std::mem::take(&mut self.sockets);
        let runtime = Handle::current();
        // From here on the other one writes into the tables.
        self.hooks.guard_tables(false);
        let giving = tokio::task::spawn_blocking(move || {
            let lock = hooks.pins_lock();
            let lock = lock.as_ref().map(AsFd::as_fd);
            let estate = Estate { ledger: &ledger, boot, lock, sockets: &sockets };
            let given = give(asking, &estate, &runtime);
            (given, sockets)
        });
        let (given, sockets) = match giving.await {
            Ok(given) => given,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let successor = given.inspect_err(|_| {
            self.sockets = sockets;
            self.hooks.guard_tables(true);
        })?;
        self.gate.tasks.retire();
        self.on_duty.cancel();
        let duties = std::mem::take(&mut self.duties);
        let ended = async {
            for duty in duties {
                if let Err(error) = duty.await {
                    tracing::error!(%error, "a task of the agent's failed");
                }
            }
        };
        if tokio::time::timeout(LETTING_GO, ended).await.is_err() {
            tracing::error!("not all tasks of an agent that was replaced ended in time");
        }
        self.hooks.leave_pins();
        let (pid, version) = (successor.hello.pid, successor.hello.version.clone());
        successor.done();
        tracing::info!(
            pid,
            version,
            "another agent has taken over; connections and held calls go on to their end"
        );
        let text = |value: &str| self.gate.masker.text(value);
        let detail = [("pid".to_owned(), text(&pid.to_string())), ("version".to_owned(), text(&version))];
        let event = AgentEvent { name: "agent.replaced".to_owned(), detail: detail.into() };
        if let Err(error) = self.gate.ledger.note(event).await {
            tracing::error!(%error, "that this agent was replaced is not recorded");
        }
        Ok(())
    }

    /// Of an agent that was replaced: waits until its connections and held calls have ended, at most as long as the
    /// configuration says, until it is told to `stop`, or until the agent that has the log is gone; and ends.
    pub async fn drain(self, stop: impl Future<Output = ()>) -> Result<()> {
        let Self { gate, hooks, accounts, ending, background, mut accepting, .. } = self;
        let holds = gate.approval.deadline.saturating_add(AFTER_A_HOLD);
        let drained = async {
            // In other namespaces connections may still come in for a moment.
            let accepted = (&mut accepting).await;
            (accepted, gate.tasks.drained(gate.limits.drain.max(holds)).await)
        };
        let (accepted, drained) = tokio::select! {
            (accepted, drained) = drained => (Some(accepted), drained),
            () = stop => (None, false),
            // Nothing that happens now would be recorded.
            () = gate.ledger.peer_gone() => (None, false),
        };
        if !drained && !gate.tasks.end(DRAIN, CLOSE).await {
            tracing::warn!("connections that did not end in time were closed");
        }
        accounts.end();
        ending.cancel();
        match accepted {
            Some(accepted) => accepted.context("a task of the agent's failed")?,
            None => accepting.await.context("a task of the agent's failed")?,
        }
        for task in background {
            task.await.context("a task of the agent's failed")?;
        }
        let written = tokio::time::timeout(LAST_EVENTS, gate.ledger.shutdown()).await;
        written
            .context("the agent that has the log now did not answer in time")?
            .context("the last events were lost")?;
        drop(hooks);
        Ok(())
    }
}

/// Opens the log in this folder, as nobody else's.
pub(super) async fn open(config: LedgerConfig, folder: PathBuf) -> Result<Ledger> {
    let masker = config.masker.clone();
    let opened = tokio::task::spawn_blocking(move || renamed::open(config, &folder)).await?;
    let (ledger, recovered, ended) = opened?;
    if let Some(ended) = ended {
        ledger.note(ended.told(&masker)).await.context("cannot record that the log before ended")?;
        tokio::task::spawn_blocking(move || ended.was_recorded()).await??;
    }
    if !recovered.unknown.is_empty() {
        let calls = recovered.unknown.len();
        tracing::warn!(calls, "an earlier run ended before these calls did: their outcome is unknown");
    }
    Ok(ledger)
}

/// Takes the log and the listening sockets over: from here on this is the agent. The old one may still do things that
/// only one may do.
pub(super) async fn take_over(
    old: Predecessor,
    config: LedgerConfig,
    host: u64,
    listen: &Listen,
) -> Result<(Ledger, Listeners, Option<Inheritance>)> {
    let (ledger, mut inheritance) = tokio::task::spawn_blocking(move || inherit(old, config)).await??;
    let sockets = std::mem::take(&mut inheritance.sockets).into_iter().find(|pair| pair.namespace == host);
    let listeners = match sockets {
        Some(sockets) => Listeners::inherit(sockets).context("cannot use the old agent's listeners")?,
        // An agent of another network namespace: its sockets are of no use here.
        None => Listeners::open(listen)?,
    };
    Ok((ledger, listeners, Some(inheritance)))
}

/// Resolves when the agents that were replaced have ended.
pub(super) fn gone(ledger: Ledger) -> oneshot::Receiver<()> {
    let (tell, gone) = oneshot::channel();
    // Never told that they are gone when it is this one that ends: what they owe is theirs.
    tokio::spawn(async move {
        ledger.guests_gone().await;
        let _ = tell.send(());
    });
    gone
}

fn inherit(old: Predecessor, config: LedgerConfig) -> Result<(Ledger, Inheritance), HandoverError> {
    let mut inheritance = old.ready()?;
    let handed = inheritance.handed.take().ok_or(crate::ledger::LedgerError::GivenAway)?;
    let taken = Ledger::take_over(config, handed).inspect_err(|error| inheritance.give_up(error))?;
    inheritance.opened()?;
    let ledger = taken.begin(&inheritance.replaced)?;
    Ok((ledger, inheritance))
}
