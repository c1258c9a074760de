//! The tasks that serve connections, and their end. When the agent ends, each may finish what it carries; past
//! the deadline those that are left are dropped where they wait, which closes the record of each open call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
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
        // In a box, since it would have its place twice in the task: as what the task is given, and as what it waits for.
        let (over, work) = (self.over.clone(), Box::pin(work));
        self.tracker.spawn(async move {
            tokio::select! {
                // Before anything that follows from the others' end.
                biased;
                () = over.cancelled() => {}
                () = work => {}
            }
        });
    }

    /// Work that is done where it is awaited, for as long as it is: dropped before its end, it goes on as a task. What
    /// must come to its end costs no task that way where its client stays.
    pub fn here<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Here<T> {
        Here { work: Mutex::new(Some(Box::pin(work))), tasks: self.clone() }
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

/// See [`Tasks::here`]. Resolves to nothing if the work panicked, as a task's own panic ends that task alone.
#[must_use = "it does nothing before it is awaited, or dropped"]
pub struct Here<T: Send + 'static> {
    /// Never locked, since nobody shares it: who holds one may be shared.
    work: Mutex<Option<Pin<Box<dyn Future<Output = T> + Send>>>>,
    tasks: Tasks,
}

impl<T: Send + 'static> Here<T> {
    fn work(&mut self) -> &mut Option<Pin<Box<dyn Future<Output = T> + Send>>> {
        self.work.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Future for Here<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let Some(work) = self.work() else { return Poll::Ready(None) };
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => {
                *self.work() = None;
                Poll::Ready(Some(done))
            }
            Err(_) => {
                *self.work() = None;
                Poll::Ready(None)
            }
        }
    }
}

impl<T: Send + 'static> Drop for Here<T> {
    fn drop(&mut self) {
        // Without a runtime everything ends, this too.
        if let Some(work) = self.work().take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            self.tasks.spawn(async move { drop(work.await) });
        }
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
    async fn what_is_done_here_goes_on_as_a_task_when_it_is_dropped() {
        let tasks = Tasks::default();
        assert_eq!(tasks.here(async { 7 }).await, Some(7));
        let (go_on, goes_on) = tokio::sync::oneshot::channel::<()>();
        let (done, is_done) = tokio::sync::oneshot::channel();
        let mut here = tasks.here(async move {
            let _ = goes_on.await;
            done.send(()).unwrap();
        });
        assert!(tokio::time::timeout(SOON, &mut here).await.is_err());
        drop(here);
        go_on.send(()).unwrap();
        tokio::time::timeout(LATE, is_done).await.unwrap().unwrap();
        assert!(tasks.end(LATE, LATE).await);
    }

    #[tokio::test]
    async fn a_panic_ends_the_work_alone_in_which_it_is() {
        let tasks = Tasks::default();
        let mut here = tasks.here(async { assert_eq!(1, 2, "on purpose") });
        assert_eq!((&mut here).await, None);
        assert_eq!(here.await, None);
        assert!(tasks.end(LATE, LATE).await);
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
