//! What is written next: commands come in, as the writer's next group and perhaps one command behind it.

use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use super::super::GROUP_EVENTS;
use super::super::item::Command;
use super::Writer;

/// How long events for which nobody waits may wait for others.
const LINGER: Duration = Duration::from_millis(5);

impl Writer {
    /// Takes what is to be written next: all that came while the last group was synced. If nobody waits for any of it, what comes
    /// within [`LINGER`] goes with it. A command of another kind is given back.
    pub(super) fn take(&mut self, first: Option<Command>, commands: &Receiver<Command>) -> Option<Command> {
        let (mut next, began) = (first, Instant::now());
        let mut hurries = next.is_none();
        loop {
            while let Some(command) = next.take() {
                hurries |= command.hurries();
                match command {
                    Command::Put(item) => self.waiting.push_back(item),
                    other => return Some(other),
                }
                if self.waiting.len() < GROUP_EVENTS {
                    next = commands.try_recv().ok();
                }
            }
            let left = LINGER.saturating_sub(began.elapsed());
            if hurries || left.is_zero() || self.waiting.len() >= GROUP_EVENTS {
                return None;
            }
            // Who sends what hurries wakes this thread. Others do not, which is most of what sending costs.
            thread::park_timeout(left);
            next = commands.try_recv().ok();
        }
    }
}
