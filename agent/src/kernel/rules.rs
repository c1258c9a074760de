//! What the hooks decide by, as the rest of the agent says it: who is selected, where they may go, and which sockets are the
//! agent's own.
//!
//! Enters: selections, destinations, listeners. Leaves: entries of the hooks' tables. Must never: read what was counted.

use std::{
    collections::BTreeMap,
    net::{SocketAddrV4, SocketAddrV6},
    os::fd::BorrowedFd,
    sync::atomic::Ordering,
};

use weir_ebpf::{Listeners, MARK_EXEMPT, MARK_LISTENER, Selected, Settings, Tag};

use super::{Changed, Destination, Hooks, KernelError, io_error, lock, tables::gone, unreadable};

impl Hooks {
    /// Selects a cgroup with all those below; its connects are counted under `job`.
    pub fn select_cgroup(&self, id: u64, selected: Selected) -> Result<(), KernelError> {
        let mut tables = lock(&self.tables);
        tables.begin_job_or_stray(selected.job);
        tables.cgroups.insert(id, selected)
    }

    pub fn selected_cgroups(&self) -> Result<BTreeMap<u64, Selected>, KernelError> {
        Ok(lock(&self.tables).cgroups.entries()?.into_iter().collect())
    }

    pub fn unselect_cgroup(&self, id: u64) -> Result<(), KernelError> {
        lock(&self.tables).cgroups.remove(&id)
    }

    pub fn select_user(&self, uid: u32, selected: Selected) -> Result<(), KernelError> {
        let mut tables = lock(&self.tables);
        tables.begin_job_or_stray(selected.job);
        tables.users.insert(uid, selected)?;
        let settings = tables.settings()?;
        tables.set_settings(Settings { by_user: 1, ..settings })
    }

    /// Tags a process, as lineage would have.
    pub fn tag(&self, tgid: u32, tag: Tag) -> Result<(), KernelError> {
        lock(&self.tables).tasks.insert(tgid, tag, 0).map_err(unreadable)
    }

    pub fn untag(&self, tgid: u32) -> Result<(), KernelError> {
        gone(lock(&self.tables).tasks.remove(&tgid))
    }

    pub fn tags(&self) -> Result<BTreeMap<u32, Tag>, KernelError> {
        lock(&self.tables).tags()
    }

    /// Changes what the hooks consult besides the tables. The host's namespace stays.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<(), KernelError> {
        let mut tables = lock(&self.tables);
        let before = tables.settings()?;
        let mut settings = before;
        change(&mut settings);
        tables.set_settings(Settings { host_netns: before.host_netns, ..settings })
    }

    /// An agent before this one writes into the tables no more. What it wrote since they were opened counts as written, too.
    pub fn take_over(&self) -> Result<(), KernelError> {
        let mut tables = lock(&self.tables);
        tables.take_over()?;
        let settings = tables.settings()?;
        tables.set_settings(Settings { host_netns: self.netns_cookie, ..settings })
    }

    /// Makes these the destinations with an action of their own.
    pub fn set_destinations(&self, destinations: &[Destination]) -> Result<(), KernelError> {
        lock(&self.tables).set_destinations(destinations)
    }

    /// Adds one that was learned.
    pub fn add_destination(&self, destination: Destination) -> Result<(), KernelError> {
        lock(&self.tables).add_destination(destination)
    }

    /// Leads the connects of one network namespace to these listeners. Their sockets must carry
    /// [`Hooks::mark_listener`] before, or the hooks take them for somebody else's.
    pub fn listen(&self, netns_cookie: u64, v4: SocketAddrV4, v6: SocketAddrV6) -> Result<(), KernelError> {
        let listeners =
            Listeners { v6: v6.ip().octets(), v4: v4.ip().octets(), v6_port: v6.port(), v4_port: v4.port() };
        lock(&self.tables).netns.insert(netns_cookie, listeners)
    }

    /// From here on the connects of that namespace are refused.
    pub fn unlisten(&self, netns_cookie: u64) -> Result<(), KernelError> {
        lock(&self.tables).netns.remove(&netns_cookie)?;
        self.take_all_back(netns_cookie)
    }

    /// The network namespaces that have listeners, also those that an agent before this one registered.
    pub fn listening(&self) -> Result<Vec<u64>, KernelError> {
        Ok(lock(&self.tables).netns.entries()?.into_iter().map(|(cookie, _)| cookie).collect())
    }

    /// Looks whether somebody else wrote into the tables that the hooks decide by, and puts right what it finds.
    pub fn watch_tables(&self) -> Result<Vec<Changed>, KernelError> {
        if !self.guarding.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        lock(&self.tables).watch()
    }

    /// Whether the tables are this agent's alone: they are not while a successor makes them its own.
    pub fn guard_tables(&self, guarding: bool) {
        let _tables = lock(&self.tables);
        self.guarding.store(guarding, Ordering::Relaxed);
    }

    /// Marks one of the agent's own sockets: wherever it connects to, it is left alone. To be called before `connect`.
    pub fn exempt(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.mark(socket, MARK_EXEMPT)
    }

    /// Marks one of the agent's listening sockets: the hooks lead connects to no other.
    pub fn mark_listener(&self, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.mark(socket, MARK_LISTENER)
    }

    fn mark(&self, socket: BorrowedFd<'_>, mark: u32) -> Result<(), KernelError> {
        lock(&self.exempt).insert(&socket, mark, 0).map_err(|e| KernelError::Table {
            doing: "mark the agent's own socket",
            source: io_error(e.into()),
        })
    }
}
