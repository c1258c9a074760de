//! One attached program, and the watch over it.
//!
//! Enters: a loaded program, and where it belongs. Leaves: a link, pinned where there is a folder of pins, so that it
//! outlives the agent, and what was done to it behind the agent's back. Must never: leave a moment without the hook when
//! a program takes another's place, or take a link for its own that hangs on another cgroup.

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::libc;

use super::{
    pins::{self, PinError, Pins},
    syscall::{self, LinkInfo},
};

/// Where a program hangs, as linux/bpf.h numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    InetSockCreate = 2,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    PostBind4 = 12,
    PostBind6 = 13,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    RawTracepoint = 23,
    FunctionEntry = 24,
    FunctionExit = 25,
    Getpeername4 = 29,
    Getpeername6 = 30,
    SockRelease = 34,
}

/// What is the matter with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Attached,
    /// Somebody took it off its cgroup, or the cgroup is gone.
    Detached,
    /// It runs another program, of this number.
    OtherProgram(u32),
    /// It works, and would not outlive the agent: its pin is gone, or another's.
    Unpinned,
}

impl State {
    /// In the record.
    pub fn label(self) -> &'static str {
        match self {
            State::Attached => "attached",
            State::Detached => "detached",
            State::OtherProgram(_) => "other_program",
            State::Unpinned => "unpinned",
        }
    }
}

/// What was found and mended.
#[derive(Debug)]
pub struct Tampering {
    /// The link's name.
    pub link: String,
    /// 0 for a program that traces the kernel.
    pub cgroup_id: u64,
    pub state: State,
    /// Whether the hook works again.
    pub mended: Result<(), PinError>,
}

/// A link. Dropped, a pinned one stays attached, and another does not.
#[derive(Debug)]
pub struct Link {
    name: String,
    attach_type: AttachType,
    cgroup: Option<(File, u64)>,
    program: OwnedFd,
    program_id: u32,
    link: OwnedFd,
    id: u32,
    pin: Option<PathBuf>,
}

impl Link {
    /// Attaches a program to a cgroup (an opened folder of the cgroup2 hierarchy). With pins: when a link of this key and
    /// cgroup is pinned already, and attached, its program is swapped in one step; else the new link is pinned.
    pub fn attach(
        pins: Option<&Pins>,
        key: &str,
        program: BorrowedFd<'_>,
        attach_type: AttachType,
        cgroup: &File,
    ) -> Result<Self, PinError> {
        let failed = |source| PinError::Attach { link: key.to_owned(), source };
        let id = cgroup.metadata().map_err(failed)?.ino();
        let own = (cgroup.try_clone().map_err(failed)?, id);
        Self::make(pins, format!("{key}-{id:016x}"), program, attach_type, Some(own))
    }

    /// Attaches a program that traces the kernel: to what it was loaded for. Such a link cannot be updated; the new one is
    /// attached before the old one goes, so that for a moment both run.
    pub fn trace(
        pins: Option<&Pins>,
        key: &str,
        program: BorrowedFd<'_>,
        attach_type: AttachType,
    ) -> Result<Self, PinError> {
        Self::make(pins, key.to_owned(), program, attach_type, None)
    }

    fn make(
        pins: Option<&Pins>,
        name: String,
        program: BorrowedFd<'_>,
        attach_type: AttachType,
        cgroup: Option<(File, u64)>,
    ) -> Result<Self, PinError> {
        let failed = |source| PinError::Attach { link: name.clone(), source };
        let own_program = program.try_clone_to_owned().map_err(failed)?;
        let program_id = syscall::program_id(program).map_err(failed)?;
        let pin = pins.map(|pins| pins.link_path(&name));
        let swapped = match (&pin, &cgroup) {
            (Some(pin), Some((_, id))) => swap(pin, *id, attach_type, program).map_err(failed)?,
            _ => None,
        };
        let link = match swapped {
            Some(link) => link,
            None => {
                let target = cgroup.as_ref().map(|(folder, _)| folder.as_fd());
                let link = syscall::link_create(program, target, attach_type as u32).map_err(failed)?;
                if let Some(pin) = &pin {
                    pins::replace(link.as_fd(), pin)?;
                }
                link
            }
        };
        let id = syscall::link_info(link.as_fd()).map_err(failed)?.id;
        Ok(Self { name, attach_type, cgroup, program: own_program, program_id, link, id, pin })
    }

    /// Names it among the pins.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 0 for a program that traces the kernel.
    pub fn cgroup_id(&self) -> u64 {
        self.cgroup.as_ref().map_or(0, |(_, id)| *id)
    }

    pub fn state(&self) -> Result<State, PinError> {
        let info = self.info()?;
        if self.cgroup.is_some() && info.cgroup == 0 {
            return Ok(State::Detached);
        }
        if info.program != self.program_id {
            return Ok(State::OtherProgram(info.program));
        }
        Ok(match &self.pin {
            Some(pin) if pinned(pin).is_none_or(|there| there.id != self.id) => State::Unpinned,
            _ => State::Attached,
        })
    }

    /// Looks whether somebody laid hands on it, and if so, puts it right. To be ended before a successor attaches its own
    /// programs: those are others, too.
    pub fn watch(&mut self) -> Result<Option<Tampering>, PinError> {
        let state = self.state()?;
        if state == State::Attached {
            return Ok(None);
        }
        let mended = self.mend(state);
        Ok(Some(Tampering { link: self.name.clone(), cgroup_id: self.cgroup_id(), state, mended }))
    }

    /// Takes it off, pin and all. A tracing link ends when it is dropped.
    pub fn detach(self) -> Result<(), PinError> {
        if self.cgroup.is_some() {
            syscall::link_detach(self.link.as_fd()).map_err(|source| self.failed(source))?;
        }
        self.pin.as_deref().map_or(Ok(()), pins::remove_file)
    }

    fn mend(&mut self, state: State) -> Result<(), PinError> {
        match state {
            State::Attached => return Ok(()),
            State::Detached => {
                let target = self.cgroup.as_ref().map(|(folder, _)| folder.as_fd());
                let made = syscall::link_create(self.program.as_fd(), target, self.attach_type as u32);
                let link = made.map_err(|source| self.failed(source))?;
                self.id = syscall::link_info(link.as_fd()).map_err(|source| self.failed(source))?.id;
                self.link = link;
            }
            State::OtherProgram(_) => syscall::link_update(self.link.as_fd(), self.program.as_fd())
                .map_err(|source| self.failed(source))?,
            State::Unpinned => {}
        }
        self.pin.as_deref().map_or(Ok(()), |pin| pins::replace(self.link.as_fd(), pin))
    }

    fn info(&self) -> Result<LinkInfo, PinError> {
        syscall::link_info(self.link.as_fd()).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> PinError {
        PinError::Attach { link: self.name.clone(), source }
    }
}

impl PinError {
    /// Whether a link could not be put back since its cgroup is gone: nobody did that to it.
    pub fn is_cgroup_gone(&self) -> bool {
        let of = |source: &io::Error| matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV));
        matches!(self, PinError::Attach { source, .. } if of(source))
    }
}

/// Gives the pinned link another program, if it is attached to this cgroup. None: there is no such link.
fn swap(
    pin: &Path,
    cgroup: u64,
    attach_type: AttachType,
    program: BorrowedFd<'_>,
) -> io::Result<Option<OwnedFd>> {
    let link = match syscall::open_pin(pin) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    // What is pinned there may be no link at all.
    let own = |info: LinkInfo| info.cgroup == cgroup && info.attach_type == attach_type as u32;
    if !syscall::link_info(link.as_fd()).is_ok_and(own) {
        return Ok(None);
    }
    match syscall::link_update(link.as_fd(), program) {
        Ok(()) => Ok(Some(link)),
        // Detached since then (ENOLINK), or a link of another kind of program (EINVAL): a new one takes its place.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::EINVAL)) => Ok(None),
        Err(e) => Err(e),
    }
}

fn pinned(pin: &Path) -> Option<LinkInfo> {
    syscall::link_info(syscall::open_pin(pin).ok()?.as_fd()).ok()
}
