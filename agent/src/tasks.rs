//! The tasks that serve connections, and their end. When the agent ends, each may finish what it carries; past
//! the deadline those that are left are dropped where they wait, which closes the record of each open call.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// All of them; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    retiring: CancellationToken,
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

    /// Resolves when no new connection is to be taken: another agent takes them, or this one ends.
    pub async fn retiring(&self) {
        tokio::select! {
            () = self.retiring.cancelled() => {}
            () = self.ending.cancelled() => {}
        }
    }

    /// Whether connections are to end when their clients let them.
    pub fn is_retiring(&self) -> bool {
        self.retiring.is_cancelled() || self.ending.is_cancelled()
    }

    /// Takes no new connection; those there are may go on.
    pub fn retire(&self) {
        self.retiring.cancel();
    }

    /// Waits until all tasks are done, but not longer than this. Says whether they are.
    pub async fn drained(&self, within: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait()).await.is_ok()
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
    async fn those_that_retire_may_go_on_until_they_are_done() {
        let tasks = Tasks::default();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn(async move { drop(finished.await) });
        assert!(!tasks.is_retiring());
        tasks.retire();
        tasks.retiring().await;
        assert!(tasks.is_retiring() && !tasks.drained(SOON).await);
        finish.send(()).unwrap();
        assert!(tasks.drained(LATE).await);
    }

    #[tokio::test]
    async fn what_ends_in_time_is_not_dropped() {
        let tasks = Tasks::default();
        let own = tasks.clone();
        tasks.spawn(async move { own.ending().await });
        assert!(tasks.end(LATE, LATE).await);
    }
}
