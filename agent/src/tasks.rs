//! The tasks that serve connections, and their end. When the agent ends, each may finish what it carries; past
//! the deadline those that are left are dropped where they wait, which closes the record of each open call.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// All of them; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    ending: CancellationToken,
    over: CancellationToken,
}

impl Tasks {
    /// Runs `work` until it is done, or until the time to finish is over: then it is dropped.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                // Before anything that follows from the others' end.
                biased;
                () = over.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Runs `work` to its end, which it must come to by itself soon after [`Tasks::over`].
    pub fn spawn_closing(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(work);
    }

    /// Resolves when no more work is to be taken.
    pub async fn ending(&self) {
        self.ending.cancelled().await;
    }

    /// Resolves when the time to finish is over.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Waits for all tasks: for `finish` until they are done, then for `close` until those that are left are
    /// gone. Says whether none had to be dropped.
    pub async fn end(&self, finish: Duration, close: Duration) -> bool {
        self.ending.cancel();
        self.tracker.close();
        let finished = tokio::time::timeout(finish, self.tracker.wait()).await.is_ok();
        self.over.cancel();
        if tokio::time::timeout(close, self.tracker.wait()).await.is_err() {
            tracing::error!(tasks = self.tracker.len(), "tasks did not end");
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(10);
    const LATE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_does_not_finish_is_dropped_and_what_closes_is_waited_for() {
        let tasks = Tasks::default();
        let (dropped, waits) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn(async move {
            let _dropped = dropped;
            std::future::pending().await
        });
        let (closing, closed) =
            (tasks.clone(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let closes = closed.clone();
        tasks.spawn_closing(async move {
            closing.over().await;
            tokio::task::yield_now().await;
            closes.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        assert!(!tasks.end(SOON, LATE).await);
        assert!(waits.await.is_err() && closed.load(std::sync::atomic::Ordering::SeqCst));
    }

    #[tokio::test]
    async fn what_ends_in_time_is_not_dropped() {
        let tasks = Tasks::default();
        let own = tasks.clone();
        tasks.spawn(async move { own.ending().await });
        assert!(tasks.end(LATE, LATE).await);
    }
}
