//! A call's record, from before the verdict to the outcome, as types: a record that is not closed, closed
//! twice, or an intent that passes for written without being so does not compile or cannot happen.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use weir_core::ids::{CallId, FlowId};
use weir_core::policy::Action;
use weir_core::record::{Body, CallResult, Durability, Intent, Outcome};

use super::item::{Answer, Item, ended};
use super::{LedgerError, Shared, Text};

/// There is a slot for the call, and nothing is written.
pub struct Reserved(());
/// The call's intent is on disk, so it must get an outcome.
pub struct Intended(());

/// A slot in the ledger for one call.
///
/// ```
/// # use weir::ledger::{Intended, LedgerError, OpenRecord, Text};
/// # use weir_core::record::Outcome;
/// async fn end(record: OpenRecord<Intended>, outcome: Outcome<Text>) -> Result<u64, LedgerError> {
///     record.close(outcome).await
/// }
/// ```
/// It is closed once:
/// ```compile_fail,E0382
/// # use weir::ledger::{Intended, LedgerError, OpenRecord, Text};
/// # use weir_core::record::Outcome;
/// async fn end(record: OpenRecord<Intended>, outcome: Outcome<Text>) -> Result<u64, LedgerError> {
///     record.close(outcome.clone()).await?;
///     record.close(outcome).await
/// }
/// ```
/// and not before its intent was written:
/// ```compile_fail,E0599
/// # use weir::ledger::{LedgerError, OpenRecord, Reserved, Text};
/// # use weir_core::record::Outcome;
/// async fn end(record: OpenRecord<Reserved>, outcome: Outcome<Text>) -> Result<u64, LedgerError> {
///     record.close(outcome).await
/// }
/// ```
/// Nor is there a second intent:
/// ```compile_fail,E0382
/// # use weir::ledger::{LedgerError, OpenRecord, Text};
/// # use weir_core::record::Intent;
/// async fn begin(record: OpenRecord, intent: Intent<Text>) -> Result<(), LedgerError> {
///     record.intent(intent.clone()).await?;
///     record.intent(intent).await?;
///     Ok(())
/// }
/// ```
#[must_use = "a record that is dropped after its intent is closed as aborted"]
pub struct OpenRecord<S = Reserved> {
    slot: Slot,
    state: PhantomData<S>,
}

/// Proves that a call's intent is on disk. Only the ledger makes one, once for each intent.
///
/// ```
/// # use weir::ledger::DurableIntent;
/// # struct Permit(DurableIntent);
/// fn permit(intent: DurableIntent) -> Permit {
///     Permit(intent)
/// }
/// ```
/// It serves once:
/// ```compile_fail,E0382
/// # use weir::ledger::DurableIntent;
/// # struct Permit(DurableIntent);
/// fn permits(intent: DurableIntent) -> [Permit; 2] {
///     [Permit(intent), Permit(intent)]
/// }
/// ```
/// cannot be copied:
/// ```compile_fail,E0599
/// # use weir::ledger::DurableIntent;
/// # struct Permit(DurableIntent);
/// fn permits(intent: DurableIntent) -> [Permit; 2] {
///     [Permit(intent.clone()), Permit(intent)]
/// }
/// ```
/// and cannot be made by hand:
/// ```compile_fail,E0451
/// # use weir::ledger::DurableIntent;
/// # use weir_core::{ids::CallId, record::Durability};
/// fn forge(call_id: CallId) -> DurableIntent {
///     DurableIntent { call_id, seq: 0, durability: Durability::Strict }
/// }
/// ```
#[derive(Debug)]
#[must_use = "a call whose intent is written must be sent on or closed"]
pub struct DurableIntent {
    call_id: CallId,
    seq: u64,
    durability: Durability,
}

/// Shows that a call's intent was handed to the writer while that was not known to be unable to write it. The intent
/// may not be on disk, and may never be. Only the ledger makes one, of an intent that says so itself
/// ([`Durability::BestEffort`]) and that policy allows: it does for the calls of such a rule, and never passes for
/// a [`DurableIntent`]:
/// ```compile_fail,E0308
/// # use weir::ledger::{DurableIntent, QueuedIntent};
/// fn durable(intent: QueuedIntent) -> DurableIntent {
///     intent
/// }
/// ```
/// nor can it be made by hand:
/// ```compile_fail,E0451
/// # use weir::ledger::QueuedIntent;
/// # use weir_core::ids::CallId;
/// fn forge(call_id: CallId) -> QueuedIntent {
///     QueuedIntent { call_id }
/// }
/// ```
#[derive(Debug)]
#[must_use = "a call whose intent is to be written must be sent on or closed"]
pub struct QueuedIntent {
    call_id: CallId,
}

impl QueuedIntent {
    /// The call that may go on.
    pub fn call_id(&self) -> &CallId {
        &self.call_id
    }
}

impl DurableIntent {
    /// The call that may go on.
    pub fn call_id(&self) -> &CallId {
        &self.call_id
    }

    /// Where its intent stands in the log.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// What the intent says of itself. The ledger waits for the disk under both.
    pub fn durability(&self) -> Durability {
        self.durability
    }
}

impl OpenRecord {
    pub(super) fn reserve(
        shared: Arc<Shared>,
        call_id: CallId,
        flow_id: FlowId,
    ) -> Result<Self, LedgerError> {
        let permit = shared.slots.clone().try_acquire_owned();
        let permit = Some(permit.map_err(|_| LedgerError::TooManyOpen(shared.max_open))?);
        let slot = Slot { shared, call_id, flow_id, permit, intended: false };
        Ok(Self { slot, state: PhantomData })
    }

    /// Writes the call's intent; resolves when it is on disk. After an error the call must not go on: nothing
    /// of it is in the log, and the slot is free again.
    pub async fn intent(
        mut self,
        intent: Intent<Text>,
    ) -> Result<(OpenRecord<Intended>, DurableIntent), LedgerError> {
        self.slot.is_of(&intent)?;
        let durability = intent.durability;
        let (answer, written) = oneshot::channel();
        // Should this future be dropped while it waits, the intent may be written all the same.
        self.slot.intended = true;
        let item = Item::new(Body::Intent(Box::new(intent)), Answer::Waiter(answer), None);
        self.slot.shared.send(item.into())?;
        let written = written.await.unwrap_or(Err(LedgerError::Stopped));
        let seq = written.inspect_err(|_| self.slot.intended = false)?;
        let proof = DurableIntent { call_id: self.slot.call_id.clone(), seq, durability };
        Ok((OpenRecord { slot: self.slot, state: PhantomData }, proof))
    }

    /// Hands the call's intent to the writer and does not wait for the disk, unless the last thing that is known of
    /// the writer is that it could not write, or it is so far behind that half of all slots are taken: then this
    /// resolves when the intent is on disk, and fails when it is not. An intent that is lost later is counted with
    /// the lost notes.
    pub async fn queue(
        mut self,
        intent: Intent<Text>,
    ) -> Result<(OpenRecord<Intended>, QueuedIntent), LedgerError> {
        self.slot.is_of(&intent)?;
        if intent.durability != Durability::BestEffort || intent.verdict.action != Action::Allow {
            return Err(LedgerError::MustWait(intent.call_id));
        }
        let call_id = intent.call_id.clone();
        // Who waits asks for no more, and the writer catches up before a call must be refused for want of a slot.
        let Shared { slots, max_open, vitals, .. } = &*self.slot.shared;
        if vitals.unable.load(Ordering::Acquire) || slots.available_permits() < max_open / 2 {
            let (record, _) = self.intent(intent).await?;
            return Ok((record, QueuedIntent { call_id }));
        }
        self.slot.shared.vitals.unwaited.fetch_add(1, Ordering::Relaxed);
        self.slot.shared.send(Item::new(Body::Intent(Box::new(intent)), Answer::Note, None).into())?;
        self.slot.intended = true;
        Ok((OpenRecord { slot: self.slot, state: PhantomData }, QueuedIntent { call_id }))
    }
}

impl OpenRecord<Intended> {
    /// Hands the call's outcome to the writer, and waits for nothing. It is written as with [`OpenRecord::close`], a little later.
    pub fn end(mut self, outcome: Outcome<Text>) -> Result<(), LedgerError> {
        if outcome.call_id != self.slot.call_id {
            return Err(LedgerError::WrongCall(outcome.call_id));
        }
        self.slot.close(Body::Outcome(outcome), Answer::Nobody)
    }

    /// Hands the call's outcome to the writer, at once, and resolves with its sequence number when it is on
    /// disk. It is written also when nobody waits for that; and after an error of the disk, as soon as the
    /// disk takes it.
    pub fn close(
        mut self,
        outcome: Outcome<Text>,
    ) -> impl Future<Output = Result<u64, LedgerError>> + Send + 'static {
        let (answer, written) = oneshot::channel();
        let sent = if outcome.call_id == self.slot.call_id {
            self.slot.close(Body::Outcome(outcome), Answer::Waiter(answer))
        } else {
            Err(LedgerError::WrongCall(outcome.call_id))
        };
        async move {
            sent?;
            written.await.unwrap_or(Err(LedgerError::Stopped))
        }
    }
}

impl<S> OpenRecord<S> {
    pub fn call_id(&self) -> &CallId {
        &self.slot.call_id
    }
}

impl<S> fmt::Debug for OpenRecord<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRecord").field("call_id", self.call_id()).finish_non_exhaustive()
    }
}

struct Slot {
    shared: Arc<Shared>,
    call_id: CallId,
    flow_id: FlowId,
    /// Goes with the outcome, so that the slot is taken until that is written.
    permit: Option<OwnedSemaphorePermit>,
    /// Whether the intent was handed to the writer and has not failed.
    intended: bool,
}

impl Slot {
    fn is_of(&self, intent: &Intent<Text>) -> Result<(), LedgerError> {
        let same = (&intent.call_id, &intent.flow_id) == (&self.call_id, &self.flow_id);
        same.then_some(()).ok_or_else(|| LedgerError::WrongCall(intent.call_id.clone()))
    }

    fn close(&mut self, outcome: Body<Text>, answer: Answer) -> Result<(), LedgerError> {
        self.intended = false;
        self.shared.send(Item::new(outcome, answer, self.permit.take()).into())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.intended {
            // A writer that has stopped has closed the call already.
            let _ = self.close(ended(self.call_id.clone(), CallResult::Aborted), Answer::Nobody);
        }
    }
}
