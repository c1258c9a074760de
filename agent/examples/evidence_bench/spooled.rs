//! What the spool takes: groups of events, each on disk before the next, and beside it what the disk takes of the same bytes
//! when a plain file is appended to and synced. One thread, a real folder; the two take turns, so that both meet the same disk.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use weir::spool::{self, Around, Folder, Group, Head, Limits, Priority};
use weir_core::segment::{EventFrames, FRAME_HEADER_LEN};

/// Events of one group. More the ledger does not write together.
const GROUPS: [usize; 3] = [1, 64, 256];
/// Bytes of an event: those for which the goals are, and of a call's with its answer.
const SIZES: [usize; 2] = [1024, 2048];
/// Bytes of a segment (`spool.segment_bytes`): small, and those of a log for which nothing is configured.
const SEGMENTS: [usize; 2] = [1 << 20, spool::SEAL_BYTES];
/// How long each of the two has its turn.
const TURN: Duration = Duration::from_millis(250);
/// A plain file is begun anew at this length.
const PLAIN: u64 = 64 << 20;

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

/// Each cell takes its share of `seconds`: all sizes of one kind take them together.
pub fn measure(folder: &Path, events: &[Vec<u8>], seconds: Duration) -> Result<Value> {
    let mut rows = Vec::new();
    for size in SIZES {
        let event: Vec<u8> = events.iter().flatten().copied().take(size).collect();
        for group in GROUPS {
            for segment in SEGMENTS {
                let cell = Cell { event: &event, group, segment };
                let folder = folder.join(format!("{size}-{group}-{segment}"));
                rows.push(cell.measure(&folder, seconds / u32::try_from(SIZES.len())?)?);
            }
        }
    }
    Ok(json!(rows))
}

struct Cell<'a> {
    event: &'a [u8],
    group: usize,
    segment: usize,
}

impl Cell<'_> {
    fn measure(&self, folder: &Path, seconds: Duration) -> Result<Value> {
        let limits = Limits { seal_bytes: self.segment, ..Limits::default() };
        let found = spool::open(Arc::new(Folder::open(folder)?), limits)?;
        let mut spool = found.start(&Still.head())?;
        let (shelf, mut frames) = (spool.shelf(), EventFrames::default());
        let plain_bytes = vec![b' '; self.group * (self.event.len() + FRAME_HEADER_LEN)];
        let plain_path = folder.with_extension("plain");
        let (mut plain, mut length) = (File::create(&plain_path)?, 0);
        let (mut spooled, mut bare, began) = (Rate::default(), Rate::default(), Instant::now());
        while began.elapsed() < seconds {
            spooled.turn(|| {
                frames.begin(spool.next_seq());
                for _ in 0..self.group {
                    frames.push(|out| {
                        out.extend_from_slice(self.event);
                        anyhow::Ok(())
                    })?;
                }
                let group = Group { frames: &mut frames, priority: Priority::Ordinary, checkpoint: false };
                spool.append(group, &Still)?;
                // As a collector's acknowledgements would.
                for sealed in shelf.sealed() {
                    shelf.trim(sealed.first_seq)?;
                }
                Ok(())
            })?;
            bare.turn(|| {
                if length > PLAIN {
                    (plain, length) = (File::create(&plain_path)?, 0);
                }
                plain.write_all(&plain_bytes)?;
                length += plain_bytes.len() as u64;
                Ok(plain.sync_data()?)
            })?;
        }
        let rate = |rate: &Rate| rate.groups as f64 * self.group as f64 / rate.time.as_secs_f64();
        Ok(json!({
            "bytes": self.event.len(),
            "group": self.group,
            "segment": self.segment,
            "records_per_second": rate(&spooled),
            "plain_per_second": rate(&bare),
        }))
    }
}

#[derive(Default)]
struct Rate {
    groups: u64,
    time: Duration,
}

impl Rate {
    fn turn(&mut self, mut group: impl FnMut() -> Result<()>) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < TURN {
            group()?;
            self.groups += 1;
        }
        self.time += began.elapsed();
        Ok(())
    }
}
