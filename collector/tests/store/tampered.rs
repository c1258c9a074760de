//! A real store that a program of its own changes by SQL, drawn by seed: `weir-collector verify` names what was done, and its place.

use std::process::Command;

use serde_json::Value;
use weir_tests::places::binary;
use weir_tests::soak::Soak;

use crate::verify::{Audited, findings};
use crate::world::told;

/// Once each way.
const FEW: u64 = 16;

impl Audited {
    /// Has it changed as the seed says; what was done comes back.
    fn tamper(&self, seed: u64) -> Value {
        let mut command = Command::new(binary("weir-tamper").expect("weir-tamper"));
        command.args(["store", "--url", &self.world.store.url(), "--seed", &seed.to_string()]);
        command.arg("--password-file").arg(self.world.store.secret());
        let (code, done, wrong) = told(command.output().expect("weir-tamper runs"));
        assert!(code == 0, "seed {seed}: {wrong}");
        serde_json::from_str(&done).expect(&done)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_program_changes_in_the_store_by_sql_is_found_at_its_place() {
    let mut soak = Soak::of("tamper-store", FEW, 1).expect("a number");
    let audited = Audited::begin().await;
    let views = audited.views();
    let verify = ["verify", "--json", "--settle", "0", "--trust", audited.trust_file()];
    let (code, untouched, wrong) = audited.world.run(&verify);
    assert!(code == 0 && wrong.is_empty(), "{untouched}{wrong}");
    while let Some(seed) = soak.next_seed() {
        let done = audited.tamper(seed);
        let (code, report, _) = audited.world.run(&verify);
        let found = findings(&report);
        let (text, number) = (|name: &str| done[name].as_str(), |name: &str| done[name].as_u64());
        let (first, last) = (number("first_seq").expect("a number"), number("last_seq").expect("a number"));
        let expected = done["shows_as"].as_array().expect("kinds");
        let named = found.iter().any(|(kind, origin, _, from, to, _)| {
            expected.contains(&Value::from(kind.as_str()))
                && Some(origin.as_str()) == text("origin")
                && *from <= last
                && *to >= first
        });
        assert!(code == 1 && named, "seed {seed}: {done}: {found:?}");
        audited.restore().await;
        if expected.contains(&Value::from("definition")) {
            audited.restore_views(&views).await;
        }
        soak.held(1);
    }
    let (code, again, _) = audited.world.run(&verify);
    assert!(code == 0 && findings(&again) == findings(&untouched), "{again}");
}
