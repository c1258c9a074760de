//! Callers that were described a moment ago. A process that connects again and again is the same each time, and to ask /proc for it, and to
//! mask what it says, costs more than a handshake.
//!
//! Enters: a description, and what it rests on. Leaves: the same, while all of that is as it was. Must never: give out one process's
//! description for another, or one from before the process became another program, moved, or told its CI job.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weir_core::mask::Masked;
use weir_core::record::{Caller, Job};

use super::{Image, Key, Process};
use crate::kernel::Origin;

/// For how long a description holds: of what the kernel does not tell (what a process makes its command line, say) it is older by no more.
const FRESH: Duration = Duration::from_secs(1);
/// The most that are kept; past it all are described anew.
const MOST: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Callers(Mutex<HashMap<Who, Kept>>);

/// What the kernel says of who connects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Who {
    process: Key,
    thread: String,
    uid: u32,
    gid: u32,
    cgroup: u64,
    job: u64,
}

#[derive(Debug)]
struct Kept {
    since: Instant,
    image: Option<Image>,
    ci: Arc<Job<Masked<String>>>,
    netns: u32,
    caller: Described,
}

/// A description that connections share.
pub type Described = Arc<Caller<Masked<String>>>;

impl Callers {
    /// The description of whoever this is, from a moment ago.
    pub fn of(&self, origin: &Origin, process: &Process) -> Option<Described> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get(&who(origin, process))?;
        let same = kept.image.as_ref() == image(origin, process)
            && kept.netns == process.netns
            && Arc::ptr_eq(&kept.ci, &process.ci);
        (same && process.exited.is_none() && kept.since.elapsed() < FRESH).then(|| kept.caller.clone())
    }

    /// Keeps one of a process that lives.
    pub fn keep(&self, origin: &Origin, process: &Process, caller: &Described) {
        let (image, ci) = (image(origin, process).cloned(), process.ci.clone());
        let (since, netns, caller) = (Instant::now(), process.netns, caller.clone());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(who(origin, process), Kept { since, image, ci, netns, caller });
    }
}

fn who(origin: &Origin, process: &Process) -> Who {
    Who {
        process: process.key,
        thread: origin.comm.clone(),
        uid: origin.uid,
        gid: origin.gid,
        cgroup: origin.cgroup_id,
        job: origin.job,
    }
}

fn image<'a>(origin: &Origin, process: &'a Process) -> Option<&'a Image> {
    process.image(u64::try_from(origin.connected_at.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use weir_core::mask::{MaskKey, Masker};

    use super::*;

    /// The same each time.
    fn no_job() -> Arc<Job<Masked<String>>> {
        static NONE: std::sync::LazyLock<Arc<Job<Masked<String>>>> = std::sync::LazyLock::new(Arc::default);
        NONE.clone()
    }

    fn process() -> Process {
        let text = Masker::new(MaskKey::new([1; 32]));
        let image = Image { since: 5, executable: text.text("curl"), command_line: text.text("curl x") };
        Process {
            key: Key { pid: 7, start: 5 },
            uid: 1,
            gid: 1,
            job: 1,
            cgroup: (2, text.text("/a")),
            netns: 3,
            mount_ns: 4,
            pid_ns: 5,
            container_id: String::new(),
            parents: Vec::new(),
            images: vec![image],
            ci: no_job(),
            stdio: false,
            exited: None,
        }
    }

    fn origin() -> Origin {
        let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        Origin {
            destination: nowhere,
            source: nowhere,
            tgid: 7,
            tid: 7,
            uid: 1,
            gid: 1,
            cgroup_id: 2,
            netns_cookie: 3,
            connected_at: Duration::from_nanos(10),
            process_start: None,
            job: 1,
            verdict: 0,
            reason: 0,
            protocol: 6,
            comm: "curl".into(),
        }
    }

    fn caller() -> Described {
        let text = || Masked::literal("x");
        Arc::new(Caller {
            executable: text(),
            command_line: text(),
            cgroup: text(),
            seen_alive: true,
            netns: 3,
            ..Caller::unseen(7, (1, 1), text())
        })
    }

    #[test]
    fn a_description_holds_for_the_same_process_and_no_other_nor_when_it_became_another_program() {
        let callers = Callers::default();
        assert!(callers.of(&origin(), &process()).is_none());
        callers.keep(&origin(), &process(), &caller());
        assert!(callers.of(&origin(), &process()).is_some());
        let began_later = Process { key: Key { pid: 7, start: 6 }, ..process() };
        let with_a_job =
            Process { ci: Arc::new(Job { provider: "github".into(), ..Job::default() }), ..process() };
        let ended = Process { exited: Some(9), ..process() };
        let elsewhere = Process { netns: 9, ..process() };
        for changed in [began_later, with_a_job, ended, elsewhere] {
            assert!(callers.of(&origin(), &changed).is_none(), "{changed:?}");
        }
        let mut became = process();
        became.became(Image { since: 9, ..became.images[0].clone() });
        assert!(callers.of(&origin(), &became).is_none());
        for changed in [
            Origin { uid: 0, ..origin() },
            Origin { cgroup_id: 9, ..origin() },
            Origin { job: 9, ..origin() },
            Origin { comm: "sh".into(), ..origin() },
        ] {
            assert!(callers.of(&changed, &process()).is_none(), "{changed:?}");
        }
    }

    #[test]
    fn no_more_are_kept_than_there_is_room_for() {
        let callers = Callers::default();
        for uid in 0..1000 {
            callers.keep(&Origin { uid, ..origin() }, &process(), &caller());
        }
        assert!(callers.0.lock().unwrap().len() <= MOST);
        assert!(callers.of(&Origin { uid: 999, ..origin() }, &process()).is_some());
    }
}
