//! How hyper's own tasks are run: owned and waited for like all others.

use hyper::rt::Executor;

use crate::tasks::Tasks;

/// Spawns on the agent's tasks.
#[derive(Debug, Clone)]
pub(super) struct Spawner(pub Tasks);

impl<F> Executor<F> for Spawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        self.0.spawn(work);
    }
}
