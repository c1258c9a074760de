//! The official conformance suite finds the same through Weir as without it, and the record holds what the suite says was said. Here
//! a part of it; `cargo xtask conformance` runs all.

use anyhow::{Result, ensure};
use weir_tests::conformance::{Ground, Suite};

#[test]
fn the_official_suite_finds_no_difference_and_the_record_holds_each_message() -> Result<()> {
    let mut ground = Ground::start()?;
    for suite in Suite::quick() {
        let compared = ground.compare(&suite)?;
        println!(
            "{}: {} checks, {} connections, {} messages",
            compared.suite, compared.checks, compared.connections, compared.messages
        );
        ensure!(compared.holds(), "{compared:#?}");
    }
    Ok(())
}
