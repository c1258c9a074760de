//! Who is in a network namespace. One in which no process is left must be let go: our own sockets would keep it alive.
//!
//! Enters: `/proc`. Leaves: of the namespaces that were asked for, those with a process or thread in them. Must never:
//! count this process.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

/// A thread in a namespace, by whose departure alone others are looked for.
pub type Witness = u32;

/// Of the namespaces, by inode and with the last witness of each, those that somebody is in, with a witness.
///
/// Where all witnesses are still in their places nothing else is looked at; then the processes; and only for what is
/// left without one, each thread.
pub fn inhabited(asked: &HashMap<u64, Witness>) -> HashMap<u64, Witness> {
    let mut found: HashMap<u64, Witness> = HashMap::new();
    for (inode, witness) in asked {
        if namespace_of(&Path::new("/proc").join(witness.to_string())) == Some(*inode) {
            found.insert(*inode, *witness);
        }
    }
    let mut missing: HashSet<u64> =
        asked.keys().filter(|inode| !found.contains_key(inode)).copied().collect();
    for folders in [processes as fn() -> Vec<(u32, std::path::PathBuf)>, threads] {
        if missing.is_empty() {
            break;
        }
        for (id, folder) in folders() {
            if let Some(inode) = namespace_of(&folder)
                && missing.remove(&inode)
            {
                found.insert(inode, id);
            }
        }
    }
    found
}

/// The network namespaces that processes are in, each with one of them.
pub fn all() -> HashMap<u64, Witness> {
    processes().into_iter().filter_map(|(id, folder)| Some((namespace_of(&folder)?, id))).collect()
}

/// All processes but this one.
fn processes() -> Vec<(u32, std::path::PathBuf)> {
    let own = std::process::id();
    numbered(Path::new("/proc")).filter(|(id, _)| *id != own).collect()
}

fn threads() -> Vec<(u32, std::path::PathBuf)> {
    processes()
        .into_iter()
        .flat_map(|(_, process)| numbered(&process.join("task")).collect::<Vec<_>>())
        .collect()
}

fn numbered(folder: &Path) -> impl Iterator<Item = (u32, std::path::PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

/// None for a process that is gone, is a zombie, or may not be looked at.
fn namespace_of(folder: &Path) -> Option<u64> {
    let link = fs::read_link(folder.join("ns/net")).ok()?;
    inode(link.as_os_str())
}

/// `net:[4026531840]`
fn inode(link: &OsStr) -> Option<u64> {
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_that_is_not_there_is_replaced_by_one_that_is_and_never_by_this_process() {
        let own = namespace_of(Path::new("/proc/self")).unwrap();
        let found = inhabited(&[(own, u32::MAX), (1, 1)].into());
        // The test runner, at least.
        assert!(found.contains_key(&own) && !found.contains_key(&1), "{found:?}");
        assert_ne!(found[&own], std::process::id());
        assert!(all().contains_key(&own));
    }

    #[test]
    fn what_is_no_network_namespace_has_no_inode() {
        assert_eq!(inode(OsStr::new("net:[4026531840]")), Some(4_026_531_840));
        for other in ["mnt:[1]", "net:[]", "net:[1", ""] {
            assert_eq!(inode(OsStr::new(other)), None, "{other}");
        }
    }
}
