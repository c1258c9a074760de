//! Waiting on a condition with a deadline. No test sleeps for a time and hopes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at: the only pause there is.
const STEP: Duration = Duration::from_millis(20);

/// Looks until `condition` gives something, or fails naming what was waited for.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if began.elapsed() >= deadline {
            bail!("waited {} s in vain: {what}", deadline.as_secs());
        }
        std::thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_the_condition_holds() {
        let mut looks = 0;
        let found = until("three looks", Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some("here"))
        });
        assert_eq!(found.unwrap(), "here");
    }

    #[test]
    fn waiting_in_vain_names_what_was_waited_for() {
        let never: Result<()> = until("the sun", Duration::ZERO, || Ok(None));
        assert!(never.unwrap_err().to_string().contains("the sun"));
    }
}
