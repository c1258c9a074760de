//! Each place at which the spool changes something on disk, made to fail by ENOSPC and by EIO: what was acknowledged stays,
//! and the log goes on as soon as the disk does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use weir::spool::faulty::{Fault, Faulty, Site};
use weir::spool::{self, Limits, Priority, SetAside, Spool};
use weir_tests::soak::{Draw, Soak};

use super::{Fixed, append_as, head, last_segment, log};

/// Small enough to be filled.
const LIMITS: Limits =
    Limits { max_bytes: 6000, reserve_bytes: 1500, seal_bytes: 700, seal_events: 8, room_from: 1 };

/// How often a start is tried: more often than there are faults.
const TRIES: usize = 8;

/// All that is ever done to the disk. What is new belongs here and into [`History`], so that it fails, too.
const SITES: [(&str, &str); 17] = [
    ("create", "reserve"),
    ("create", "scratch"),
    ("cut", "segment"),
    ("give room back of", "segment"),
    ("make room in", "scratch"),
    ("remove", "reserve"),
    ("remove", "scratch"),
    ("remove", "segment"),
    ("rename to", "aside"),
    ("rename to", "origin"),
    ("rename to", "segment"),
    ("sync", "folder"),
    ("sync", "scratch"),
    ("sync", "segment"),
    ("write", "reserve"),
    ("write", "scratch"),
    ("write", "segment"),
];

/// Where the agent's sources ask the storage for a change: the file, the call, how often. It is counted in their text, so that
/// none comes unseen. Those of the spool happen here; those of the log's key in `ledger/keys.rs`, and those of what the collector
/// witnessed in `ship/kept.rs`, beside this folder.
const CALLS: [(&str, &str, usize); 28] = [
    ("ledger/keys.rs", "file.append(", 1),
    ("ledger/keys.rs", "file.sync_data(", 1),
    ("ledger/keys.rs", "storage.create(", 1),
    ("ledger/keys.rs", "storage.remove(", 1),
    ("ledger/keys.rs", "storage.rename(", 2),
    ("ledger/keys.rs", "storage.sync_folder(", 2),
    ("ship/witness.rs", "file.append(", 1),
    ("ship/witness.rs", "file.sync_data(", 1),
    ("ship/witness.rs", "storage.create(", 1),
    ("ship/witness.rs", "storage.rename(", 1),
    ("ship/witness.rs", "storage.sync_folder(", 1),
    ("spool/recovery.rs", "storage.cut(", 1),
    ("spool/recovery.rs", "storage.remove(", 2),
    ("spool/recovery.rs", "storage.rename(", 1),
    ("spool/recovery.rs", "storage.sync_folder(", 1),
    ("spool/shelf.rs", "storage.remove(", 1),
    ("spool/shelf.rs", "storage.rename(", 1),
    ("spool/shelf.rs", "storage.sync_folder(", 2),
    ("spool/writer.rs", "file.append(", 2),
    ("spool/writer.rs", "file.give_room_back(", 1),
    ("spool/writer.rs", "file.make_room(", 1),
    ("spool/writer.rs", "file.sync_data(", 3),
    ("spool/writer.rs", "storage.create(", 1),
    ("spool/writer.rs", "storage.cut(", 1),
    ("spool/writer.rs", "storage.preallocate(", 1),
    ("spool/writer.rs", "storage.remove(", 2),
    ("spool/writer.rs", "storage.rename(", 1),
    ("spool/writer.rs", "storage.sync_folder(", 1),
];

/// What a storage and its files can be asked for that changes the disk.
const CHANGES: [&str; 10] = [
    "append",
    "sync_data",
    "make_room",
    "give_room_back",
    "create",
    "cut",
    "preallocate",
    "remove",
    "rename",
    "sync_folder",
];

/// A spool's life in which everything happens once, whatever fails meanwhile.
struct History {
    disk: Faulty,
    spool: Option<Spool>,
    /// What was acknowledged, and neither trimmed nor set aside by us.
    must: BTreeMap<u64, String>,
}

impl History {
    fn of(disk: &Faulty) -> Self {
        let mut history = Self { disk: disk.clone(), spool: None, must: BTreeMap::new() };
        history.again();
        history.live();
        history
    }

    /// Another start. The fault may be in its way; it is not in the way of the one after it.
    fn again(&mut self) {
        self.spool = None;
        let mut errors = Vec::new();
        for _ in 0..TRIES {
            match spool::open(Arc::new(self.disk.clone()), LIMITS)
                .and_then(|found| found.start(&head("carry")))
            {
                Ok(spool) => {
                    self.spool = Some(spool);
                    return;
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        panic!("no start worked behind the faults: {errors:?}");
    }

    fn spool(&mut self) -> &mut Spool {
        self.spool.as_mut().expect("it is open")
    }

    fn append(&mut self, what: &str, priority: Priority) -> bool {
        let event = format!("{what} {}", "e".repeat(120));
        let Ok(seqs) = append_as(self.spool(), &[&event, what], priority) else { return false };
        self.must.extend(seqs.zip([event, what.to_owned()]));
        true
    }

    /// The oldest sealed segment's first number.
    fn oldest(&mut self) -> Option<u64> {
        self.spool().shelf().sealed().first().map(|file| file.first_seq)
    }

    fn forget(&mut self, first_seq: u64) {
        let file = self.spool().shelf().sealed().into_iter().find(|file| file.first_seq == first_seq);
        if let Some(file) = file {
            self.must.retain(|seq, _| !(file.first_seq..=file.last_seq()).contains(seq));
        }
    }

    fn trim_all(&mut self) {
        while let Some(first_seq) = self.oldest() {
            self.forget(first_seq);
            // Should it fail, it is done at the second time.
            if self.spool().shelf().trim(first_seq).is_err() {
                let _ = self.spool().shelf().trim(first_seq);
            }
        }
    }

    fn live(&mut self) {
        for what in ["one", "two", "three"] {
            self.append(what, Priority::Ordinary);
        }
        let _ = self.spool().seal(&Fixed("carry"));
        self.append("four", Priority::Ordinary);
        let _ = self.spool().seal(&Fixed("carry"));
        if let Some(first_seq) = self.oldest() {
            self.forget(first_seq);
            let _ = self.spool().shelf().set_aside(first_seq, SetAside::Conflict);
        }
        self.trim_all();

        // Until ordinary groups are refused; then the reserve is given up, and taken back when there is room.
        for n in 0..60 {
            if !self.append(&format!("fill {n}"), Priority::Ordinary) && n > 40 {
                break;
            }
        }
        self.append("a refusal", Priority::Reserved);
        self.append("another", Priority::Reserved);
        self.trim_all();
        self.append("room again", Priority::Ordinary);

        // A write that fails, and comes back behind the next segment's beginning.
        self.append("before", Priority::Ordinary);
        self.disk.fail_at(self.disk.operations(), Fault::Torn(60));
        self.append("torn", Priority::Ordinary);
        self.append("behind", Priority::Ordinary);
        let sealed = self.spool().shelf().sealed();
        self.spool = None;
        if let Some(file) = sealed.last() {
            let name = format!("{:020}.seg", file.first_seq);
            let bytes = self.disk.bytes(&name).expect("a sealed segment");
            self.disk.put(&name, &[bytes, vec![7; 30]].concat());
        }
        // A killed process leaves a file in the making.
        self.disk.put("scratch", b"half of a file");
        self.again();

        // A torn tail, and one with whole frames behind the fault.
        self.append("before the tail", Priority::Ordinary);
        for damage in [false, true] {
            self.append("the last", Priority::Ordinary);
            self.spool = None;
            let (name, mut bytes) = last_segment(&self.disk);
            if damage {
                self.append_to_be_damaged(&name, &mut bytes);
            } else {
                bytes.extend([0; 25]);
            }
            self.disk.put(&name, &bytes);
            self.again();
        }

        // A sealed segment whose bytes have changed.
        self.append("before the damage", Priority::Ordinary);
        let _ = self.spool().seal(&Fixed("carry"));
        let last = self.spool().shelf().sealed().pop();
        if let Some(file) = last {
            self.forget(file.first_seq);
            self.spool = None;
            let name = format!("{:020}.seg", file.first_seq);
            let mut bytes = self.disk.bytes(&name).expect("a sealed segment");
            if let Some(byte) = bytes.last_mut() {
                *byte ^= 1;
            }
            self.disk.put(&name, &bytes);
            self.again();
        }
        self.append("the end", Priority::Ordinary);
    }

    /// Spoils the first event of the last segment: what lies behind it is kept for a human, and is no part of the log.
    fn append_to_be_damaged(&mut self, name: &str, bytes: &mut [u8]) {
        let first_seq: u64 = name.trim_end_matches(".seg").parse().expect("a number");
        let events: Vec<u64> = self.must.range(first_seq..).map(|(seq, _)| *seq).collect();
        let Some(event) = events.first().and_then(|seq| self.must.get(seq)) else { return };
        let at = bytes.windows(event.len()).position(|part| part == event.as_bytes());
        if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
            *byte ^= 1;
            self.must.retain(|seq, _| *seq < first_seq);
        }
    }

    /// The faults are over: the log goes on, and all that must be there is.
    fn judge(mut self, what: &str) {
        self.disk.mend();
        self.trim_aside();
        assert!(self.append("after the faults", Priority::Reserved), "{what}: the log does not go on");
        self.spool = None;
        self.disk = self.disk.killed();
        self.again();
        let log = log(self.spool());
        for (seq, event) in &self.must {
            assert_eq!(log.get(seq), Some(event), "{what}: {seq} was acknowledged");
        }
    }

    /// What was set aside takes room until somebody has looked at it.
    fn trim_aside(&mut self) {
        let aside = self.disk.names().into_iter().filter(|name| name.contains(".seg."));
        aside.for_each(|name| drop(weir::spool::Storage::remove(&self.disk, &name)));
        self.again();
    }
}

/// Runs it without faults: what was done to the disk.
fn done() -> Vec<Site> {
    let disk = Faulty::new();
    let history = History::of(&disk);
    let sites = disk.sites();
    history.judge("without faults");
    sites
}

#[test]
fn each_place_that_changes_the_disk_is_known_here_and_happens() {
    let happened: BTreeSet<_> = done().iter().map(|site| (site.doing, site.file)).collect();
    assert_eq!(happened, BTreeSet::from(SITES.map(|site| site)), "SITES lacks a site, or the history does");

    let mut found = BTreeMap::new();
    count(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut found);
    let known: BTreeMap<_, _> =
        CALLS.iter().map(|(file, call, times)| (((*file).to_owned(), (*call).to_owned()), *times)).collect();
    assert_eq!(
        found, known,
        "the storage is asked in another place: let it fail there in a test, and note it"
    );
}

/// Counts the changes that the sources of a folder ask for; `within` is its name below `src`.
fn count(folder: &Path, within: &str, found: &mut BTreeMap<(String, String), usize>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{within}{}", path.file_name().unwrap().to_string_lossy());
        // The disks themselves.
        if ["spool/storage.rs", "spool/faulty.rs", "spool/faulty"].contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            count(&path, &format!("{name}/"), found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in CHANGES {
            for of in ["file.", "storage."] {
                let call = format!("{of}{call}(");
                let times = text.matches(&call).count();
                if times > 0 {
                    found.insert((name.clone(), call), times);
                }
            }
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_any_one_change_of_the_disk_fails() {
    let operations = done().len() as u64;
    for operation in 0..operations {
        for fault in [Fault::Enospc, Fault::Eio, Fault::Torn(20)] {
            let disk = Faulty::new();
            disk.fail_at(operation, fault);
            History::of(&disk).judge(&format!("{fault:?} at {operation}"));
        }
    }
    println!("{} faults one by one", operations * 3);
}

#[test]
fn nothing_acknowledged_is_lost_when_some_changes_of_the_disk_fail() {
    let mut soak = Soak::of("write-faults", 400, 1).unwrap();
    let operations = done().len() as u64;
    while let Some(seed) = soak.next_seed() {
        let (disk, mut draw) = (Faulty::new(), Draw(seed));
        for _ in 0..draw.below(4) + 2 {
            let fault = [Fault::Enospc, Fault::Eio, Fault::Torn(draw.below(200) as usize)];
            disk.fail_at(draw.below(operations), draw.one_of(&fault).unwrap());
        }
        History::of(&disk).judge(&format!("seed {seed}"));
        soak.held(1);
    }
}
