//! The ring in which the hooks tell of connects that do not come to the agent as connections.
//!
//! Enters: the ring, which may hold what was told while no agent ran. Leaves: origins, each once. Must never: keep one.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use weir_ebpf::FlowOrigin;

use super::{KernelError, Origin, syscall, take, unreadable};

/// The reader of the ring; there is one at a time.
pub struct Connects {
    ring: RingBuf<MapData>,
}

impl Connects {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self { ring: take(ebpf, "CONNECTS")?.try_into().map_err(unreadable)? })
    }

    /// The next one, if there is one.
    pub fn next(&mut self) -> Option<Origin> {
        let item = self.ring.next()?;
        let flow: Option<FlowOrigin> = syscall::plain(&item);
        debug_assert!(flow.is_some(), "the ring holds origins alone");
        flow.map(Origin::from)
    }
}

impl AsRawFd for Connects {
    /// Readable when the hooks ask for attention; they do not for each event.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_fd().as_raw_fd()
    }
}
