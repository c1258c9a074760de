//! The ring in which the hooks tell of connects that do not come to the agent as connections.
//!
//! Enters: the ring, which may hold what was told while no agent ran. Leaves: origins, each once. Must never: keep one.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use aya::maps::{Map, MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use weir_ebpf::FlowOrigin;

use super::{Hooks, KernelError, Origin, syscall, unreadable};

/// The reader of the ring; there is one at a time.
pub struct Connects {
    ring: RingBuf<MapData>,
}

impl Connects {
    pub(super) fn open(map: Map) -> Result<Self, KernelError> {
        Ok(Self { ring: map.try_into().map_err(unreadable)? })
    }

    /// To be waited for by the runtime.
    pub fn awaitable(self) -> io::Result<AsyncFd<Self>> {
        syscall::awaitable(self)
    }

    /// The next one, if there is one. Before it leaves the ring it is among those that are owed a record, until
    /// [`Hooks::recorded`]. When as many are owed as there is room for, it stays in the ring: what that has no room for is counted.
    pub fn take(&mut self, hooks: &Hooks) -> Result<Option<Origin>, KernelError> {
        if !hooks.can_owe() {
            return Ok(None);
        }
        let Some(item) = self.ring.next() else { return Ok(None) };
        let flow: Option<FlowOrigin> = syscall::plain(&item);
        debug_assert!(flow.is_some(), "the ring holds origins alone");
        if let Some(flow) = &flow {
            hooks.owe(flow)?;
        }
        Ok(flow.map(Origin::from))
    }
}

// The ring's map owns its descriptor, and nothing here replaces either.
impl syscall::OwnsItsDescriptor for Connects {}

impl AsFd for Connects {
    /// Readable when the hooks ask for attention; they do not for each event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Connects {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
