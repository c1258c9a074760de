//! One writer at a time for each log: concurrent puts of the same events wait for one another here. Across
//! collectors, the deduplication token and the reading back do the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use weir_core::ids::Origin;

type Turn = Arc<tokio::sync::Mutex<()>>;

/// The logs that somebody writes now.
#[derive(Debug, Default)]
pub(super) struct Logs(Mutex<HashMap<Origin, Turn>>);

impl Logs {
    /// Runs `work` when no other work for `origin` runs.
    pub(super) async fn alone<T>(&self, origin: &Origin, work: impl Future<Output = T>) -> T {
        let turn = self.map().entry(origin.clone()).or_default().clone();
        let held = turn.lock().await;
        let done = work.await;
        drop(held);
        let mut map = self.map();
        // One reference is the map's, one is ours: nobody else waits.
        if Arc::strong_count(&turn) <= 2 {
            map.remove(origin);
        }
        done
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<Origin, Turn>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_on_one_log_never_overlaps_and_leaves_nothing_behind() {
        let logs = Arc::new(Logs::default());
        let inside = Arc::new(AtomicUsize::new(0));
        let origin = Origin::from_random([1; 16]);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (logs, inside, origin) = (logs.clone(), inside.clone(), origin.clone());
            tasks.spawn(async move {
                logs.alone(&origin, async {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
                .await;
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert!(logs.map().is_empty());
    }
}
