//! The watch over the tables of rules: who has root can write into them, and what the hooks decide by is then no longer what the agent
//! wrote.
//!
//! Enters: each change that the agent makes, and now and then what stands in the tables. Leaves: the same tables as the agent left them,
//! and what was not so. Must never: take a change of the agent's own for somebody else's (all of them go through here, under one
//! lock), nor look into tables that a successor writes.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key};
use weir_ebpf::{DestinationKey, Settings};

use super::{
    KernelError,
    tables::{entries_of, gone},
    unreadable,
};

/// A table of rules, by its entries.
pub(in crate::kernel) trait Table: Sized {
    type Key: Ord + Copy;
    type Value: PartialEq + Copy;
    fn entries(&self) -> Result<Entries<Self>, KernelError>;
    fn put(&mut self, key: Self::Key, value: Self::Value) -> Result<(), KernelError>;
    fn take_out(&mut self, key: Self::Key) -> Result<(), KernelError>;
}

/// All of a table.
type Entries<T> = Vec<(<T as Table>::Key, <T as Table>::Value)>;

/// A table, and what the agent wrote into it.
pub(in crate::kernel) struct Watched<T: Table> {
    name: &'static str,
    table: T,
    written: BTreeMap<T::Key, T::Value>,
}

/// What somebody else changed in a table.
#[derive(Debug)]
pub struct Changed {
    /// Its name in the kernel object.
    pub table: &'static str,
    /// Entries that were gone, other than they were written, or nobody's of the agent's.
    pub missing: usize,
    pub altered: usize,
    pub foreign: usize,
    /// Whether all is as it was.
    pub mended: Result<(), KernelError>,
}

impl<T: Table> Watched<T> {
    /// What stands in it now counts as written: an agent before this one did, and this one goes through it.
    pub fn open(name: &'static str, table: T) -> Result<Self, KernelError> {
        let written = table.entries()?.into_iter().collect();
        Ok(Self { name, table, written })
    }

    pub fn insert(
        &mut self,
        key: impl Borrow<T::Key>,
        value: impl Borrow<T::Value>,
    ) -> Result<(), KernelError> {
        let (key, value) = (*key.borrow(), *value.borrow());
        self.table.put(key, value)?;
        self.written.insert(key, value);
        Ok(())
    }

    /// What is removed may be gone already.
    pub fn remove(&mut self, key: &T::Key) -> Result<(), KernelError> {
        self.table.take_out(*key)?;
        self.written.remove(key);
        Ok(())
    }

    /// What stands in it.
    pub fn entries(&self) -> Result<Entries<T>, KernelError> {
        self.table.entries()
    }

    /// What the agent wrote.
    pub fn written(&self) -> &BTreeMap<T::Key, T::Value> {
        &self.written
    }

    /// What stands in it now counts as written, as when it was opened.
    pub fn take_over(&mut self) -> Result<(), KernelError> {
        self.written = self.table.entries()?.into_iter().collect();
        Ok(())
    }

    /// Looks whether it is as it was written, and puts it right: what is missing goes in before what is foreign goes out, or after
    /// it where the foreign left no room. What cannot be put right keeps nothing else from it.
    pub fn watch(&mut self) -> Result<Option<Changed>, KernelError> {
        let mut missing = self.written.clone();
        let (mut altered, mut foreign) = (Vec::new(), BTreeSet::new());
        for (key, value) in self.table.entries()? {
            match missing.remove(&key) {
                // While entries come and go, a walk may meet one twice.
                None if self.written.contains_key(&key) => {}
                None => {
                    foreign.insert(key);
                }
                Some(written) if written != value => altered.push((key, written)),
                Some(_) => {}
            }
        }
        if missing.is_empty() && altered.is_empty() && foreign.is_empty() {
            return Ok(None);
        }
        let (lost, others, strangers) = (missing.len(), altered.len(), foreign.len());
        let mut left: Vec<_> = missing.into_iter().chain(altered).collect();
        left.retain(|(key, value)| self.table.put(*key, *value).is_err());
        let mut mended = Ok(());
        for key in foreign {
            mended = mended.and(self.table.take_out(key));
        }
        for (key, value) in left {
            mended = mended.and(self.table.put(key, value));
        }
        Ok(Some(Changed { table: self.name, missing: lost, altered: others, foreign: strangers, mended }))
    }

    /// The table itself, as somebody with root has it.
    #[cfg(test)]
    pub fn behind_its_back(&mut self) -> &mut T {
        &mut self.table
    }
}

impl<K: aya::Pod + Ord, V: aya::Pod + PartialEq> Table for HashMap<MapData, K, V> {
    type Key = K;
    type Value = V;

    fn entries(&self) -> Result<Vec<(K, V)>, KernelError> {
        entries_of(self)
    }

    fn put(&mut self, key: K, value: V) -> Result<(), KernelError> {
        self.insert(key, value, 0).map_err(unreadable)
    }

    fn take_out(&mut self, key: K) -> Result<(), KernelError> {
        gone(self.remove(&key))
    }
}

/// Its keys with the number of their bits that count.
impl Table for LpmTrie<MapData, DestinationKey, u32> {
    type Key = (u32, DestinationKey);
    type Value = u32;

    fn entries(&self) -> Result<Vec<(Self::Key, u32)>, KernelError> {
        let entries =
            self.iter().map(|entry| entry.map(|(key, action)| ((key.prefix_len(), key.data()), action)));
        entries.collect::<Result<_, _>>().map_err(unreadable)
    }

    fn put(&mut self, (bits, key): Self::Key, action: u32) -> Result<(), KernelError> {
        self.insert(&Key::new(bits, key), action, 0).map_err(unreadable)
    }

    fn take_out(&mut self, (bits, key): Self::Key) -> Result<(), KernelError> {
        gone(self.remove(&Key::new(bits, key)))
    }
}

/// One entry, which cannot be taken out.
impl Table for Array<MapData, Settings> {
    type Key = u32;
    type Value = Settings;

    fn entries(&self) -> Result<Vec<(u32, Settings)>, KernelError> {
        Ok(vec![(0, self.get(&0, 0).map_err(unreadable)?)])
    }

    fn put(&mut self, key: u32, settings: Settings) -> Result<(), KernelError> {
        self.set(key, settings, 0).map_err(unreadable)
    }

    fn take_out(&mut self, _: u32) -> Result<(), KernelError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use weir_ebpf::{OWN_PORTS_ROOM, Selected, action};

    use super::super::{Destination, Hooks, Plan, lock};
    use super::*;

    fn found(hooks: &Hooks) -> Vec<(&'static str, usize, usize, usize)> {
        let found = hooks.watch_tables().unwrap();
        found
            .into_iter()
            .map(|changed| {
                changed.mended.unwrap();
                (changed.table, changed.missing, changed.altered, changed.foreign)
            })
            .collect()
    }

    #[test]
    fn what_root_writes_into_the_tables_is_seen_and_put_right() {
        let hooks = Hooks::load(Plan { own_ports: &[7], ..Plan::default() }).expect("these tests need root");
        let selected = Selected { job: 5, flags: 1, reserved: 0 };
        hooks.select_cgroup(5, selected).unwrap();
        hooks.select_cgroup(6, selected).unwrap();
        hooks.select_user(1000, selected).unwrap();
        hooks.change_settings(|settings| settings.cgroup_levels = 3).unwrap();
        let destination =
            |network: &str, action| Destination { network: network.parse().unwrap(), port: 443, action };
        hooks.set_destinations(&[destination("0.0.0.0/0", action::INTERCEPT)]).unwrap();
        hooks.add_destination(destination("10.0.0.0/8", action::INTERCEPT)).unwrap();
        hooks.unselect_cgroup(6).unwrap();
        assert_eq!(found(&hooks), [], "the agent's own changes are nobody else's");

        let before = hooks.selected_cgroups().unwrap();
        {
            let mut tables = lock(&hooks.tables);
            let settings = tables.settings().unwrap();
            tables.cgroups.behind_its_back().take_out(5).unwrap();
            tables.cgroups.behind_its_back().put(9, selected).unwrap();
            tables.users.behind_its_back().put(1000, Selected { flags: 0, ..selected }).unwrap();
            tables.own_ports.behind_its_back().take_out(7).unwrap();
            let blind = Settings { cgroup_levels: 0, ..settings };
            tables.settings.behind_its_back().put(0, blind).unwrap();
            let everywhere = (16, DestinationKey::new(443, [0; 16]));
            tables.destinations.behind_its_back().put(everywhere, action::PASS).unwrap();
        }
        let mut seen = found(&hooks);
        seen.sort_unstable();
        let expected = [
            ("CGROUPS", 1, 0, 1),
            ("DESTINATIONS", 0, 0, 1),
            ("OWN_PORTS", 1, 0, 0),
            ("SETTINGS", 0, 1, 0),
            ("USERS", 0, 1, 0),
        ];
        assert_eq!(seen, expected);
        assert_eq!(found(&hooks), [], "all is as it was");
        assert_eq!(hooks.selected_cgroups().unwrap(), before);
        assert_eq!(lock(&hooks.tables).settings().unwrap().cgroup_levels, 3);
    }

    #[test]
    fn what_root_fills_a_table_with_goes_and_what_was_written_comes_back() {
        const OWN: u16 = 7;
        let hooks =
            Hooks::load(Plan { own_ports: &[OWN], ..Plan::default() }).expect("these tests need root");
        {
            let mut tables = lock(&hooks.tables);
            let ports = tables.own_ports.behind_its_back();
            ports.take_out(OWN).unwrap();
            let mut others = 1000_u16..;
            while others.next().is_some_and(|port| ports.put(port, 1).is_ok()) {}
            assert!(ports.put(OWN, 1).is_err(), "there is no room for it");
        }
        assert_eq!(found(&hooks), [("OWN_PORTS", 1, 0, OWN_PORTS_ROOM as usize)]);
        assert_eq!(lock(&hooks.tables).own_ports.entries().unwrap(), [(OWN, 1)]);
        assert_eq!(found(&hooks), []);
    }

    /// Meets all of its entries twice, as a walk can that begins anew.
    struct Twice(BTreeMap<u8, u8>);

    impl Table for Twice {
        type Key = u8;
        type Value = u8;

        fn entries(&self) -> Result<Vec<(u8, u8)>, KernelError> {
            Ok(self.0.iter().chain(&self.0).map(|(key, value)| (*key, *value)).collect())
        }

        fn put(&mut self, key: u8, value: u8) -> Result<(), KernelError> {
            self.0.insert(key, value);
            Ok(())
        }

        fn take_out(&mut self, key: u8) -> Result<(), KernelError> {
            self.0.remove(&key);
            Ok(())
        }
    }

    #[test]
    fn an_entry_that_is_met_twice_counts_once_and_is_nobody_elses() {
        let mut table = Watched::open("TWICE", Twice([(1, 1), (2, 2)].into())).unwrap();
        assert!(table.watch().unwrap().is_none());
        table.behind_its_back().put(2, 9).unwrap();
        table.behind_its_back().put(3, 3).unwrap();
        let changed = table.watch().unwrap().unwrap();
        assert_eq!((changed.missing, changed.altered, changed.foreign), (0, 1, 1));
        assert_eq!(table.behind_its_back().0, BTreeMap::from([(1, 1), (2, 2)]));
    }

    #[test]
    fn nothing_is_looked_at_while_a_successor_writes() {
        let hooks = Hooks::load(Plan::default()).expect("these tests need root");
        hooks.guard_tables(false);
        lock(&hooks.tables)
            .netns
            .behind_its_back()
            .put(1, weir_ebpf::Listeners { v6: [0; 16], v4: [0; 4], v6_port: 1, v4_port: 1 })
            .unwrap();
        assert_eq!(found(&hooks), []);
        hooks.guard_tables(true);
        assert_eq!(found(&hooks), [("NETNS", 0, 0, 1)]);
    }
}
