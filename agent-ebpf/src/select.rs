//! Whose connect it is: whether the calling process is selected, and by what.
//!
//! Enters: the current task, and the socket. Leaves: the job to count under, or nothing. Must never: ask for more look-ups
//! than there are kinds of selection in use, since every process below the attach cgroup pays for them.

use core::ptr::{from_ref, null_mut};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_pid_tgid,
        bpf_get_current_uid_gid, bpf_sk_storage_get,
    },
};
use weir_ebpf::{Selected, Settings, Tag};

use crate::{CGROUPS, SETTINGS, SOCKETS, TASKS, USERS, structures::Cgroup};

/// How many depths [`Settings::cgroup_levels`] can name.
const LEVELS: u32 = 16;

/// What the current process belongs to.
pub struct Belonging {
    pub tag: Tag,
    /// Its cgroup alone says as much: a socket that it makes needs no tag.
    pub by_cgroup: bool,
}

/// The current process alone: what it is tagged with, or what its cgroup or user is selected for.
#[inline(always)]
pub fn current() -> Option<Belonging> {
    let settings = settings()?;
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: a plain value, copied out; the agent and lineage replace it as a whole.
    let tag = unsafe { TASKS.get(tgid) }.copied();
    if let Some(tag) = tag
        && tag.by_executable != 0
    {
        return Some(Belonging { tag, by_cgroup: false });
    }
    let (process_start, inherited) = tag.map_or((0, 0), |tag| (tag.process_start, tag.flags));
    let of = |selected: Selected| Tag {
        job: selected.job,
        process_start,
        // Strictness is never lost on the way.
        flags: selected.flags | inherited,
        by_executable: 0,
    };
    // Where it is now goes before where it was when it was tagged.
    if let Some(selected) = current_cgroup(settings.cgroup_levels) {
        return Some(Belonging { tag: of(selected), by_cgroup: inherited & !selected.flags == 0 });
    }
    if let Some(tag) = tag {
        return Some(Belonging { tag, by_cgroup: false });
    }
    if settings.by_user != 0 {
        let uid = bpf_get_current_uid_gid() as u32;
        // SAFETY: as above.
        let tag = unsafe { USERS.get(uid) }.copied().map(of)?;
        return Some(Belonging { tag, by_cgroup: false });
    }
    None
}

/// The current process, or the one that made the socket. False: neither is selected. Out of line, and not an `Option`, since
/// its callers need their stacks for more. `owner` is the socket that a process holds of it.
#[inline(never)]
pub fn of_socket(sk: *mut bpf_sock, owner: *mut bpf_sock, tag: &mut Tag) -> bool {
    if let Some(found) = current() {
        *tag = found.tag;
        return true;
    }
    if let Some(found) = tag_of(owner) {
        *tag = found;
        return true;
    }
    of_its_cgroup(sk, tag)
}

/// Whether the cgroup in which the socket was made is selected, by itself or with one above it. Of one that is gone nobody can
/// tell any more: its sockets count as selected, as strays.
#[inline(always)]
fn of_its_cgroup(sk: *mut bpf_sock, tag: &mut Tag) -> bool {
    // SAFETY: the helper reads the current task.
    if Cgroup::id_of_socket(sk) == unsafe { bpf_get_current_cgroup_id() } {
        // That it is not selected was seen above.
        return false;
    }
    let cgroup = Cgroup::of_socket(sk);
    *tag = cgroup.selected();
    tag.job != 0 || cgroup.is_gone()
}

/// A tag to be filled.
pub const fn nobody() -> Tag {
    Tag { job: 0, process_start: 0, flags: 0, by_executable: 0 }
}

/// Tags a socket with whose it is, wherever it is passed on to.
pub fn tag_socket(sk: *mut bpf_sock, tag: Tag) {
    let mut tag = Tag { process_start: 0, ..tag };
    // SAFETY: the map is a socket storage of `Tag`, the socket the context's own, the value initialised. Without memory for
    // it the socket is still selected in the hands of a selected process.
    unsafe {
        bpf_sk_storage_get(
            from_ref(&SOCKETS).cast_mut().cast(),
            sk.cast(),
            (&raw mut tag).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
}

pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

fn tag_of(sk: *mut bpf_sock) -> Option<Tag> {
    // SAFETY: as in `tag_socket`; without the create flag no value is read.
    let tag = unsafe { bpf_sk_storage_get(from_ref(&SOCKETS).cast_mut().cast(), sk.cast(), null_mut(), 0) };
    // SAFETY: not null, so a `Tag` of this socket, which lives as long as it does.
    if tag.is_null() { None } else { Some(unsafe { *tag.cast::<Tag>() }) }
}

/// The deepest selected cgroup that holds the current process.
pub fn current_cgroup(levels: u64) -> Option<Selected> {
    let mut rest = levels;
    for _ in 0..LEVELS {
        let level = rest & 0xf;
        if level == 0 {
            return None;
        }
        rest >>= 4;
        // SAFETY: takes a number; 0 is the answer of a task that is not so deep.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        // SAFETY: as in `current`.
        if let Some(selected) = unsafe { CGROUPS.get(id) } {
            return Some(*selected);
        }
    }
    None
}
