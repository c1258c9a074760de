//! What is recorded of lineage: what no hook can see, where the selection is not what the operator wrote, and what could
//! not be kept. It never waits for the ledger: what finds no room is counted, and that is recorded.

use std::collections::BTreeMap;

use weir_core::mask::Masked;
use weir_core::record::AgentEvent;
use weir_ebpf::counter;

use super::Lineage;
use crate::process::Process;
use crate::select::{Because, Note};

/// What could not be kept, of all of the agent's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Losses {
    events: u64,
    tasks: u64,
    jobs: u64,
    evicted: u64,
}

impl Lineage {
    /// Where the selection is not what the operator wrote.
    pub(super) fn tell_of_selection(&mut self) {
        for note in self.selection.notes() {
            let masker = self.processes.masker();
            let text = |name: &str, value: &str| (name.to_owned(), masker.text(value));
            let event = match note {
                Note::Widened { path, instead_of, because } => {
                    let because = match because {
                        Because::NoRoom => "no_room",
                        Because::TooDeep => "too_deep",
                    };
                    let detail = [
                        text("cgroup", &path),
                        text("instead_of", &instead_of.to_string()),
                        text("because", because),
                    ];
                    AgentEvent { name: "selection.widened".into(), detail: detail.into() }
                }
                Note::Failed { path, fault } => {
                    let detail = [text("cgroup", &path), text("fault", &fault)];
                    AgentEvent { name: "selection.failed".into(), detail: detail.into() }
                }
            };
            self.send(event);
        }
    }

    /// What could not be kept is said, and never in silence.
    pub(super) fn tell_losses(&mut self) {
        let count = |slot| self.hooks.count(slot).unwrap_or_default();
        let now = Losses {
            events: count(counter::TASK_EVENTS_LOST),
            tasks: count(counter::TASKS_FULL),
            jobs: count(counter::JOBS_FULL),
            evicted: self.processes.evicted(),
        };
        if now == self.told && self.unwritten == 0 {
            return;
        }
        let before = std::mem::replace(&mut self.told, now);
        let detail = [
            ("events", now.events.wrapping_sub(before.events)),
            ("untagged_processes", now.tasks.wrapping_sub(before.tasks)),
            ("unaccounted_jobs", now.jobs.wrapping_sub(before.jobs)),
            ("evicted_processes", now.evicted.wrapping_sub(before.evicted)),
            ("unwritten_records", std::mem::take(&mut self.unwritten)),
        ];
        tracing::warn!(?detail, "what became of processes is not fully known");
        let masker = self.processes.masker();
        let detail =
            detail.into_iter().map(|(name, n)| (name.to_owned(), masker.text(&n.to_string()))).collect();
        self.send(AgentEvent { name: "lineage.lost".into(), detail });
    }

    /// Records something of a process, with its lineage.
    pub(super) fn note<const N: usize>(&mut self, name: &str, process: &Process, more: [(&str, String); N]) {
        let masker = self.processes.masker();
        let mut detail: BTreeMap<String, Masked<String>> =
            more.into_iter().map(|(name, text)| (name.to_owned(), masker.text(&text))).collect();
        let mut plain = |name: &str, text: String| drop(detail.insert(name.to_owned(), masker.text(&text)));
        plain("pid", process.key.pid.to_string());
        plain("start_time", crate::process::ticks(process.key.start).to_string());
        plain("uid", process.uid.to_string());
        plain("job_key", self.processes.job_key(process.job));
        plain("container_id", process.container_id.clone());
        plain("netns", process.netns.to_string());
        let parents = process.parents.iter();
        plain(
            "parents",
            parents.map(|p| format!("{} {}", p.pid, p.executable.as_str())).collect::<Vec<_>>().join("; "),
        );
        detail.insert("cgroup".into(), process.cgroup.1.clone());
        if let Some(image) = process.images.last() {
            detail.insert("executable".into(), image.executable.clone());
            detail.insert("command_line".into(), image.command_line.clone());
        }
        self.send(AgentEvent { name: name.to_owned(), detail });
    }

    fn send(&mut self, event: AgentEvent<Masked<String>>) {
        if self.notes.try_send(event).is_err() {
            self.unwritten += 1;
        }
    }
}
