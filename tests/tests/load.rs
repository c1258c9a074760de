//! Clients that mean harm, in a job of their own, keep another job's client from nothing: each of its calls is answered. What they
//! cost it in time is measured by `cargo xtask bench load`.

use anyhow::{Result, ensure};
use weir_tests::load::{ATTACKS, Scene};

#[test]
fn under_load_of_clients_that_mean_harm_anothers_calls_are_all_answered() -> Result<()> {
    let mut scene = Scene::start()?;
    let calls = scene.window()?.len();
    for attack in ATTACKS {
        ensure!(scene.window_with(attack)?.len() == calls, "{attack}");
    }
    ensure!(scene.window()?.len() == calls, "after all of them");
    Ok(())
}
