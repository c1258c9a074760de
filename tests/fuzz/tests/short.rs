//! Each target over the inputs in `corpus/`, and over some thousands made from them by a fixed seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use weir_fuzz::{Mutator, TARGETS};

const SEED: u64 = 4;

/// How many inputs are made for a target; about a second or two of work each.
fn inputs(target: &str) -> usize {
    match target {
        "client_hello" => 10_000,
        _ => 30_000,
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "no corpus in {}", folder.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn holds_for_corpus_and_what_is_made_of_it(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let run = |input: &[u8], which: &str| {
        if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
            panic!("{name}, {which}: {:?}", input.escape_ascii().to_string());
        }
    };
    let corpus = corpus(name);
    corpus.iter().for_each(|input| run(input, "of the corpus"));
    let mut mutator = Mutator::new(SEED);
    for number in 0..inputs(name) {
        run(&mutator.input(&corpus), &format!("seed {SEED}, input {number}"));
    }
}

macro_rules! short {
    ($($name:ident)+) => {$(
        #[test]
        fn $name() {
            holds_for_corpus_and_what_is_made_of_it(stringify!($name));
        }
    )+

        #[test]
        fn every_target_has_its_short_run() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),+]);
        }
    };
}

short! { client_hello evidence headers http1 json_rpc legacy_sse segment sse }
