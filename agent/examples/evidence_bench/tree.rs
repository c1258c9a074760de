//! What the tree costs: a leaf of each event's bytes, and a signed checkpoint for each thousand.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::{TreeState, leaf_hash};
use weir_core::ids::Origin;

use crate::own_time;

/// How often the sample is taken, with a checkpoint after each.
const ROUNDS: u64 = 200;

/// The size for which the goals are.
const SMALL: usize = 1024;

pub fn measure(events: &[Vec<u8>]) -> Result<Value> {
    let small: Vec<_> = events.iter().map(|event| event.iter().copied().take(SMALL).collect()).collect();
    let (whole, small) = (costs(events)?, costs(&small)?);
    Ok(json!({
        "records": whole.records,
        "us_per_leaf": whole.us_per_leaf,
        "us_per_record": whole.us_per_record,
        "verified_per_second": whole.verified_per_second,
        "us_per_leaf_1k": small.us_per_leaf,
        "us_per_record_1k": small.us_per_record,
        "verified_per_second_1k": small.verified_per_second,
    }))
}

struct Costs {
    records: u64,
    us_per_leaf: f64,
    /// Leaf, tree and its share of a checkpoint.
    us_per_record: f64,
    verified_per_second: f64,
}

fn costs(events: &[Vec<u8>]) -> Result<Costs> {
    let key = SigningKey::from_seed(&[1; 32]);
    let log = LogName {
        tenant: "acme".into(),
        host: "runner-1".into(),
        origin: Origin::from_random([1; 16]),
        epoch: 1,
    };
    let public = key.verifying(&log.to_string())?;
    let records = ROUNDS * events.len() as u64;
    let began = own_time()?;
    for event in events.iter().cycle().take(usize::try_from(records)?) {
        std::hint::black_box(leaf_hash(event));
    }
    let hashed = own_time()? - began;
    let mut tree = TreeState::begin(1, 0);
    let mut notes = Vec::new();
    let began = own_time()?;
    for round in 0..ROUNDS {
        for event in events {
            tree.push(event);
        }
        notes.push(Checkpoint::of(&log, &tree, round).signed(&key)?.to_string());
    }
    let written = own_time()? - began;
    let began = own_time()?;
    let mut again = TreeState::begin(1, 0);
    for note in &notes {
        for event in events {
            again.push(event);
        }
        let note: SignedNote = note.parse()?;
        let checkpoint = Checkpoint::open(&note, &public)?;
        ensure!(checkpoint.root == again.frontier.root(), "a tree that does not read back");
    }
    let verified = own_time()? - began;
    let per_record = |ns: u64| ns as f64 / 1000.0 / records as f64;
    Ok(Costs {
        records,
        us_per_leaf: per_record(hashed),
        us_per_record: per_record(written),
        verified_per_second: records as f64 * 1e9 / verified as f64,
    })
}
