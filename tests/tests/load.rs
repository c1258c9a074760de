//! Clients that mean harm, in a job of their own, keep another job's client from nothing: each of its calls is answered. What they
//! cost it in time is measured by `cargo xtask bench load`.

use anyhow::{Context, Result, ensure};
use weir_tests::load::{ATTACKS, Scene};

/// Calls of one window, with an attack or without.
const CALLS: usize = 150;

/// By how much the agent may grow while it passes on what is larger than that.
const GROWTH_KIB: u64 = 32 << 10;
const MUCH: u64 = 64 << 20;

#[test]
fn bodies_of_any_length_pass_in_bounded_memory() -> Result<()> {
    let mut scene = Scene::start()?;
    scene.window(CALLS)?;
    let file = scene.folder().join("much");
    // Zeros alone might be blanks before JSON, which is read whole.
    std::fs::write(&file, "PK")?;
    std::fs::File::options().write(true).open(&file)?.set_len(MUCH)?;
    let file = file.to_str().context("a path")?.to_owned();
    let before = scene.most_resident_kib()?;
    for version in ["--http1.1", "--http2"] {
        let told = scene.curl(&[version], "/much", "%{response_code} %{size_download}")?;
        ensure!(told == format!("200 {MUCH}"), "{version}: {told}");
        let upload = [version, "--request", "POST", "--header", "Content-Type: application/octet-stream"];
        let told = scene.curl(
            &[&upload[..], &["--upload-file", &file]].concat(),
            "/upload",
            "%{response_code} %{size_upload}",
        )?;
        ensure!(told == format!("200 {MUCH}"), "{version}: {told}");
        let grown = scene.most_resident_kib()? - before;
        ensure!(grown < GROWTH_KIB, "{version}: the agent grew by {grown} KiB over {before}");
    }
    Ok(())
}

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
