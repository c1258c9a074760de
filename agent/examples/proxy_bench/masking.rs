//! What masking takes of one core, for each corpus.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_core::mask::{MaskKey, Masker};

use super::messages;

pub fn run(millis: u64) -> Result<()> {
    let masker = Masker::new(MaskKey::new([7; 32]));
    let corpora = messages::corpora()
        .into_iter()
        .map(|(name, text)| -> Result<Value> {
            let mask = || std::hint::black_box(masker.json(std::hint::black_box(&text)));
            let found = mask().1.len();
            let (began, mut bytes, mut ran) = (own_time()?, 0, 0);
            while ran < millis * 1_000_000 {
                mask();
                bytes += text.len();
                ran = own_time()? - began;
            }
            let mb_per_s = bytes as f64 * 1000.0 / ran as f64;
            Ok(json!({ "corpus": name, "mb_per_s": mb_per_s, "found": found }))
        })
        .collect::<Result<Vec<Value>>>()?;
    println!("{}", json!({ "corpora": corpora }));
    Ok(())
}

/// The nanoseconds that this thread has run: what else the machine does is not in them.
fn own_time() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(stat.split(' ').next().context("no schedstat")?.parse()?)
}
