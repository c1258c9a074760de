//! The table of redirected connections that the agent has not yet taken.
//!
//! Enters: the client's end of an accepted connection. Leaves: its origin, once. Must never: give the same origin
//! twice, so it is looked up and deleted in one step.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use weir_ebpf::{FlowKey, FlowOrigin};

use super::{KernelError, syscall, unreadable};

#[derive(Debug)]
pub(super) struct Pending {
    entries: HashMap<MapData, FlowKey, FlowOrigin>,
    descriptor: OwnedFd,
}

impl Pending {
    pub(super) fn open(map: Map) -> Result<Self, KernelError> {
        let descriptor = match &map {
            Map::HashMap(data) => data.fd().as_fd().try_clone_to_owned().map_err(failed)?,
            _ => return Err(failed(io::ErrorKind::InvalidData.into())),
        };
        Ok(Self { entries: map.try_into().map_err(unreadable)?, descriptor })
    }

    /// One system call, where aya's own way is a look-up and then a removal: between the two the kernel may give the
    /// client's port to another connection, whose origin the removal would take away.
    pub(super) fn take(&self, key: &FlowKey) -> Result<Option<FlowOrigin>, KernelError> {
        syscall::take(self.descriptor.as_fd(), key).map_err(failed)
    }

    pub(super) fn len(&self) -> Result<usize, KernelError> {
        self.entries.keys().try_fold(0, |n, key| key.map(|_| n + 1)).map_err(unreadable)
    }

    pub(super) fn sweep(&self, older_than: Duration) -> Result<usize, KernelError> {
        let now = syscall::since_boot().map_err(failed)?;
        let mut removed = 0;
        // The keys first: removing while walking would send the walk back to its start.
        let keys = self.entries.keys().collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        for key in keys {
            match self.entries.get(&key, 0) {
                Ok(origin) if now.saturating_sub(Duration::from_nanos(origin.connected_at)) > older_than => {
                    removed += usize::from(self.take(&key)?.is_some());
                }
                // Young, or taken by now.
                Ok(_) | Err(MapError::KeyNotFound) => {}
                Err(e) => return Err(unreadable(e)),
            }
        }
        Ok(removed)
    }
}

fn failed(source: io::Error) -> KernelError {
    KernelError::Table { doing: "take a connection's origin", source }
}
