//! Redirected connections on their way to a record: those that the agent has not yet taken, and those that it has taken and
//! not yet recorded.
//!
//! Enters: the client's end of an accepted connection. Leaves: its origin, once. Must never: give the same origin twice (so
//! it is looked up and deleted in one step), or let go of one that is neither pending nor taken nor recorded.

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use weir_ebpf::{ConnectKey, FlowKey, FlowOrigin};

use super::{
    KernelError, lookup_missing, syscall,
    tables::{entries_of, gone},
    unreadable,
};

#[derive(Debug)]
pub(super) struct Pending {
    entries: HashMap<MapData, FlowKey, FlowOrigin>,
    descriptor: OwnedFd,
}

/// What the agent has taken and not yet recorded. It outlives the agent where tables are pinned.
#[derive(Debug)]
pub(super) struct Taken {
    entries: HashMap<MapData, ConnectKey, FlowOrigin>,
    /// Of them, those that this process took.
    own: HashSet<ConnectKey>,
    /// How many of them others had taken.
    others: usize,
    room: usize,
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

    pub(super) fn has(&self, key: &FlowKey) -> Result<bool, KernelError> {
        match self.entries.get(key, 0) {
            Ok(_) => Ok(true),
            Err(error) if lookup_missing(&error) => Ok(false),
            Err(error) => Err(unreadable(error)),
        }
    }

    pub(super) fn all(&self) -> Result<Vec<FlowOrigin>, KernelError> {
        Ok(entries_of(&self.entries)?.into_iter().map(|(_, origin)| origin).collect())
    }

    /// Takes those whose connects were made longer ago than this: their connections never came.
    pub(super) fn sweep(&self, older_than: Duration, at_most: usize) -> Result<Vec<FlowOrigin>, KernelError> {
        let now = syscall::since_boot().map_err(failed)?;
        let mut swept = Vec::new();
        for (key, origin) in entries_of(&self.entries)? {
            if swept.len() == at_most {
                break;
            }
            if now.saturating_sub(Duration::from_nanos(origin.connected_at)) > older_than {
                // None: taken by now.
                swept.extend(self.take(&key)?);
            }
        }
        Ok(swept)
    }
}

impl Taken {
    pub(super) fn open(map: Map, room: usize) -> Result<Self, KernelError> {
        let entries: HashMap<MapData, ConnectKey, FlowOrigin> = map.try_into().map_err(unreadable)?;
        let others = entries.keys().filter(Result::is_ok).count();
        Ok(Self { entries, own: HashSet::new(), others, room })
    }

    /// How many more can be owed. Without room nothing is to be taken: it stays where it is, and is neither lost nor recorded.
    pub(super) fn room(&self) -> usize {
        self.room.saturating_sub(self.own.len() + self.others)
    }

    pub(super) fn put(&mut self, origin: &FlowOrigin) -> Result<(), KernelError> {
        let key = ConnectKey::of(origin);
        self.entries.insert(key, origin, 0).map_err(unreadable)?;
        self.own.insert(key);
        Ok(())
    }

    /// Its record is written. One that is not there is no error.
    pub(super) fn recorded(&mut self, key: ConnectKey) -> Result<(), KernelError> {
        gone(self.entries.remove(&key))?;
        if !self.own.remove(&key) {
            self.others = self.others.saturating_sub(1);
        }
        Ok(())
    }

    /// Those that another process took, which shares the table or had it before.
    pub(super) fn of_others(&self) -> Result<Vec<FlowOrigin>, KernelError> {
        let mut origins = self.all()?;
        origins.retain(|origin| !self.own.contains(&ConnectKey::of(origin)));
        Ok(origins)
    }

    pub(super) fn all(&self) -> Result<Vec<FlowOrigin>, KernelError> {
        Ok(entries_of(&self.entries)?.into_iter().map(|(_, origin)| origin).collect())
    }
}

fn failed(source: io::Error) -> KernelError {
    KernelError::Table { doing: "take a connection's origin", source }
}
