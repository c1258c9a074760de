//! What verification promises of exports: nothing that is done to one goes unseen, an untouched one raises no alarm, and both
//! verifiers say the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use weir_core::evidence::verify::{Report, Scope};
use weir_tamper::cases::{Place, places, run, verify};
use weir_tamper::change::ACTS;
use weir_tamper::honest::{Honest, Size, make, tar};
use weir_tests::places::{Setup, workspace};

/// How many exports are changed; more by `weir-tamper cases --count`.
const CASES: usize = 1_000;
const SEED: u64 = 5;
/// Of so many of them the second verifier looks at one; no two kinds are so many cases apart.
const SAMPLE: usize = 5;
/// How many untouched events are verified.
const UNTOUCHED: usize = 20_000;

/// Writes what the second verifier reads.
fn hand_over(folder: &Path, number: usize, honest: &Honest, lines: &[u8]) {
    let file = std::fs::File::create(folder.join(format!("{number}.tar"))).expect("a file");
    tar(&honest.manifest, lines, file).expect("an export");
    let trust = serde_json::to_vec(&honest.trust).expect("a trust file");
    std::fs::write(folder.join(format!("{number}.json")), trust).expect("a trust file");
}

/// What the second verifier says of each export in a folder.
fn second(folder: &Path) -> BTreeMap<usize, Vec<Place>> {
    let python = Setup::locate().expect("a setup folder").python();
    let script = workspace().join("tests/tamper/tests/agree.py");
    let ran = Command::new(python).arg(script).arg(workspace().join("docs")).arg(folder).output();
    let ran = ran.expect("Python runs: `cargo xtask test` sets it up");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let lines = String::from_utf8(ran.stdout).expect("UTF-8");
    let read = |line: &str| {
        type Found = (String, String, u64, u64, u64, String, bool);
        let (name, found): (String, Vec<Found>) = serde_json::from_str(line).expect(line);
        let number = name.split('.').next().and_then(|digits| digits.parse().ok()).expect("a number");
        let found = found.into_iter().map(|(kind, origin, epoch, first, last, what, fault)| {
            let kind = if fault { kind } else { format!("{kind} (expected)") };
            (kind, origin, epoch, first, last, what)
        });
        (number, found.collect())
    };
    lines.lines().map(read).collect()
}

fn sorted(mut places: Vec<Place>) -> Vec<Place> {
    places.sort();
    places
}

#[test]
fn each_of_twelve_kinds_of_tampering_is_found_at_its_place_by_both_verifiers_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
    let tally = run(CASES, SEED, |number, case, honest, report: &Report| {
        if number % SAMPLE == 0 {
            first.insert(number, sorted(places(report)));
            hand_over(folder.path(), number, honest, &case.lines);
        }
        Ok(())
    })
    .expect("the cases run");
    assert_eq!(tally.missed, Vec::<String>::new());
    assert_eq!(tally.acts.len(), ACTS.len());
    assert!(tally.acts.values().all(|(done, found)| *done >= 83 && done == found), "{:?}", tally.acts);
    let second = second(folder.path());
    assert_eq!(second.len(), CASES / SAMPLE);
    for (number, found) in second {
        assert_eq!(sorted(found), first[&number], "case {number}");
    }
}

#[test]
fn untouched_logs_raise_no_alarm_in_either_verifier() {
    let size = Size { logs: 3, batches: 10, events: UNTOUCHED / 27 };
    let honest = make(SEED, size).expect("logs");
    let folder = tempfile::tempdir().expect("a folder");
    hand_over(folder.path(), 0, &honest, &honest.lines);
    let report = verify(&honest.lines, &honest.trust, Scope::All, honest.manifest.made_us).expect("a report");
    assert!(report.findings.are_clean(), "{:?}", places(&report));
    let events: u64 = report.logs.iter().map(|log| log.events).sum();
    assert!(events >= UNTOUCHED as u64, "{events}");
    let told: Vec<_> = report.findings.iter().map(|one| one.kind.as_str()).collect();
    assert_eq!(told.len(), 2, "what is expected is told: {told:?}");
    assert!(told.contains(&"retired") && told.contains(&"unsigned"));
    assert_eq!(sorted(second(folder.path()).remove(&0).expect("a verdict")), sorted(places(&report)));
}
