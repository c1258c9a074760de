//! One file of the disk: what was written to it, and what of that a sync, a failed one or a power cut keeps.

use std::collections::BTreeSet;

use super::random::Random;

/// The unit in which un-synced bytes survive.
const SECTOR: usize = 64;

#[derive(Debug, Default, Clone)]
pub(super) struct File {
    pub(super) now: Vec<u8>,
    /// Where the next append goes; behind it is room.
    pub(super) at: usize,
    synced: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl File {
    /// One that has always been there: no power cut takes anything of it.
    pub(super) fn old(bytes: &[u8]) -> Self {
        Self { now: bytes.to_vec(), at: bytes.len(), synced: bytes.to_vec(), dirty: BTreeSet::new() }
    }

    /// Where the next append goes.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        self.now.resize(self.now.len().max(end), 0);
        if let Some(place) = self.now.get_mut(self.at..end) {
            place.copy_from_slice(bytes);
        }
        self.dirty.extend(self.at / SECTOR..end.div_ceil(SECTOR));
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.now.truncate(len);
        self.at = self.now.len();
        self.dirty.retain(|sector| sector * SECTOR < len);
        if !len.is_multiple_of(SECTOR) {
            self.dirty.insert(len / SECTOR);
        }
    }

    pub(super) fn sync_all(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        self.synced.resize(self.now.len(), 0);
        dirty.into_iter().for_each(|sector| self.keep(sector));
    }

    /// A failed sync: what was not kept counts as clean all the same.
    pub(super) fn sync_some(&mut self, random: &mut Random) {
        for sector in std::mem::take(&mut self.dirty) {
            if random.below(2) == 0 {
                self.keep(sector);
            }
        }
    }

    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let Some(bytes) = self.now.get(start..self.now.len().min(start + SECTOR)) else { return };
        if self.synced.len() < start + bytes.len() {
            self.synced.resize(start + bytes.len(), 0);
        }
        if let Some(to) = self.synced.get_mut(start..start + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    }

    pub(super) fn lose(&mut self, random: &mut Random) {
        // The length may be on disk before the bytes are: then zeros are read.
        if random.below(4) == 0 {
            self.synced.resize(self.now.len(), 0);
        }
        self.sync_some(random);
        self.now.clone_from(&self.synced);
    }
}
