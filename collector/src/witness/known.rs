//! What ClickHouse knows of logs: asked of one log, or of many at once, since many quiet hosts must not mean many questions.

use std::collections::HashMap;
use std::fmt::Write;

use clickhouse::Row;
use serde::Deserialize;
use weir_core::evidence::checkpoint::LogName;
use weir_core::evidence::{Frontier, Hash};
use weir_core::ids::Origin;

use super::judge::{Fault, FaultReason, Run, Seen, Standing, Stored};
use crate::rows::IdentityRow;
use crate::store::{Store, StoreError};

/// The most batches that are gone through back to the last cosigned checkpoint. Of honest hosts it is one: they send one
/// segment after the other.
const MAX_BEHIND: usize = 64;

/// A part of a log that is asked about: what is there from `before` leaves on.
#[derive(Debug, Clone)]
pub struct Part {
    pub log: LogName,
    pub epoch_first_seq: u64,
    pub before: u64,
    pub after: u64,
}

impl Part {
    pub fn of(run: &Run) -> Self {
        Self {
            log: run.log().clone(),
            epoch_first_seq: run.checkpoint.first_seq,
            before: run.before.size(),
            after: run.checkpoint.size,
        }
    }

    fn place(&self) -> Place {
        (self.log.origin.to_string(), self.log.epoch)
    }
}

/// Whether nothing of a log is stored from a number on: no event, and of what was retired no batch.
pub async fn is_behind_all(store: &Store, log: &LogName, first_seq: u64) -> Result<bool, StoreError> {
    let question = store
        .query(
            "SELECT count() FROM (SELECT 1 FROM events WHERE tenant = ? AND origin = ? AND seq >= ? LIMIT 1 \
                                  UNION ALL SELECT 1 FROM batches WHERE tenant = ? AND origin = ? AND last_seq >= ? LIMIT 1)",
        )
        .bind(&log.tenant)
        .bind(log.origin.as_str())
        .bind(first_seq)
        .bind(&log.tenant)
        .bind(log.origin.as_str())
        .bind(first_seq);
    let stored: Vec<u64> = store.rows(question).await?;
    Ok(stored.first().is_none_or(|stored| *stored == 0))
}

/// Whether events of a log are stored that are another host's: it has no key yet, and is theirs all the same.
pub async fn is_anothers(
    store: &Store,
    origin: &Origin,
    tenant: &str,
    host: &str,
) -> Result<bool, StoreError> {
    let question = store
        .query("SELECT count() FROM (SELECT 1 FROM events WHERE origin = ? AND (tenant != ? OR host_name != ?) LIMIT 1)")
        .bind(origin.as_str())
        .bind(tenant)
        .bind(host);
    let stored: Vec<u64> = store.rows(question).await?;
    Ok(stored.first().is_some_and(|stored| *stored > 0))
}

/// An epoch of a log.
pub type Place = (String, u32);

/// A tree that was signed for, and whether it was cosigned.
#[derive(Debug, Row, Deserialize)]
struct Tree {
    origin: String,
    epoch: u32,
    tree_size: u64,
    root: Hash,
    time_us: i64,
    cosigned: bool,
}

/// What was signed of one epoch.
#[derive(Debug, Default)]
pub struct Trees {
    pub seen: Vec<Seen>,
    /// Those of them that are in `checkpoints`.
    pub cosigned: Vec<(u64, Hash)>,
}

/// A batch's place.
#[derive(Debug, Clone, Row, Deserialize)]
struct Link {
    first_seq: u64,
    last_seq: u64,
}

/// A batch with its leaves.
#[derive(Debug, Clone, Row, Deserialize)]
pub struct Leaves {
    pub origin: String,
    pub epoch: u32,
    pub epoch_first_seq: u64,
    pub first_seq: u64,
    pub frontier: Vec<Hash>,
    pub leaf_hashes: Vec<Hash>,
}

impl Leaves {
    /// The tree before it.
    fn before(&self) -> Option<Frontier> {
        let size = self.first_seq.checked_sub(self.epoch_first_seq)?;
        Frontier::of_parts(size, self.frontier.clone())
    }

    /// The tree with it.
    pub fn after(&self) -> Option<Frontier> {
        let mut tree = self.before()?;
        tree.extend(self.leaf_hashes.iter().copied());
        Some(tree)
    }

    fn stored(self) -> Stored {
        Stored { from: self.first_seq.saturating_sub(self.epoch_first_seq), leaves: self.leaf_hashes }
    }
}

/// Each part's condition, joined by OR. An origin is hex digits, and the rest are numbers.
fn any_of(parts: &[&Part], condition: impl Fn(&Part) -> String) -> String {
    let mut out = String::from("(");
    for (at, part) in parts.iter().enumerate() {
        let or = if at == 0 { "" } else { " OR " };
        let (origin, epoch) = (&part.log.origin, part.log.epoch);
        // Writing into a string does not fail.
        let _ = write!(out, "{or}(origin = '{origin}' AND epoch = {epoch} AND {})", condition(part));
    }
    out.push(')');
    out
}

fn tenants<'p>(parts: &[&'p Part]) -> Vec<&'p str> {
    let mut tenants: Vec<&str> = parts.iter().map(|part| part.log.tenant.as_str()).collect();
    tenants.sort_unstable();
    tenants.dedup();
    tenants
}

/// The keys of these logs, by origin, each log's in the order of its epochs.
pub async fn identities(
    store: &Store,
    origins: &[&Origin],
) -> Result<HashMap<String, Vec<IdentityRow>>, StoreError> {
    let question = store.query("SELECT ?fields FROM identities WHERE origin IN ? ORDER BY epoch");
    let origins: Vec<&str> = origins.iter().map(|origin| origin.as_str()).collect();
    let rows: Vec<IdentityRow> = store.rows(question.bind(origins)).await?;
    let mut by_origin: HashMap<String, Vec<IdentityRow>> = HashMap::new();
    for row in rows {
        by_origin.entry(row.origin.clone()).or_default().push(row);
    }
    Ok(by_origin)
}

/// All trees of at least `before` leaves that were signed for, cosigned or claimed.
pub async fn trees(store: &Store, parts: &[&Part]) -> Result<HashMap<Place, Trees>, StoreError> {
    let of_parts = any_of(parts, |part| format!("tree_size >= {}", part.before));
    let sql = format!(
        "SELECT origin, epoch, tree_size, root, toUnixTimestamp64Micro(time) AS time_us, true AS cosigned \
         FROM checkpoints WHERE tenant IN ? AND {of_parts} \
         UNION ALL \
         SELECT origin, epoch, tree_size, root, toUnixTimestamp64Micro(time) AS time_us, false AS cosigned \
         FROM claims WHERE tenant IN ? AND {of_parts}"
    );
    let tenants = tenants(parts);
    let rows: Vec<Tree> = store.rows(store.query(&sql).bind(&tenants).bind(&tenants)).await?;
    let mut by_place: HashMap<Place, Trees> = HashMap::new();
    for row in rows {
        let trees = by_place.entry((row.origin, row.epoch)).or_default();
        trees.seen.push(Seen { size: row.tree_size, root: row.root, time_us: row.time_us });
        if row.cosigned {
            trees.cosigned.push((row.tree_size, row.root));
        }
    }
    Ok(by_place)
}

/// The leaves that are stored behind the first `before`, up to `after`.
pub async fn stored(store: &Store, parts: &[&Part]) -> Result<HashMap<Place, Vec<Stored>>, StoreError> {
    let rows = leaves(store, parts, |part| {
        let first = part.epoch_first_seq.saturating_add(part.before);
        let end = part.epoch_first_seq.saturating_add(part.after);
        format!("last_seq >= {first} AND first_seq < {end}")
    });
    let mut by_place: HashMap<Place, Vec<Stored>> = HashMap::new();
    for row in rows.await? {
        by_place.entry((row.origin.clone(), row.epoch)).or_default().push(row.stored());
    }
    Ok(by_place)
}

/// The batches that end right before these parts.
pub async fn ends(store: &Store, parts: &[&Part]) -> Result<HashMap<Place, Leaves>, StoreError> {
    let rows = leaves(store, parts, |part| {
        // No batch ends before the first leaf.
        match part.before {
            0 => "0".to_owned(),
            before => format!("last_seq = {}", part.epoch_first_seq.saturating_add(before - 1)),
        }
    });
    Ok(rows.await?.into_iter().map(|row| ((row.origin.clone(), row.epoch), row)).collect())
}

async fn leaves(
    store: &Store,
    parts: &[&Part],
    condition: impl Fn(&Part) -> String,
) -> Result<Vec<Leaves>, StoreError> {
    let of_parts = any_of(parts, condition);
    let sql = format!("SELECT ?fields FROM batches WHERE tenant IN ? AND {of_parts} ORDER BY first_seq");
    store.rows(store.query(&sql).bind(tenants(parts))).await
}

/// Why it cannot be said how a run stands.
#[derive(Debug)]
pub enum Doubt {
    Fault(Fault),
    Store(StoreError),
}

impl From<StoreError> for Doubt {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Fault> for Doubt {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Whether the tree before a run is proven: cosigned itself, or stored without a hole behind one that is. What lies between is
/// judged again as the run itself is: whoever stored it may have died before that.
pub async fn standing(store: &Store, run: &Run, trees: &Trees) -> Result<Standing, Doubt> {
    let before = run.before.size();
    if before == 0 || trees.cosigned.contains(&(before, run.before.root())) {
        return Ok(Standing::Proven);
    }
    let log = run.log();
    let epoch_first = run.checkpoint.first_seq;
    let question = store
        .query(
            "SELECT max(tree_size) FROM checkpoints \
             WHERE tenant = ? AND origin = ? AND epoch = ? AND tree_size < ? AND NOT idle",
        )
        .bind(&log.tenant)
        .bind(log.origin.as_str())
        .bind(log.epoch)
        .bind(before);
    let head: u64 = store.rows(question).await?.first().copied().unwrap_or_default();
    let question = store
        .query(&format!(
            "SELECT DISTINCT first_seq, last_seq FROM batches \
             WHERE tenant = ? AND origin = ? AND epoch = ? AND first_seq >= ? AND first_seq < ? \
             ORDER BY first_seq LIMIT {}",
            MAX_BEHIND + 1
        ))
        .bind(&log.tenant)
        .bind(log.origin.as_str())
        .bind(log.epoch)
        .bind(epoch_first.saturating_add(head))
        .bind(run.first_seq());
    let links: Vec<Link> = store.rows(question).await?;
    if !tiles(&links, epoch_first.saturating_add(head), run.first_seq()) {
        return Ok(Standing::BehindHole);
    }
    let part = Part { log: log.clone(), epoch_first_seq: epoch_first, before: head, after: before };
    let seen = self::trees(store, &[&part]).await?.remove(&part.place()).unwrap_or_default();
    let first = epoch_first.saturating_add(head);
    let between = format!("first_seq >= {first} AND first_seq < {}", run.first_seq());
    let between = leaves(store, &[&part], |_| between.clone()).await?;
    let Some(tree) = between.first().and_then(Leaves::before) else { return Ok(Standing::BehindHole) };
    let between = Run {
        before: tree,
        leaves: between.into_iter().flat_map(|batch| batch.leaf_hashes).collect(),
        checkpoint: weir_core::evidence::checkpoint::Checkpoint {
            log: log.clone(),
            size: before,
            root: run.before.root(),
            first_seq: epoch_first,
            time_us: 0,
        },
    };
    if between.is_whole().is_err() {
        let detail = format!("it does not go on from the stored tree of {before} leaves");
        return Err(Fault::new(FaultReason::Fork, detail).into());
    }
    between.agrees_with(&seen.seen)?;
    Ok(Standing::Proven)
}

/// Whether batches in their order fill a range of numbers to the last, and are not too many to go through.
fn tiles(links: &[Link], from: u64, to: u64) -> bool {
    let mut next = from;
    let dense = links.iter().all(|link| {
        let follows = link.first_seq == next;
        next = link.last_seq.saturating_add(1);
        follows
    });
    dense && next == to && links.len() <= MAX_BEHIND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_without_a_hole_are_gone_through_up_to_a_limit() {
        let links = |count: u64| -> Vec<Link> {
            (0..count).map(|n| Link { first_seq: 100 + n * 10, last_seq: 109 + n * 10 }).collect()
        };
        let most = MAX_BEHIND as u64;
        assert!(tiles(&links(most), 100, 100 + most * 10));
        assert!(!tiles(&links(most + 1), 100, 110 + most * 10), "one too many");
        assert!(!tiles(&links(3), 99, 130) && !tiles(&links(3), 100, 131) && !tiles(&[], 100, 101));
        let mut holed = links(3);
        holed.remove(1);
        assert!(!tiles(&holed, 100, 130));
        let mut twice = links(3);
        twice.insert(1, Link { first_seq: 100, last_seq: 109 });
        assert!(!tiles(&twice, 100, 130), "others at one place are a fork");
    }
}
