//! What the spool takes: groups of events, each on disk before the next. One thread, a real folder.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use weir::spool::{self, Around, Folder, Group, Head, Limits, Priority};
use weir_core::segment::EventFrames;

/// Events of one group.
const GROUPS: [usize; 3] = [1, 64, 256];

/// Bytes as many as a tree, a carry and a checkpoint have; what it costs to make them is measured beside this.
struct Still;

impl Around for Still {
    fn head(&self) -> Head {
        Head { tree: vec![b' '; 800], carry: vec![b' '; 200] }
    }

    fn closing(&self) -> Vec<u8> {
        vec![b' '; 320]
    }

    fn with_group(&self) -> Vec<u8> {
        self.closing()
    }
}

pub fn measure(folder: &Path, events: &[Vec<u8>], seconds: Duration) -> Result<Value> {
    let mut rates = serde_json::Map::new();
    for group in GROUPS {
        rates
            .insert(group.to_string(), rate(&folder.join(group.to_string()), events, group, seconds)?.into());
    }
    Ok(json!({ "records_per_second_by_group": rates }))
}

fn rate(folder: &Path, events: &[Vec<u8>], group: usize, seconds: Duration) -> Result<f64> {
    let found = spool::open(Arc::new(Folder::open(folder)?), Limits::default())?;
    let mut spool = found.start(&Still.head())?;
    let shelf = spool.shelf();
    let mut frames = EventFrames::default();
    let (began, mut records) = (Instant::now(), 0);
    while began.elapsed() < seconds {
        frames.begin(spool.next_seq());
        for event in events.iter().cycle().take(group) {
            frames.push(|out| {
                out.extend_from_slice(event);
                anyhow::Ok(())
            })?;
        }
        spool
            .append(Group { frames: &mut frames, priority: Priority::Ordinary, checkpoint: false }, &Still)?;
        records += group;
        // As a collector's acknowledgements would.
        for sealed in shelf.sealed() {
            shelf.trim(sealed.first_seq)?;
        }
    }
    Ok(records as f64 / began.elapsed().as_secs_f64())
}
