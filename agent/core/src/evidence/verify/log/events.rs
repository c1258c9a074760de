//! Events: each is compared with the leaf that its batch has for it, and what no batch covers is named. What proven bytes
//! tell is heard; nothing else is.

use serde::Deserialize;

use super::Log;
use crate::evidence::verify::StoredEvent;
use crate::evidence::verify::finding::{EVENT, Finding, Findings, Kind};
use crate::evidence::verify::told::agent_event;
use crate::evidence::{Hash, leaf_hash};

impl Log {
    pub(in super::super) fn event(&mut self, event: StoredEvent<'_>, findings: &mut Findings) {
        self.summary.events += 1;
        self.summary.bytes += event.canonical.len() as u64;
        let hash = leaf_hash(event.canonical);
        let StoredEvent { epoch, seq, canonical, leaf_hash: stored } = event;
        let covered = self.current.as_mut().and_then(|current| current.see(seq));
        let Some((leaf, place)) = covered else { return self.uncovered(&event, &hash, findings) };
        let number = self.current.as_ref().map_or(0, |current| current.epoch);
        let found = |log: &Self, kind, why: &str| log.find(kind, number, (seq, seq), EVENT, why);
        if place.again {
            findings.push(found(self, Kind::Doubled, "the number is there more than once"));
        } else if place.late {
            findings.push(found(self, Kind::Reordered, "it stands behind a later one"));
        }
        if hash != leaf {
            let (kind, why) =
                self.stranger(&event).unwrap_or((Kind::Altered, "its bytes are not those that were signed"));
            return findings.push(found(self, kind, why));
        }
        if stored != hash {
            let why = "the stored leaf is not that of the stored bytes";
            findings.push(self.find(Kind::Projection, number, (seq, seq), "leaf_hash", why));
        }
        if epoch != number {
            findings.push(self.find(
                Kind::Projection,
                number,
                (seq, seq),
                "epoch",
                "another epoch than its batch's",
            ));
        }
        if !place.again && self.epoch.as_ref().is_some_and(|epoch| epoch.tree.is_some()) {
            self.proven(seq, canonical, findings);
        }
    }

    /// What proven bytes tell.
    fn proven(&mut self, seq: u64, canonical: &[u8], findings: &mut Findings) {
        let agent = agent_event(canonical);
        if let Some(agent) = &agent
            && agent.name == "log.epoch_begun"
            && let Some((first, last)) = self.epoch.as_mut().and_then(|epoch| epoch.hole.take())
        {
            let number = self.epoch.as_ref().map_or(0, |epoch| epoch.number);
            let reason = agent.detail.get("reason").map(String::as_str).unwrap_or_default();
            let why = format!("the agent's log does not have these events: {reason}");
            findings.push(self.find(Kind::Gap, number, (first, last), "log", why));
        }
        self.told.event(seq, canonical, agent.as_ref(), &mut self.tales);
        self.tell(findings);
    }

    pub(super) fn tell(&mut self, findings: &mut Findings) {
        let epoch = self.epoch.as_ref().map_or(0, |epoch| epoch.number);
        for tale in std::mem::take(&mut self.tales) {
            let place = (tale.first_seq, tale.last_seq);
            findings.push(self.find(tale.kind, epoch, place, "time", tale.detail));
        }
    }

    /// Bytes that say themselves that they belong elsewhere.
    fn stranger(&self, event: &StoredEvent<'_>) -> Option<(Kind, &'static str)> {
        #[derive(Deserialize)]
        struct Place {
            origin: String,
            seq: u64,
        }
        let place: Place = serde_json::from_slice(event.canonical).ok()?;
        if place.origin != self.origin.as_str() {
            return Some((Kind::Spliced, "it is of another log"));
        }
        (place.seq != event.seq).then_some((Kind::Reordered, "it has another event's place"))
    }

    /// An event that no batch covers.
    fn uncovered(&mut self, event: &StoredEvent<'_>, hash: &Hash, findings: &mut Findings) {
        let StoredEvent { epoch, seq, .. } = *event;
        let place = (seq, seq);
        let stranger = self.stranger(event);
        let before_trees = self.epoch.is_none() && epoch == 0;
        if let Some((kind, why)) = stranger {
            findings.push(self.find(kind, epoch, place, EVENT, why));
        } else if self.next_seq.is_some_and(|next| seq < next) {
            findings.push(self.find(
                Kind::Doubled,
                epoch,
                place,
                EVENT,
                "the number is there more than once",
            ));
            return;
        } else if before_trees {
            self.before_trees(seq, findings);
            if event.leaf_hash != *hash {
                let why = "the stored leaf is not that of the stored bytes";
                findings.push(self.find(Kind::Projection, 0, place, "leaf_hash", why));
            }
        } else {
            self.uncovered = true;
            findings.push(self.find(Kind::Unsigned, epoch, place, EVENT, "nothing signed covers it"));
        }
        if before_trees {
            self.next_seq = self.next_seq.map(|_| seq.saturating_add(1));
        }
    }

    /// An event from before there were trees: nothing proves it, and its number is all that can be checked.
    fn before_trees(&mut self, seq: u64, findings: &mut Findings) {
        self.summary.unsigned += 1;
        if let Some(next) = self.next_seq.filter(|next| *next < seq) {
            findings.push(self.find(Kind::Deleted, 0, (next, seq - 1), EVENT, "numbers are missing"));
        }
        let expected = self.pinned.as_ref().is_some_and(|pin| seq < pin.first_seq);
        let why = "written before there were trees: nothing proves it";
        findings.push(Finding { fault: !expected, ..self.find(Kind::Unsigned, 0, (seq, seq), EVENT, why) });
    }
}
