//! Calm: a job whose client was thrown out for a flood has its next connections served one at a time, with a pause before each, and what
//! comes faster refused. What a flood costs is the agent's processor, which all jobs have in common and no share of places bounds: until
//! the next time, others have it.
//!
//! Enters: that a client was thrown out. Leaves: when a connection of the same job has its turn. Must never: make another job wait, or
//! touch a connection that is served already.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The first pause; each further flood doubles it,
const FIRST: Duration = Duration::from_secs(1);
/// up to this.
const LONGEST: Duration = Duration::from_secs(8);
/// A job that has sent no flood for so long is as any other. Who would have to wait longer for a turn is refused.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(30);

/// One job's.
#[derive(Debug, Default)]
pub struct Calm(Mutex<Option<Pauses>>);

#[derive(Debug, Clone, Copy)]
struct Pauses {
    each: Duration,
    /// Before this nobody has a turn.
    next: Instant,
    forgiven: Instant,
}

impl Calm {
    /// A client of the job's was thrown out.
    pub fn flooded(&self) {
        let now = Instant::now();
        self.change(|pauses| {
            let before = pauses.filter(|pauses| pauses.forgiven > now);
            let each = before.map_or(FIRST, |pauses| (pauses.each * 2).min(LONGEST));
            let next = before.map_or(now, |pauses| pauses.next).max(now + each);
            *pauses = Some(Pauses { each, next, forgiven: now + FORGIVEN_AFTER });
        });
    }

    /// When a connection may be served, which mostly is at once; nothing if too many wait for their turn.
    pub fn turn(&self) -> Option<Turn> {
        let now = Instant::now();
        self.change(|pauses| {
            let Some(calming) = pauses.as_mut().filter(|pauses| pauses.forgiven > now) else {
                return Some(Turn(None));
            };
            let at = calming.next.max(now);
            if at - now > FORGIVEN_AFTER {
                return None;
            }
            calming.next = at + calming.each;
            Some(Turn(Some(at)))
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Option<Pauses>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When a connection may be served.
#[derive(Debug)]
pub struct Turn(Option<Instant>);

impl Turn {
    pub async fn come(self) {
        if let Some(at) = self.0 {
            sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn waited(calm: &Calm) -> Option<Duration> {
        let began = Instant::now();
        calm.turn()?.come().await;
        Some(began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_floods_waits_longer_each_time_and_is_forgiven() {
        let calm = Calm::default();
        assert_eq!(waited(&calm).await, Some(Duration::ZERO));
        calm.flooded();
        assert_eq!(waited(&calm).await, Some(FIRST));
        for _ in 0..9 {
            calm.flooded();
            tokio::time::sleep(LONGEST).await;
            calm.turn();
        }
        assert_eq!(waited(&calm).await, Some(LONGEST));
        tokio::time::sleep(FORGIVEN_AFTER).await;
        assert_eq!(waited(&calm).await, Some(Duration::ZERO));
        calm.flooded();
        assert_eq!(waited(&calm).await, Some(FIRST));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_with_others_goes_after_them_or_not_at_all() {
        let calm = Calm::default();
        calm.flooded();
        let turns: Vec<_> = (0..100).filter_map(|_| calm.turn()).collect();
        let most = FORGIVEN_AFTER.as_secs() / FIRST.as_secs();
        assert_eq!(turns.len() as u64, most);
        let began = Instant::now();
        for turn in turns {
            turn.come().await;
        }
        assert_eq!(began.elapsed(), FORGIVEN_AFTER);
        assert!(calm.turn().is_some());
    }
}
