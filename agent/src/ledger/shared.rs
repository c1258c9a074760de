//! What all handles of one ledger share: the way to the writer and its bounds, the writer's thread, the shelf, and the
//! guests. The last handle that goes ends the thread, which never leaves what is queued unwritten.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, watch};
use weir_core::ids::Origin;

use super::guest::{Guest, Hosted};
use super::item::{Answer, Command, Item, ToWriter};
use super::vitals::Vitals;
use super::{Entry, LedgerError};
use crate::spool::Shelf;

pub(super) struct Shared {
    pub(super) commands: Mutex<Option<Arc<ToWriter>>>,
    pub(super) slots: Arc<Semaphore>,
    pub(super) room: Arc<Semaphore>,
    pub(super) max_open: usize,
    pub(super) origin: Origin,
    pub(super) shelf: Arc<Mutex<Shelf>>,
    pub(super) sealed_below: watch::Receiver<u64>,
    pub(super) vitals: Arc<Vitals>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
    pub(super) guests: Mutex<Vec<Hosted>>,
    /// How many of the guests that came with the log have not ended.
    pub(super) living: Arc<watch::Sender<usize>>,
}

impl Shared {
    pub(super) fn send(&self, command: Command) -> Result<(), LedgerError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.as_ref().and_then(|sender| sender.send(command).ok()).ok_or(LedgerError::Stopped)
    }

    pub(super) fn shelf(&self) -> Shelf {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn guests(&self) -> MutexGuard<'_, Vec<Hosted>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves guests from now on.
    pub(super) fn host(&self, guests: Vec<Guest>) {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = commands.as_ref().map(Arc::downgrade).unwrap_or_default();
        let mut hosted = self.guests();
        hosted.retain(|hosted| !hosted.is_gone());
        for guest in guests {
            let (boot, pid) = (guest.boot.clone(), guest.pid);
            let calls = guest.open.iter().map(|call| (call.clone(), None)).collect();
            match Hosted::start(guest, commands.clone(), self.slots.clone(), self.living.clone()) {
                Ok(guest) => hosted.push(guest),
                Err(error) => {
                    tracing::error!(%error, pid, "an agent that was replaced cannot be served");
                    self.living.send_modify(|living| *living = living.saturating_sub(1));
                    let _ = commands.upgrade().map(|to| to.send(Command::GuestLost { boot, pid, calls }));
                }
            }
        }
    }

    pub(super) async fn queue(&self, entry: Entry, answer: Answer) -> Result<(), LedgerError> {
        let room = self.room.clone().acquire_owned().await.map_err(|_| LedgerError::Stopped)?;
        self.send(Item::new(entry.0, answer, Some(room)).into())
    }

    pub(super) fn join(&self) {
        std::mem::take(&mut *self.guests()).into_iter().for_each(Hosted::turn_out);
        drop(self.commands.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ledger's writer ended by a fault of its own");
        }
    }
}

impl Drop for Shared {
    /// Without a clean stop, what is queued is still written. This waits for the disk.
    fn drop(&mut self) {
        self.join();
    }
}
