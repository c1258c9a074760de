//! Clients that mean harm, in a job of their own, keep another job's client from nothing: each of its calls is answered. What they
//! cost it in time is measured by `cargo xtask bench load`.

use anyhow::{Result, ensure};
use weir_tests::load::{ATTACKS, Scene};

/// Calls of one window, with an attack or without.
const CALLS: usize = 150;

#[test]
fn under_load_of_clients_that_mean_harm_anothers_calls_are_all_answered() -> Result<()> {
    let mut scene = Scene::start()?;
    ensure!(scene.window(CALLS)?.len() == CALLS);
    for attack in ATTACKS {
        ensure!(scene.window_with(attack, CALLS)?.len() == CALLS, "{attack}");
    }
    ensure!(scene.window(CALLS)?.len() == CALLS, "after all of them");
    Ok(())
}
