//! Connects that the hooks told of in their ring: each gets its flow record.
//!
//! Enters: the ring. Leaves: flow records. Must never: take one out of the ring before it is among those that are owed a
//! record, so that it survives this agent.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_core::ids::FlowId;
use weir_core::mask::Masked;
use weir_core::record::{Flow, FlowEnd, FlowReason, Proof, Server, Treatment};
use weir_ebpf::{CONNECTS_BYTES, FlowOrigin, reason, verdict};

use super::Accounts;
use crate::kernel::{Connects, KernelError, Origin};
use crate::{identity, random};

/// The most bytes of any text in these records.
pub(super) const MAX_TEXT: usize = 512;
/// How often the ring is looked into: the hooks wake nobody for most of what they tell.
const LOOK: Duration = Duration::from_millis(10);
/// How many are described and written at a time.
const AT_A_TIME: usize = 32;
/// As many as the ring can hold: after so many, what was in it before is read.
const ALL: usize = CONNECTS_BYTES as usize / size_of::<FlowOrigin>();

impl Accounts {
    /// Reads the ring until the agent ends; what it has read by then is recorded.
    pub(super) async fn read(self: Arc<Self>, ending: CancellationToken) {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(mut asked), Some(ring)) = (asked, self.hooks.connects()) else {
            tracing::error!("the ring of connects is read already");
            return;
        };
        let Ok(mut ring) = ring.awaitable() else {
            tracing::error!("the ring of connects cannot be waited for");
            return;
        };
        let mut writing = JoinSet::new();
        loop {
            self.drain(ring.get_mut(), &mut writing).await;
            tokio::select! {
                mark = asked.recv() => self.answer(mark, ring.get_mut(), &mut writing).await,
                woken = ring.readable() => drop(woken.map(|mut woken| woken.clear_ready())),
                () = tokio::time::sleep(LOOK) => {}
                () = ending.cancelled() => break,
            }
        }
        self.drain(ring.get_mut(), &mut writing).await;
        while writing.join_next().await.is_some() {}
    }

    /// Answers when what is in the ring now is recorded.
    async fn answer(
        self: &Arc<Self>,
        mark: Option<oneshot::Sender<()>>,
        ring: &mut Connects,
        writing: &mut JoinSet<()>,
    ) {
        self.drain(ring, writing).await;
        while writing.join_next().await.is_some() {}
        if let Some(mark) = mark {
            // Who no longer waits does not want to know.
            let _ = mark.send(());
        }
    }

    async fn drain(self: &Arc<Self>, ring: &mut Connects, writing: &mut JoinSet<()>) {
        for _ in 0..ALL {
            while writing.len() >= AT_A_TIME {
                writing.join_next().await;
            }
            match ring.take(&self.hooks) {
                Ok(Some(origin)) => {
                    if let Some(listener) = &self.listener {
                        listener(&origin);
                    }
                    let accounts = self.clone();
                    writing.spawn(async move { accounts.told(origin).await });
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "a connect that was told of cannot be kept");
                    break;
                }
            }
        }
        while writing.try_join_next().is_some() {}
    }

    /// Records the connects that were made longer ago than this and whose connections never came. Gives their number.
    pub async fn sweep(&self, older_than: Duration) -> Result<usize, KernelError> {
        let swept = self.hooks.sweep_pending(older_than)?;
        let number = swept.len();
        for origin in swept {
            self.told(Origin { reason: reason::WITHDRAWN, ..origin }).await;
        }
        Ok(number)
    }

    /// Records a connect that never came here as a connection.
    pub async fn told(&self, origin: Origin) {
        let caller = identity::look_up(origin.clone(), &self.processes).await;
        let address = origin.destination.ip().to_string();
        let (treatment, end) = fate(&origin);
        let flow = Flow {
            flow_id: FlowId::from_random(random::bytes()),
            caller,
            server: Server {
                name: self.processes.masker().text(&address),
                address,
                port: origin.destination.port(),
                proof: Proof::Unproven,
            },
            sni: Masked::default(),
            treatment,
            end,
            bytes_up: 0,
            bytes_down: 0,
            duration_us: 0,
            connect: Some(self.connect(&origin, None)),
            reason: FlowReason::None,
            borrowed: false,
        };
        self.record(&origin, flow).await;
    }
}

fn fate(origin: &Origin) -> (Treatment, FlowEnd) {
    match (origin.verdict, origin.reason) {
        (verdict::PASSED, _) => (Treatment::Passed, FlowEnd::Direct),
        (verdict::REDIRECTED, reason::NEVER_BEGUN) => (Treatment::Refused, FlowEnd::NeverBegun),
        (verdict::REDIRECTED, _) => (Treatment::Refused, FlowEnd::Withdrawn),
        _ => (Treatment::Refused, FlowEnd::NeverMade),
    }
}
