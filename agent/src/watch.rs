//! The watch over the hooks: a job with root can take them off, and Weir then puts them back and says so.
//!
//! Enters: what [`Hooks::watch`] found and mended, once a second, and [`Hooks::watch_tables`], every five. Leaves: an event
//! `tamper.hook_detached` or `tamper.table_changed` for each, with the jobs that were running, and an error in the log. Must
//! never: go on beside a successor, whose programs are others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use weir_core::mask::Masker;
use weir_core::record::AgentEvent;

use crate::cgroup;
use crate::kernel::link::Tampering;
use crate::kernel::{Changed, Hooks};
use crate::ledger::{Ledger, Text};

const EVENT: &str = "tamper.hook_detached";
const TABLE_EVENT: &str = "tamper.table_changed";
const EACH: Duration = Duration::from_secs(1);
/// A look at the tables reads all of them.
const LOOKS_A_TABLE: u32 = 5;
/// How many jobs, and how many processes, an event names; more are only counted.
const NAMED: usize = 32;
/// How deep below the hooks' cgroup jobs are looked for.
const DEPTH: usize = 16;

/// Watches until it is dropped.
pub async fn watch(hooks: Arc<Hooks>, ledger: Ledger, masker: Masker) {
    // What could not be mended is told once, and not each second.
    let mut broken = BTreeSet::new();
    for look in 1_u32.. {
        tokio::time::sleep(EACH).await;
        if look.is_multiple_of(LOOKS_A_TABLE) {
            look_at_tables(&hooks, &ledger, &masker, &mut broken).await;
        }
        let found = match hooks.watch() {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "cannot look after the hooks");
                continue;
            }
        };
        for (cgroup, tampering) in found {
            let news = match &tampering.mended {
                Ok(()) => {
                    broken.remove(&tampering.link);
                    true
                }
                Err(_) => broken.insert(tampering.link.clone()),
            };
            if news {
                tell(&hooks, &ledger, &masker, cgroup.as_deref(), &tampering).await;
            }
        }
    }
}

/// Looks once. `broken` holds what could not be mended and was told.
pub(crate) async fn look_at_tables(
    hooks: &Arc<Hooks>,
    ledger: &Ledger,
    masker: &Masker,
    broken: &mut BTreeSet<String>,
) {
    let own = hooks.clone();
    let found = match tokio::task::spawn_blocking(move || own.watch_tables()).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return tracing::error!(%error, "cannot look after the hooks' tables"),
        Err(error) => return tracing::error!(%error, "the look after the hooks' tables failed"),
    };
    for Changed { table, missing, altered, foreign, mended } in found {
        let news = match &mended {
            Ok(()) => {
                broken.remove(table);
                true
            }
            Err(_) => broken.insert(table.to_owned()),
        };
        if !news {
            continue;
        }
        let running = Running::below(hooks, &cgroup::mount_point().unwrap_or_default());
        let mended = mended.map_or_else(|error| error.to_string(), |()| "yes".to_owned());
        tracing::error!(
            table,
            missing,
            altered,
            foreign,
            mended,
            jobs = running.jobs,
            "somebody with root wrote into a table of the hooks"
        );
        let told = [
            ("table", table),
            ("missing", &missing.to_string()),
            ("altered", &altered.to_string()),
            ("foreign", &foreign.to_string()),
            ("mended", &mended),
            ("jobs", &running.jobs),
            ("processes", &running.processes),
        ];
        note(ledger, masker, TABLE_EVENT, told).await;
    }
}

async fn tell(hooks: &Hooks, ledger: &Ledger, masker: &Masker, cgroup: Option<&Path>, tampering: &Tampering) {
    // A program that follows processes does so everywhere.
    let everywhere = cgroup::mount_point().unwrap_or_default();
    let cgroup = cgroup.unwrap_or(&everywhere);
    let running = Running::below(hooks, cgroup);
    let state = tampering.state.label();
    let mended = tampering.mended.as_ref().map_or_else(ToString::to_string, |()| "yes".to_owned());
    tracing::error!(
        link = tampering.link,
        cgroup = %cgroup.display(),
        state,
        mended,
        jobs = running.jobs,
        "somebody with root laid hands on a hook"
    );
    let told = [
        ("link", &*tampering.link),
        ("cgroup", &cgroup.to_string_lossy()),
        ("state", state),
        ("mended", &mended),
        ("jobs", &running.jobs),
        ("processes", &running.processes),
    ];
    note(ledger, masker, EVENT, told).await;
}

/// Records what somebody with root did.
async fn note<const N: usize>(ledger: &Ledger, masker: &Masker, event: &str, told: [(&str, &str); N]) {
    let text = |(name, value): (&str, &str)| -> (String, Text) { (name.to_owned(), masker.text(value)) };
    let detail = told.into_iter().map(text).collect();
    if let Err(error) = ledger.note(AgentEvent { name: event.to_owned(), detail }).await {
        tracing::error!(%error, event, "what was tampered with is not in the record");
    }
}

/// The jobs that ran when a hook was found tampered with. Whoever did it may be gone by then, or be no job at all.
#[derive(Debug, Default, PartialEq, Eq)]
struct Running {
    /// Their keys.
    jobs: String,
    /// `pid name`.
    processes: String,
}

impl Running {
    fn below(hooks: &Hooks, cgroup: &Path) -> Self {
        let mut processes = BTreeMap::<u64, BTreeSet<u32>>::new();
        let selected = hooks.selected_cgroups().unwrap_or_default();
        let own = fs::metadata(cgroup).map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata));
        let job = own.ok().and_then(|id| selected.get(&id)).map(|selected| selected.job);
        let jobs = selected.iter().map(|(id, selected)| (*id, selected.job)).collect();
        walk(cgroup, job, &jobs, DEPTH, &mut processes);
        for (pid, tag) in hooks.tags().unwrap_or_default() {
            processes.entry(tag.job).or_default().insert(pid);
        }
        let epoch = hooks.epoch();
        let keys = processes.keys().map(|job| format!("{epoch:016x}-{job:016x}")).collect();
        let names = processes.values().flatten().map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{pid} {}", name.trim_end())
        });
        Self { jobs: listed(keys), processes: listed(names.collect()) }
    }
}

/// Finds the processes of selected cgroups, by job.
fn walk(
    folder: &Path,
    job: Option<u64>,
    selected: &BTreeMap<u64, u64>,
    depth: usize,
    found: &mut BTreeMap<u64, BTreeSet<u32>>,
) {
    if let Some(job) = job {
        let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let pids: Vec<u32> = pids.lines().filter_map(|line| line.parse().ok()).collect();
        if !pids.is_empty() {
            found.entry(job).or_default().extend(pids);
        }
    }
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let job = selected.get(&entry.ino()).copied().or(job);
            walk(&entry.path(), job, selected, depth, found);
        }
    }
}

fn listed(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let list = listed((0..40).map(|n| n.to_string()).collect());
        assert!(list.starts_with("0, 1, ") && list.ends_with("31, and 8 more"), "{list}");
        assert_eq!(listed(vec!["a".into()]), "a");
    }
}
