//! What each peer may have at a time of what all have in common, so that one cannot take it all.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many for each key.
#[derive(Debug)]
pub(super) struct Shares<K> {
    limit: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub(super) struct Share<K: Hash + Eq> {
    of: Arc<Shares<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    pub fn of(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// None when the key has its share.
    pub fn take(self: &Arc<Self>, key: K) -> Option<Share<K>> {
        let mut taken = self.taken();
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Share { of: self.clone(), key })
    }
}

impl<K> Shares<K> {
    fn taken(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_share_and_nothing_stays_behind() {
        let shares = Shares::of(2);
        let (first, second) = (shares.take("a").unwrap(), shares.take("a").unwrap());
        assert!(shares.take("a").is_none(), "the share is used up");
        let other = shares.take("b").unwrap();
        drop(first);
        let third = shares.take("a").unwrap();
        drop((second, third, other));
        assert!(shares.taken().is_empty());
    }
}
