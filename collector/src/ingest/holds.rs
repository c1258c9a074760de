//! `POST /v1/holds`: a call that waits for a human comes in and goes where approvers find it, once however often
//! it is sent.

use std::sync::Arc;

use bytes::Bytes;
use weir_core::approval::Hold;
use weir_core::wire::{HoldAck, Reason, Refusal};

use super::{Ingest, now_us, refusal, unavailable};
use crate::agent::Agent;
use crate::rows::HoldRow;
use crate::store::{TOKENS, again};

impl Ingest {
    pub(super) async fn put_hold(self: Arc<Self>, body: Bytes, agent: Agent) -> Result<HoldAck, Refusal> {
        let malformed = |e: serde_json::Error| refusal(Reason::Malformed, format!("not a hold: {e}"));
        let hold: Hold<String> = serde_json::from_slice(&body).map_err(malformed)?;
        agent.speaks_for(&hold.tenant, &hold.host)?;
        let row = HoldRow::of(&hold, agent.uid(), now_us()).map_err(malformed)?;
        self.logs.alone(&hold.origin, self.hold_once(row)).await?;
        Ok(HoldAck { approval_id: hold.approval_id })
    }

    async fn hold_once(&self, row: HoldRow) -> Result<(), Refusal> {
        if self.stands(&row).await? {
            return Ok(());
        }
        for attempt in 0..TOKENS {
            let token = again(format!("hold/{}", row.approval_id), attempt);
            self.store.insert("holds", &token, std::slice::from_ref(&row)).await.map_err(unavailable)?;
            if self.stands(&row).await? {
                let (approval_id, rule) = (&row.approval_id, &row.policy_rule);
                tracing::info!(approval_id, rule, "a call waits for a decision");
                return Ok(());
            }
        }
        Err(refusal(Reason::Unavailable, "the store took the hold and does not show it"))
    }

    /// Whether this very hold is stored; another one under its id is a conflict.
    async fn stands(&self, row: &HoldRow) -> Result<bool, Refusal> {
        let question =
            self.store.query("SELECT hold FROM holds WHERE approval_id = ? LIMIT 2").bind(&row.approval_id);
        let stored: Vec<String> = self.store.rows(question).await.map_err(unavailable)?;
        if stored.iter().any(|hold| *hold != row.hold) {
            let message = format!("another hold has the id {}", row.approval_id);
            return Err(refusal(Reason::Conflict, message));
        }
        Ok(!stored.is_empty())
    }
}
