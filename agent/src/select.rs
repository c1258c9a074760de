//! Selection: from what the operator wrote to the tables by which the hooks and lineage decide, kept true while cgroups and
//! files come and go.
//!
//! Enters: `[select]`, the cgroup2 hierarchy, new cgroups as the kernel tells of them. Leaves: entries in the hooks' tables, and
//! what came to be selected. Must never: let a selected cgroup go that is there, or lose strictness where selections overlap.

mod files;
pub mod pattern;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use weir_ebpf::{FileKey, Selected, Settings, flag};

use self::pattern::{Pattern, is_literal};
use crate::account::{Accounts, Extent};
use crate::cgroup::{self, CgroupError};
use crate::config::{Reach, Select, UserName};
use crate::kernel::{Hooks, KernelError};

/// Marks the job of a user.
const USER_JOB: u64 = 1 << 62;
/// Whoever holds this part of the room for selected cgroups below one cgroup can have filled it.
const SHARE: usize = 16;
/// The inode of the initial cgroup namespace (`PROC_CGROUP_INIT_INO` of the kernel).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFB;

#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("there is no user {0:?}: write its number, or create it")]
    NoUser(String),
    #[error("{pattern:?} lies outside of the cgroup2 mount {}: write it below, or relative to it", mount.display())]
    Outside { pattern: String, mount: PathBuf },
}

/// See the module.
#[derive(Debug)]
pub struct Selection {
    mount: PathBuf,
    attach: Vec<PathBuf>,
    entries: Vec<Entry>,
    users: Vec<(u32, u32)>,
    /// Whether depths below the mount are those below the hierarchy's root.
    depths_known: bool,
    cgroups: BTreeMap<u64, Cgroup>,
    files: BTreeMap<FileKey, u32>,
    told_unselected: BTreeSet<u64>,
    /// Cgroups that were selected in place of those below them that match, until they are gone: their flags.
    widened: BTreeMap<String, u32>,
    notes: Vec<Note>,
}

/// Why more was selected than was named, or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// There are more selected cgroups than there is room for.
    NoRoom,
    /// It lies deeper than the hooks look.
    TooDeep,
}

/// What the selection did that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// All of this cgroup is selected, as one job, in place of so many of those below it.
    Widened { path: String, instead_of: usize, because: Because },
    /// It is not selected: its connects are not intercepted.
    Failed { path: String, fault: String },
}

#[derive(Debug)]
struct Entry {
    cgroups: Vec<Pattern>,
    executables: Vec<String>,
    flags: u32,
}

/// A selected cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    pub id: u64,
    /// From the mount on, without a slash at its beginning.
    pub path: String,
    pub selected: Selected,
}

/// What one look at the hierarchy found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Selected from now on.
    pub new: Vec<Cgroup>,
    /// All cgroups that are there, by number.
    pub paths: BTreeMap<u64, String>,
}

impl Selection {
    pub fn new(select: &Select) -> Result<Self, SelectError> {
        let mount = cgroup::mount_point()?;
        let mut own = Self {
            attach: select.entries.iter().flat_map(|entry| &entry.attach).cloned().collect(),
            entries: Vec::new(),
            users: Vec::new(),
            depths_known: fs::metadata("/proc/self/ns/cgroup").is_ok_and(|ns| ns.ino() == INITIAL_NAMESPACE),
            cgroups: BTreeMap::new(),
            files: BTreeMap::new(),
            told_unselected: BTreeSet::new(),
            widened: BTreeMap::new(),
            notes: Vec::new(),
            mount,
        };
        if own.attach.is_empty() {
            own.attach.push(own.mount.clone());
        }
        for cgroup in &mut own.attach {
            *cgroup = cgroup::resolve(cgroup)?;
        }
        own.attach.dedup();
        for entry in &select.entries {
            let flags = if entry.egress == Reach::Strict { flag::STRICT } else { 0 };
            let mut cgroups = Vec::new();
            for text in &entry.cgroups {
                // A cgroup that is named in full is one that must be there.
                if text.starts_with('/') && is_literal(text) {
                    cgroup::resolve(Path::new(text))?;
                }
                let pattern = Pattern::new(text, &own.mount.to_string_lossy());
                let outside = || SelectError::Outside { pattern: text.clone(), mount: own.mount.clone() };
                cgroups.push(pattern.ok_or_else(outside)?);
            }
            for user in &entry.uids {
                own.users.push((uid(user)?, flags));
            }
            own.entries.push(Entry { cgroups, executables: entry.executables.clone(), flags });
        }
        Ok(own)
    }

    /// Attaches the hooks, and selects what does not come and go.
    pub fn begin(&self, hooks: &Hooks, accounts: &Accounts) -> Result<(), SelectError> {
        for (uid, flags) in &self.users {
            let job = u64::from(*uid) | USER_JOB;
            accounts.begin(job, format!("user {uid}"), Extent::Always);
            hooks.select_user(*uid, Selected { job, flags: *flags, reserved: 0 })?;
        }
        for cgroup in &self.attach {
            hooks.attach(cgroup)?;
        }
        Ok(())
    }

    /// Lets go of what an agent before this one selected, and this one does not. To be called after the first look.
    pub fn settle(&self, hooks: &Hooks) -> Result<(), SelectError> {
        for id in hooks.selected_cgroups()?.keys().filter(|id| !self.cgroups.contains_key(id)) {
            hooks.unselect_cgroup(*id)?;
        }
        self.write_levels(hooks, None)?;
        Ok(hooks.keep_selectors(&self.files, &self.users.iter().map(|(uid, _)| *uid).collect())?)
    }

    /// Whether processes are selected by their user, and by what.
    pub fn user(&self, uid: u32) -> Option<Selected> {
        let (_, flags) = self.users.iter().find(|(selected, _)| *selected == uid)?;
        Some(Selected { job: u64::from(uid) | USER_JOB, flags: *flags, reserved: 0 })
    }

    /// Whether a file is a selected executable: its flags.
    pub fn executable(&self, path: &Path) -> Option<u32> {
        self.files.get(&files::key(path)?).copied()
    }

    /// Looks at the whole hierarchy, and at the executables.
    pub fn scan(&mut self, hooks: &Hooks, accounts: &Accounts) -> Result<Scan, SelectError> {
        let mut scan = Scan::default();
        let mut found = Vec::new();
        self.walk(&self.mount, "", 0, 0, &mut scan.paths, &mut found);
        let there: BTreeSet<u64> = scan.paths.keys().copied().collect();
        for cgroup in found {
            let (id, path) = (cgroup.id, cgroup.path.clone());
            match self.select(hooks, accounts, cgroup, &mut scan.new) {
                Ok(()) => {}
                // One that cannot be selected must not keep the others from it.
                Err(error) if self.told_unselected.insert(id) => {
                    tracing::error!(%error, path, "a cgroup cannot be selected: it is not intercepted");
                    self.notes.push(Note::Failed { path, fault: error.to_string() });
                }
                Err(_) => {}
            }
        }
        let gone: Vec<u64> = self.cgroups.keys().filter(|id| !there.contains(id)).copied().collect();
        for id in &gone {
            if let Some(cgroup) = self.cgroups.remove(id) {
                self.widened.remove(&cgroup.path);
            }
            hooks.unselect_cgroup(*id)?;
        }
        if !gone.is_empty() {
            self.write_levels(hooks, None)?;
        }
        self.find_executables(hooks)?;
        Ok(scan)
    }

    /// The kernel told of a new cgroup: its path from the hierarchy's root. To `new` goes what is selected from now on.
    pub fn made(
        &mut self,
        hooks: &Hooks,
        accounts: &Accounts,
        id: u64,
        path: &str,
        new: &mut Vec<Cgroup>,
    ) -> Result<(), SelectError> {
        let path = path.trim_start_matches('/').to_owned();
        // In another cgroup namespace the mount begins elsewhere; there the next look finds it.
        let is_it = fs::metadata(self.mount.join(&path)).is_ok_and(|folder| folder.ino() == id);
        let Some(flags) = self.flags(&path).filter(|_| is_it) else { return Ok(()) };
        let within =
            |cgroup: &&Cgroup| path.strip_prefix(&cgroup.path).is_some_and(|rest| rest.starts_with('/'));
        let above = self.cgroups.values().filter(within).fold(0, |all, cgroup| all | cgroup.selected.flags);
        let selected = Selected { job: id, flags: flags | above, reserved: 0 };
        self.select(hooks, accounts, Cgroup { id, path, selected }, new)
    }

    /// Those that are selected now.
    pub fn cgroups(&self) -> impl Iterator<Item = &Cgroup> {
        self.cgroups.values()
    }

    fn select(
        &mut self,
        hooks: &Hooks,
        accounts: &Accounts,
        mut cgroup: Cgroup,
        new: &mut Vec<Cgroup>,
    ) -> Result<(), SelectError> {
        // What holds for those that it was selected in place of.
        cgroup.selected.flags |= self.widened.get(&cgroup.path).copied().unwrap_or_default();
        if self.cgroups.get(&cgroup.id).is_some_and(|old| old.selected == cgroup.selected) {
            return Ok(());
        }
        // As part of one above it.
        if self
            .widened
            .iter()
            .any(|(above, flags)| is_below(&cgroup.path, above) && cgroup.selected.flags & !flags == 0)
        {
            return Ok(());
        }
        if self.depths_known && depth(&cgroup.path) >= Settings::LEVELS {
            let above = cgroup.path.splitn(Settings::LEVELS, '/').take(Settings::LEVELS - 1);
            let above = above.collect::<Vec<_>>().join("/");
            new.extend(self.widen(hooks, accounts, above, Some(&cgroup), Because::TooDeep)?);
            return Ok(());
        }
        // One place is kept, so that what is wider goes in before what it holds goes out. Each turn makes room, or leads higher.
        while !self.cgroups.contains_key(&cgroup.id) && self.cgroups.len() + 1 >= hooks.cgroups_room() {
            let paths = self.cgroups.values().map(|cgroup| cgroup.path.as_str());
            let above = fullest(paths.chain([cgroup.path.as_str()]), (hooks.cgroups_room() / SHARE).max(2));
            let Some(above) = above else { break };
            let is_part = cgroup.path == above || is_below(&cgroup.path, &above);
            new.extend(self.widen(hooks, accounts, above, is_part.then_some(&cgroup), Because::NoRoom)?);
            if is_part {
                return Ok(());
            }
        }
        new.extend(self.put(hooks, accounts, cgroup)?);
        Ok(())
    }

    /// Selects all of a cgroup in place of those below it, and of `asked`, which is to be one of them. Nothing that was to be
    /// intercepted is not; what lies beside it is, too.
    fn widen(
        &mut self,
        hooks: &Hooks,
        accounts: &Accounts,
        above: String,
        asked: Option<&Cgroup>,
        because: Because,
    ) -> Result<Option<Cgroup>, SelectError> {
        let held: Vec<u64> = match because {
            Because::NoRoom => {
                let held = self.cgroups.values().filter(|cgroup| is_below(&cgroup.path, &above));
                held.map(|cgroup| cgroup.id).collect()
            }
            Because::TooDeep => Vec::new(),
        };
        let folder = self.mount.join(&above);
        let id = match fs::metadata(&folder) {
            Ok(folder) => folder.ino(),
            // With all that is in it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return self.let_go(hooks, &held).map(|()| None);
            }
            Err(source) => {
                return Err(CgroupError::Io { doing: "look at", path: folder, source }.into());
            }
        };
        let flags = held.iter().chain([&id]).filter_map(|id| self.cgroups.get(id));
        let flags = flags
            .fold(asked.map_or(0, |asked| asked.selected.flags), |all, cgroup| all | cgroup.selected.flags);
        let job = self.cgroups.get(&id).map_or(id, |known| known.selected.job);
        let selected = Selected { job, flags, reserved: 0 };
        let new = self.put(hooks, accounts, Cgroup { id, path: above.clone(), selected })?;
        self.let_go(hooks, &held)?;
        self.write_levels(hooks, None)?;
        let instead_of = held.len() + usize::from(asked.is_some());
        tracing::error!(
            cgroup = above,
            instead_of,
            ?because,
            "all of a cgroup is selected in place of those below it: name cgroups by their paths"
        );
        self.widened.insert(above.clone(), flags);
        self.notes.push(Note::Widened { path: above, instead_of, because });
        Ok(new)
    }

    fn let_go(&mut self, hooks: &Hooks, held: &[u64]) -> Result<(), SelectError> {
        for id in held {
            self.cgroups.remove(id);
            hooks.unselect_cgroup(*id)?;
        }
        Ok(())
    }

    /// What is to be recorded since the last time.
    pub fn notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    fn put(
        &mut self,
        hooks: &Hooks,
        accounts: &Accounts,
        cgroup: Cgroup,
    ) -> Result<Option<Cgroup>, SelectError> {
        let folder = self.mount.join(&cgroup.path);
        // Before anything of it can be counted.
        accounts.begin(cgroup.selected.job, folder.display().to_string(), Extent::Cgroup(folder));
        // The depth first: without it the entry would not be looked up.
        self.write_levels(hooks, Some(depth(&cgroup.path)))?;
        hooks.select_cgroup(cgroup.id, cgroup.selected)?;
        let is_new = self.cgroups.insert(cgroup.id, cgroup.clone()).is_none();
        Ok(is_new.then_some(cgroup))
    }

    fn write_levels(&self, hooks: &Hooks, besides: Option<usize>) -> Result<(), SelectError> {
        let depths = self.cgroups.values().map(|cgroup| depth(&cgroup.path)).chain(besides);
        let levels = if self.depths_known {
            Settings::pack_levels(depths)
        } else {
            Settings::pack_levels(1..Settings::LEVELS)
        };
        // None is too deep: it would not have been selected.
        let levels = levels.unwrap_or_default();
        Ok(hooks.change_settings(|settings| settings.cgroup_levels = levels)?)
    }

    /// Top-down, so that what holds for a cgroup holds for those below.
    fn walk(
        &self,
        folder: &Path,
        path: &str,
        depth: usize,
        above: u32,
        paths: &mut BTreeMap<u64, String>,
        found: &mut Vec<Cgroup>,
    ) {
        /// Deeper cgroups cannot be selected, and are those of a selected one at most.
        const DEEPEST: usize = 24;
        // A folder that is gone meanwhile has nothing below.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata()) else {
                continue;
            };
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            let id = metadata.ino();
            let mut flags = above;
            if let Some(own) = self.flags(&path) {
                flags |= own;
                let selected = Selected { job: id, flags, reserved: 0 };
                found.push(Cgroup { id, path: path.clone(), selected });
            }
            if depth < DEEPEST {
                self.walk(&entry.path(), &path, depth + 1, flags, paths, found);
            }
            paths.insert(id, path);
        }
    }

    /// What holds for a cgroup by its own path. None: it is not selected by that.
    fn flags(&self, path: &str) -> Option<u32> {
        let matching =
            self.entries.iter().filter(|entry| entry.cgroups.iter().any(|pattern| pattern.matches(path)));
        matching.map(|entry| entry.flags).reduce(|all, flags| all | flags)
    }

    fn find_executables(&mut self, hooks: &Hooks) -> Result<(), SelectError> {
        let mut now: BTreeMap<FileKey, u32> = BTreeMap::new();
        for entry in &self.entries {
            for file in entry.executables.iter().flat_map(|pattern| pattern::files(pattern)) {
                if let Some(key) = files::key(&file) {
                    *now.entry(key).or_default() |= entry.flags;
                }
            }
        }
        for (key, flags) in &now {
            if self.files.get(key) != Some(flags) {
                hooks.select_executable(*key, Selected { job: 0, flags: *flags, reserved: 0 })?;
            }
        }
        for key in self.files.keys().filter(|key| !now.contains_key(key)) {
            hooks.unselect_executable(*key)?;
        }
        self.files = now;
        Ok(())
    }
}

fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

/// Each of these counts for the deepest cgroup above it that holds enough: a job can make cgroups below what it was given alone, so
/// what it fills with them is its own. The one for which the most count. Where none holds enough, whoever makes room; those right
/// below the root, which hold what is of many, only when nothing else does.
fn fullest<'a>(paths: impl Iterator<Item = &'a str>, enough: usize) -> Option<String> {
    let above: Vec<Vec<&str>> =
        paths.map(|path| path.match_indices('/').filter_map(|(end, _)| path.get(..end)).collect()).collect();
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    for folder in above.iter().flatten() {
        *held.entry(folder).or_default() += 1;
    }
    [(2, enough), (2, 2), (1, 2), (1, 1)].into_iter().find_map(|(least_depth, enough)| {
        let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
        for folders in &above {
            let holds = |folder: &&&str| depth(folder) >= least_depth && held.get(*folder) >= Some(&enough);
            if let Some(folder) = folders.iter().rfind(holds) {
                *counted.entry(folder).or_default() += 1;
            }
        }
        counted.into_iter().max_by_key(|(_, number)| *number).map(|(folder, _)| folder.to_owned())
    })
}

/// How far below the root a path lies.
fn depth(path: &str) -> usize {
    path.split('/').filter(|part| !part.is_empty()).count()
}

fn uid(user: &UserName) -> Result<u32, SelectError> {
    match user {
        UserName::Number(uid) => Ok(*uid),
        UserName::Name(name) => match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            _ => Err(SelectError::NoUser(name.clone())),
        },
    }
}
