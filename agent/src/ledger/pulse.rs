//! What the agent says when nothing happens, and when the clock does: wall and monotonic time come in; that a heartbeat
//! is due, and that the wall clock was set, goes out.

use std::time::Duration;

use super::{Clock, Monotonic};

/// What a clock that is being disciplined may gain or lose (500 ppm), doubled.
const SLEW_PPM: u128 = 1000;
/// After so long the two clocks are compared from anew, lest what they may differ by grows without bound.
const COMPARED_FOR: Duration = Duration::from_secs(600);

/// See the module.
pub(super) struct Pulse {
    wall: Clock,
    monotonic: Monotonic,
    heartbeat: Duration,
    tolerance: Duration,
    /// Both clocks, when they were last known to agree.
    agreed: (u64, Duration),
    /// When something was written last.
    wrote: Duration,
}

/// The wall clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// What it shows now, microseconds since 1970.
    pub(super) wall_us: u64,
    /// By how much; negative is back.
    pub(super) step_us: i64,
}

impl Pulse {
    pub(super) fn new(wall: Clock, monotonic: Monotonic, heartbeat: Duration, tolerance: Duration) -> Self {
        let (agreed, wrote) = ((wall(), monotonic()), monotonic());
        Self { wall, monotonic, heartbeat, tolerance, agreed, wrote }
    }

    pub(super) fn now(&self) -> Duration {
        (self.monotonic)()
    }

    /// Something was written.
    pub(super) fn wrote(&mut self) {
        self.wrote = self.now();
    }

    /// How long until a heartbeat is due, if nothing is written before; zero when it is.
    pub(super) fn silence_left(&self) -> Duration {
        (self.wrote + self.heartbeat).saturating_sub(self.now())
    }

    /// Whether the wall clock was set since the last look.
    pub(super) fn step(&mut self) -> Option<Step> {
        let (wall_us, now) = ((self.wall)(), self.now());
        let (wall_before, before) = self.agreed;
        let passed = now.saturating_sub(before);
        let expected = i128::from(wall_before) + i128::try_from(passed.as_micros()).unwrap_or(i128::MAX / 2);
        let off = i128::from(wall_us) - expected;
        let allowed = self.tolerance.as_micros() + passed.as_micros() * SLEW_PPM / 1_000_000;
        let stepped = off.unsigned_abs() > allowed;
        if stepped || passed >= COMPARED_FOR {
            self.agreed = (wall_us, now);
        }
        let step_us = i64::try_from(off).unwrap_or(if off < 0 { i64::MIN } else { i64::MAX });
        stepped.then_some(Step { wall_us, step_us })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::sync::{Arc, Mutex};

    use super::*;

    struct Clocks {
        wall: Arc<AtomicU64>,
        monotonic: Arc<Mutex<Duration>>,
        pulse: Pulse,
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn clocks() -> Clocks {
        let (wall, monotonic) = (Arc::new(AtomicU64::new(1 << 50)), Arc::new(Mutex::new(SECOND)));
        let (its_wall, its_monotonic) = (wall.clone(), monotonic.clone());
        let pulse = Pulse::new(
            Arc::new(move || its_wall.load(Relaxed)),
            Arc::new(move || *its_monotonic.lock().unwrap()),
            60 * SECOND,
            SECOND,
        );
        Clocks { wall, monotonic, pulse }
    }

    impl Clocks {
        fn pass(&mut self, wall: i64, monotonic: Duration) -> Option<i64> {
            self.wall.store(self.wall.load(Relaxed).saturating_add_signed(wall), Relaxed);
            *self.monotonic.lock().unwrap() += monotonic;
            self.pulse.step().map(|step| step.step_us)
        }
    }

    #[test]
    fn a_step_is_seen_once_with_its_size_in_either_direction() {
        let (mut clocks, hour) = (clocks(), 3_600_000_000);
        assert_eq!(clocks.pass(5_000_000, 5 * SECOND), None);
        assert_eq!(clocks.pass(hour, Duration::ZERO), Some(hour));
        assert_eq!(clocks.pass(0, Duration::ZERO), None);
        assert_eq!(clocks.pass(1_000_000 - 365 * 24 * hour, SECOND), Some(-365 * 24 * hour));
        assert_eq!(clocks.pass(1_000_000, SECOND), None);
        assert_eq!(clocks.pass(i64::MIN, SECOND), Some(-(1 << 50) + 365 * 24 * hour - hour - 8_000_000));
    }

    #[test]
    fn a_clock_that_is_slewed_is_not_taken_for_one_that_was_set_and_small_steps_add_up() {
        let mut clocks = clocks();
        for _ in 0..10_000 {
            // 500 ppm.
            assert_eq!(clocks.pass(10_005_000, 10 * SECOND), None);
        }
        // Of less than the tolerance each, and seen together.
        let seen = (0..10).filter_map(|_| clocks.pass(1_900_000, SECOND)).count();
        assert!(seen > 0, "{seen}");
    }

    #[test]
    fn a_heartbeat_is_due_when_nothing_was_written_for_so_long() {
        let mut clocks = clocks();
        assert_eq!(clocks.pulse.silence_left(), 60 * SECOND);
        clocks.pass(0, 59 * SECOND);
        assert_eq!(clocks.pulse.silence_left(), SECOND);
        clocks.pulse.wrote();
        clocks.pass(0, 60 * SECOND);
        assert_eq!(clocks.pulse.silence_left(), Duration::ZERO);
    }
}
