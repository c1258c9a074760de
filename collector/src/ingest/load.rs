//! How much comes in, and what agents are asked to do about it: many quiet hosts must not mean many tiny inserts, so the more
//! hosts there are and the longer an insert takes, the older a segment should grow. It is advice; each agent has bounds of its own.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use weir_core::ids::Origin;
use weir_core::wire::LONGEST_ADVISED;

/// The most logs that are counted; of more, what is asked is the longest.
const MAX_LOGS: usize = 100_000;
/// A log that nothing came from for so long counts no more.
const LATELY: Duration = Duration::from_secs(600);
/// How often those are swept.
const SWEEP: Duration = Duration::from_secs(60);
/// So few logs are left to themselves, however slow the store is.
const FEW: usize = 16;
/// The part of the store's time that segments may take.
const SHARE: f64 = 0.5;
/// The least that is asked.
const SHORTEST: Duration = Duration::from_secs(1);
/// How much one insert moves the mean.
const WEIGHT: f64 = 0.05;

/// What came in lately.
#[derive(Debug, Default)]
pub(super) struct Load(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    logs: HashMap<Origin, Instant>,
    swept: Option<Instant>,
    mean: Duration,
}

impl Load {
    /// A segment of this log took so long to store.
    pub(super) fn took(&self, origin: &Origin, time: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if seen.swept.is_none_or(|swept| now.duration_since(swept) > SWEEP) {
            seen.logs.retain(|_, last| now.duration_since(*last) < LATELY);
            seen.swept = Some(now);
        }
        if seen.logs.len() < MAX_LOGS || seen.logs.contains_key(origin) {
            seen.logs.insert(origin.clone(), now);
        }
        seen.mean = match seen.mean {
            Duration::ZERO => time,
            mean => mean.mul_f64(1.0 - WEIGHT) + time.mul_f64(WEIGHT),
        };
    }

    /// How old a segment should grow; nothing where that is less than any agent waits.
    pub(super) fn seal_after_ms(&self) -> Option<u64> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = advised(seen.logs.len(), seen.mean)?;
        u64::try_from(wanted.as_millis()).ok()
    }
}

/// Each log seals once in this time, and all their inserts take [`SHARE`] of it.
fn advised(logs: usize, insert: Duration) -> Option<Duration> {
    let seconds = insert.as_secs_f64() * logs as f64 / SHARE;
    if logs <= FEW {
        return None;
    }
    let wanted = Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_ADVISED).min(LONGEST_ADVISED);
    (wanted > SHORTEST).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_hosts_and_the_slower_the_store_the_older_segments_grow_up_to_a_limit() {
        let ms = Duration::from_millis;
        assert_eq!(advised(FEW, ms(20_000)), None, "few hosts are left to themselves");
        assert_eq!(advised(FEW + 1, ms(20)), None, "and those that the store has time for");
        assert_eq!(advised(1000, ms(20)), Some(Duration::from_secs(40)));
        assert_eq!(advised(1000, ms(80)), Some(Duration::from_secs(160)));
        assert_eq!(advised(1_000_000, ms(20)), Some(LONGEST_ADVISED));
        assert_eq!(advised(usize::MAX, Duration::MAX), Some(LONGEST_ADVISED));
    }

    #[test]
    fn logs_past_the_limit_are_not_counted_and_those_that_are_known_go_on() {
        let load = Load::default();
        for n in 0..=MAX_LOGS {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&(n as u64).to_le_bytes());
            load.took(&Origin::from_random(id), Duration::from_millis(1));
        }
        load.took(&Origin::from_random([0; 16]), Duration::from_millis(1));
        assert_eq!(load.0.lock().unwrap().logs.len(), MAX_LOGS);
        assert!(load.seal_after_ms().is_some_and(|ms| ms >= 100_000));
    }
}
