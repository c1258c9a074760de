//! What verification promises of exports: nothing that is done to one goes unseen, an untouched one raises no alarm, and both
//! verifiers say the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use weir_core::evidence::verify::Scope;
use weir_tamper::cases::{Place, Tally, beginnings, places, verify};
use weir_tamper::change::ACTS;
use weir_tamper::honest::{Honest, Size, make, tar, telling};
use weir_tests::places::{Setup, workspace};
use weir_tests::soak::Soak;

/// How many exports are changed in every run.
const CASES: u64 = 1_000;
const SEED: u64 = 5;
/// Of so many of them the second verifier looks at one; no two kinds are so many cases apart.
const SAMPLE: u64 = 5;
/// It looks at no more than so many.
const MOST: u64 = 2_000;
/// How many untouched events are verified in every run, and at once.
const UNTOUCHED: u64 = 20_000;

/// Writes what the second verifier reads.
fn hand_over(folder: &Path, number: u64, honest: &Honest, lines: &[u8]) {
    let file = std::fs::File::create(folder.join(format!("{number}.tar"))).expect("a file");
    tar(&honest.manifest, lines, file).expect("an export");
    let trust = serde_json::to_vec(&honest.trust).expect("a trust file");
    std::fs::write(folder.join(format!("{number}.json")), trust).expect("a trust file");
}

/// What the second verifier says of each export in a folder.
fn second(folder: &Path) -> BTreeMap<u64, Vec<Place>> {
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
    let mut first: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
    let mut soak = Soak::of("tamper", CASES, SEED).expect("a soak");
    let (beginnings, mut tally) = (beginnings().expect("logs"), Tally::default());
    while let Some(seed) = soak.next_seed() {
        let (case, report) = tally.run(&beginnings, seed).expect("a case");
        assert_eq!(tally.missed, Vec::<String>::new());
        if seed % SAMPLE == 0 && (first.len() as u64) < MOST {
            first.insert(seed, sorted(places(&report)));
            hand_over(folder.path(), seed, &beginnings[case.of], &case.lines);
        }
        soak.held(1);
    }
    if soak.cases() >= ACTS.len() as u64 {
        assert_eq!(tally.acts.len(), ACTS.len(), "{:?}", tally.acts);
    }
    println!("found of those done: {:?}; by both verifiers alike: {}", tally.acts, first.len());
    assert!(!first.is_empty() || soak.cases() < SAMPLE);
    let second = second(folder.path());
    assert_eq!(second.len(), first.len());
    for (seed, found) in second {
        assert_eq!(sorted(found), first[&seed], "seed {seed}");
    }
}

#[test]
fn untouched_logs_raise_no_alarm_in_either_verifier() {
    let mut soak = Soak::of("untouched", UNTOUCHED, SEED).expect("a soak");
    let folder = tempfile::tempdir().expect("a folder");
    let size = Size { logs: 3, batches: 10, events: usize::try_from(UNTOUCHED).expect("a size") / 27 };
    let mut handed_over = None;
    while let Some(seed) = soak.next_seed() {
        let honest = make(seed, size).expect("logs");
        let report =
            verify(&honest.lines, &honest.trust, Scope::All, honest.manifest.made_us).expect("a report");
        assert!(report.findings.are_clean(), "seed {seed}: {:?}", places(&report));
        let told: Vec<_> = report.findings.iter().map(|one| one.kind.as_str()).collect();
        assert_eq!(told.len(), 2, "what is expected is told: {told:?}");
        assert!(told.contains(&"retired") && told.contains(&"unsigned"));
        if handed_over.is_none() {
            hand_over(folder.path(), seed, &honest, &honest.lines);
            handed_over = Some((seed, sorted(places(&report))));
        }
        let events: u64 = report.logs.iter().map(|log| log.events).sum();
        assert!(events >= UNTOUCHED, "{events}");
        soak.held(events);
    }
    let (seed, first) = handed_over.expect("there was one");
    assert_eq!(sorted(second(folder.path()).remove(&seed).expect("a verdict")), first);
}

#[test]
fn lost_numbers_set_clocks_and_silences_are_named_at_their_places_by_both_verifiers_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = telling(SEED).expect("logs");
    let honest = &told.honest;
    let report = verify(&honest.lines, &honest.trust, Scope::All, honest.manifest.made_us).expect("a report");
    let expected = told.findings.into_iter().map(|(kind, origin, epoch, first, last, what)| {
        (kind.to_owned(), origin, u64::from(epoch), first, last, what.to_owned())
    });
    let expected = sorted(expected.collect());
    for kind in ["gap", "deleted", "clock_step", "silence"] {
        assert!(expected.iter().any(|place| place.0 == kind), "{kind}");
    }
    assert_eq!(sorted(places(&report)), expected);
    hand_over(folder.path(), 0, honest, &honest.lines);
    assert_eq!(sorted(second(folder.path()).remove(&0).expect("a verdict")), expected);
}
