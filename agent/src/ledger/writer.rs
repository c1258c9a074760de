//! The writer's thread: items come in over one channel, in the order in which they were sent; events go to the
//! spool in groups, and answers back to who waits. It alone owns the spool and the book of open calls.

mod closed;
mod proof;
mod sealing;
mod taking;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use weir_core::evidence::Hash;
use weir_core::ids::{Boot, CallId, Origin};
use weir_core::record::{self, AgentEvent, Body, CallResult, Event, Scribe, Written};
use weir_core::segment::EventFrames;

use super::book::Book;
use super::epoch::{Epoch, Frames};
use super::item::{Answer, Command, Content, Item, Place, ended};
use super::keys::LogKeys;
use super::pulse::Pulse;
use super::released::{Away, Release};
use super::takeup::{TakenUp, take_up};
use super::{
    CHECKPOINT_EVERY, Clock, GROUP_BYTES, GROUP_EVENTS, LedgerConfig, LedgerError, RETRY_AFTER, Recovered,
    Text, Vitals,
};
use crate::spool::{Begins, Found, Group, Priority, Shelf, Spool, SpoolError};

pub(super) use closed::Closed;

/// The most bytes of one detail of the agent's own events.
const MAX_DETAIL: usize = 4096;
/// The most bytes of a group's that are kept for the next one.
const KEPT_BYTES: usize = 1 << 20;
/// An event has the time at which it was sent if that was so few microseconds ago.
const LATEST_US: u64 = 1_000_000;
/// How long the thread sleeps when nothing is to be done.
const IDLE: Duration = Duration::from_secs(3600);
/// And at least, when something that is due could not be done.
const NOW: Duration = Duration::from_millis(1);

pub(super) struct Writer {
    config: LedgerConfig,
    origin: Origin,
    spool: Spool,
    book: Book,
    epoch: Epoch,
    /// The last checkpoint of an epoch that is over, and whose segment is not closed yet. Before anything else is written,
    /// it must be.
    ended: Option<String>,
    keys: LogKeys,
    /// The next key signs, and is not in the other's place yet.
    unsettled: bool,
    /// The leaves of the active segment.
    leaves: Vec<Hash>,
    pulse: Pulse,
    /// By the monotonic clock: when the last checkpoint was written,
    covered_at: Duration,
    /// and since when there are events behind it.
    bare_since: Option<Duration>,
    /// The active segment has heartbeats alone.
    idle: bool,
    advised: Option<Duration>,
    waiting: VecDeque<Box<Item>>,
    /// Where the events of a group become bytes; kept for the next group.
    frames: EventFrames,
    scribe: Scribe,
    /// The last event's time.
    staged_us: u64,
    /// Lost notes of which no event says so yet.
    lost: u64,
    /// When the active segment got its first event.
    active_since: Option<Instant>,
    /// When it is to be sealed.
    seal_at: Option<Instant>,
    sealed_below: watch::Sender<u64>,
    vitals: Arc<Vitals>,
}

/// Why a writer does not go on.
pub(super) enum Ran {
    Stopped,
    Released(Box<Closed>, Receiver<Away>),
}

/// An item with its place in the log.
struct Staged {
    item: Box<Item>,
    seq: u64,
    time_us: u64,
}

impl Writer {
    /// Closes what an earlier run left open, and says that this one has begun.
    pub(super) fn open(
        config: LedgerConfig,
        found: Found,
        vitals: Arc<Vitals>,
    ) -> Result<(Self, Recovered), LedgerError> {
        let (mut writer, recovered, begun) = Self::begin(config, found, watch::Sender::new(0), vitals)?;
        let started = writer.started(&recovered);
        writer.put(Item::of(started));
        writer.say_begun(begun);
        writer.close_unknown(&recovered.unknown);
        writer.commit_all()?;
        Ok((writer, recovered))
    }

    /// Goes on with a log whose last writer released it. The calls in `kept` are for others to close.
    pub(super) fn go_on(
        config: LedgerConfig,
        found: Found,
        kept: &BTreeSet<CallId>,
        sealed_below: watch::Sender<u64>,
        vitals: Arc<Vitals>,
    ) -> Result<Self, LedgerError> {
        let (mut writer, recovered, begun) = Self::begin(config, found, sealed_below, vitals)?;
        writer.say_begun(begun);
        let nobodys: Vec<_> = recovered.unknown.into_iter().filter(|call| !kept.contains(call)).collect();
        writer.close_unknown(&nobodys);
        writer.commit_all()?;
        Ok(writer)
    }

    fn begin(
        config: LedgerConfig,
        mut found: Found,
        sealed_below: watch::Sender<u64>,
        vitals: Arc<Vitals>,
    ) -> Result<(Self, Recovered, Option<&'static str>), LedgerError> {
        let keys = LogKeys::new(config.keys.clone());
        let TakenUp { epoch, begun, unsettled } = take_up(&config, &keys, &mut found)?;
        let carry = match &found.begins {
            Begins::Unknown => None,
            Begins::Carry(carry) => Some(carry.clone()),
            Begins::Head(head) => Some(head.carry.clone()),
        };
        let (book, unreadable) = Book::replay(carry.as_deref(), &std::mem::take(&mut found.events));
        let (origin, report) = (found.origin.clone(), found.report.clone());
        let spool = found.start(&epoch.head(&book))?;
        let recovered = Recovered { report, unknown: book.open().cloned().collect(), unreadable };
        let (clock, monotonic) = (config.clock.clone(), config.monotonic.clone());
        let pulse = Pulse::new(clock, monotonic, config.heartbeat, config.clock_tolerance);
        let mut writer = Self {
            sealed_below,
            origin,
            spool,
            book,
            epoch,
            ended: None,
            keys,
            unsettled,
            leaves: Vec::new(),
            covered_at: pulse.now(),
            pulse,
            bare_since: None,
            idle: true,
            advised: None,
            waiting: VecDeque::new(),
            frames: EventFrames::default(),
            scribe: Scribe::default(),
            staged_us: 0,
            lost: 0,
            active_since: None,
            seal_at: None,
            vitals,
            config,
        };
        writer.settle_key();
        writer.tell_sealed();
        writer.tell_seal_after();
        writer.vitals.open_calls.store(writer.book.len() as u64, Ordering::Relaxed);
        Ok((writer, recovered, begun))
    }

    fn close_unknown(&mut self, calls: &[CallId]) {
        let unknown = |call: &CallId| Box::new(Item::of(ended(call.clone(), CallResult::Unknown)));
        self.waiting.extend(calls.iter().map(unknown));
    }

    pub(super) fn put(&mut self, item: Item) {
        self.waiting.push_back(Box::new(item));
    }

    pub(super) fn clock(&self) -> Clock {
        self.config.clock.clone()
    }

    pub(super) fn shelf(&self) -> Shelf {
        self.spool.shelf()
    }

    pub(super) fn sealed_below(&self) -> watch::Receiver<u64> {
        self.sealed_below.subscribe()
    }

    /// Works until it is told to stop or to release the log, or until nobody is left who could.
    pub(super) fn run(mut self, commands: &Receiver<Command>) -> Ran {
        loop {
            let next = match commands.recv_timeout(self.patience()) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.commit_all();
                    return Ran::Stopped;
                }
            };
            let after = self.take(next, commands);
            self.look_at_the_clocks();
            let written = self.commit_all();
            self.end_what_is_over();
            match after {
                None | Some(Command::Put(_)) => {}
                Some(Command::Seal { age, answer }) => drop(answer.send(self.seal_if_older(age))),
                Some(Command::SealAfter(age)) => {
                    self.config.seal_after = age;
                    self.tell_seal_after();
                    self.seal_at = self.active_since.map(|since| since + self.seal_after());
                }
                Some(Command::Advise(age)) => {
                    self.advised = Some(age);
                    self.tell_seal_after();
                }
                Some(Command::Checkpoint { answer }) => drop(answer.send(Ok(self.unsealed()))),
                Some(Command::BeginEpoch { why, answer }) => {
                    drop(answer.send(written.and_then(|()| self.begin_epoch(&why))));
                }
                Some(Command::RotateKey { answer }) => {
                    drop(answer.send(written.and_then(|()| self.rotate_key())));
                }
                Some(Command::Stop { answer }) => {
                    drop(answer.send(written.and(self.stop())));
                    return Ran::Stopped;
                }
                Some(Command::Begin { replaces, guests }) => {
                    let detail = [
                        ("version", env!("CARGO_PKG_VERSION").to_owned()),
                        ("replaces", replaces),
                        ("open_calls", self.book.len().to_string()),
                        ("guests", guests.to_string()),
                    ];
                    self.put(Item::of(self.agent_event("agent.started", detail)));
                    let _ = self.commit_all();
                }
                Some(Command::GuestLost { boot, pid, calls }) => self.guest_lost(&boot, pid, calls),
                Some(Command::Release { answer }) => {
                    // All that is owed must be on disk, or it would be lost between the two.
                    match written.and_then(|()| self.seal()) {
                        Err(error) => drop(answer.send(Err(error))),
                        Ok(_) => return self.release(answer),
                    }
                }
                Some(Command::BeSilent | Command::GoOn) => {}
            }
            self.cover_in_time();
            self.seal_by_age();
        }
    }

    fn release(self, answer: oneshot::Sender<Result<Release, LedgerError>>) -> Ran {
        let Self { config, spool, book, epoch, sealed_below, vitals, .. } = self;
        let left = spool.release(epoch.head(&book));
        let open: BTreeSet<_> = book.open().cloned().collect();
        let (decide, decision) = mpsc::channel();
        let release = Release { left, open: open.iter().cloned().collect(), decide };
        // If nobody wants it any more, `decide` is gone, and the log is taken back.
        let _ = answer.send(Ok(release));
        Ran::Released(Box::new(Closed { config, open, sealed_below, vitals }), decision)
    }

    fn guest_lost(&mut self, boot: &Boot, pid: u32, calls: Vec<(CallId, Option<OwnedSemaphorePermit>)>) {
        let detail = [
            ("boot", boot.to_string()),
            ("pid", pid.to_string()),
            ("unknown_calls", calls.len().to_string()),
        ];
        self.put(Item::of(self.agent_event("agent.lost", detail)));
        for (call, room) in calls {
            self.put(Item::new(ended(call, CallResult::Unknown), Answer::Nobody, room));
        }
        let _ = self.commit_all();
    }

    fn patience(&self) -> Duration {
        let sealing = self.seal_at.map(|at| at.saturating_duration_since(Instant::now()));
        let owes = self.lost > 0 || !self.waiting.is_empty() || self.ended.is_some() || self.unsettled;
        let retry = owes.then_some(RETRY_AFTER);
        let bare = self.bare_since.map(|since| (since + CHECKPOINT_EVERY).saturating_sub(self.pulse.now()));
        let silence = (!owes).then(|| self.pulse.silence_left());
        [sealing, retry, bare, silence].into_iter().flatten().min().unwrap_or(IDLE).clamp(NOW, IDLE)
    }

    /// Writes all that waits. After an error only outcomes still do.
    fn commit_all(&mut self) -> Result<(), LedgerError> {
        let mut result = Ok(());
        while result.is_ok() && (self.lost > 0 || !self.waiting.is_empty()) {
            result = self.commit();
        }
        let owed = if result.is_ok() { 0 } else { self.waiting.len() };
        self.vitals.owed_outcomes.store(owed as u64, Ordering::Relaxed);
        self.tell_sealed();
        result
    }

    /// Writes one group.
    fn commit(&mut self) -> Result<(), LedgerError> {
        let mut frames = std::mem::take(&mut self.frames);
        frames.begin(self.spool.next_seq());
        let staged = self.stage(&mut frames);
        let written = if frames.is_empty() { Ok(()) } else { self.write(&mut frames, staged) };
        frames.shrink_to(KEPT_BYTES);
        self.frames = frames;
        written
    }

    fn write(&mut self, group: &mut EventFrames, staged: Vec<Staged>) -> Result<(), LedgerError> {
        let priority = staged.iter().map(|staged| staged.item.content.priority()).min();
        let priority = priority.unwrap_or(Priority::Reserved);
        let mut after = self.epoch.tree.clone();
        let leaves: Vec<Hash> = group.events().map(|event| after.push(event)).collect();
        // Early, so that it goes with events and needs no sync of its own.
        let checkpoint = self.pulse.now().saturating_sub(self.covered_at) >= CHECKPOINT_EVERY / 2;
        let written = self.end_epoch().and_then(|()| {
            let Self { spool, epoch, book, config, .. } = self;
            let frames = Frames { epoch, after: &after, book, ended: None, time_us: (config.clock)() };
            spool.append(Group { frames: group, priority, checkpoint }, &frames)
        });
        match written {
            Ok(_) => {
                self.epoch.tree = after;
                self.on_disk(leaves, staged.iter().all(|staged| staged.item.content.is_heartbeat()));
                *self.vitals.fault() = None;
                if priority == Priority::Ordinary {
                    self.vitals.unable.store(false, Ordering::Release);
                }
                self.settle(staged);
                Ok(())
            }
            Err(error) => self.refuse(staged, priority, error),
        }
    }

    /// Gives sequence numbers to as many items as make a group, and makes their bytes. Items that cannot be written are
    /// answered.
    fn stage(&mut self, group: &mut EventFrames) -> Vec<Staged> {
        if self.lost > 0 {
            let body = self.agent_event("ledger.lost", [("notes", self.lost.to_string())]);
            self.waiting.push_front(Box::new(Item::new(body, Answer::Lost(self.lost), None)));
        }
        let most = GROUP_EVENTS.min(usize::try_from(self.config.limits.seal_events).unwrap_or(GROUP_EVENTS));
        let mut staged = Vec::with_capacity(most.min(self.waiting.len()));
        // Calls that this group opens (true) or closes.
        let mut changes = BTreeMap::new();
        while group.len() < most && group.bytes().len() < GROUP_BYTES {
            let Some(mut item) = self.waiting.pop_front() else { break };
            let call = item.content.call();
            if let Some((call_id, opens)) = &call {
                let is_open = changes.get(call_id).copied().unwrap_or_else(|| self.book.is_open(call_id));
                if is_open == *opens {
                    item.answer.give(Err(LedgerError::WrongCall(call_id.clone())));
                    continue;
                }
            }
            let Self { config, origin, scribe, staged_us, .. } = self;
            let LedgerConfig { tenant, host, boot, clock, .. } = config;
            let now = clock();
            // A time that does not fit the clock is of before it was set, or old: then the event is of now, like any other.
            let sent = item.sent_us.filter(|sent| (now.saturating_sub(LATEST_US)..=now).contains(sent));
            let time_us = sent.map_or(now, |sent| sent.max((*staged_us).min(now)));
            *staged_us = time_us;
            let place = Place { tenant, host, origin, boot, time_us };
            let seq = group.next_seq();
            match item.content.encode(&place, scribe, group) {
                Ok(()) => {
                    staged.push(Staged { seq, time_us: place.time_us, item });
                    changes.extend(call);
                }
                Err(error) => {
                    if item.answer.is_note() {
                        self.lose_note(&error);
                    }
                    item.answer.give(Err(error));
                }
            }
        }
        staged
    }

    /// The group is on disk.
    fn settle(&mut self, group: Vec<Staged>) {
        for Staged { item, seq, time_us } in group {
            let Item { content, answer, room, .. } = *item;
            content.note_in(&mut self.book);
            self.vitals.open_calls.store(self.book.len() as u64, Ordering::Relaxed);
            if let Answer::Lost(notes) = answer {
                self.lost -= notes;
            }
            if let Some(tap) = &self.config.tap
                && let Content::Own(body) = content
            {
                tap(&self.event(body, seq, time_us));
            }
            // Who was told that a call is closed finds its slot free.
            drop(room);
            answer.give(Ok(seq));
        }
    }

    fn event(&self, body: Body<Text>, seq: u64, time_us: u64) -> Written {
        let LedgerConfig { tenant, host, boot, .. } = &self.config;
        let (tenant, host, boot, origin) = (tenant.clone(), host.clone(), boot.clone(), self.origin.clone());
        Event { body, boot, host, origin, seq, tenant, time_us, v: record::VERSION }
    }

    /// The group is not on disk.
    fn refuse(
        &mut self,
        staged: Vec<Staged>,
        priority: Priority,
        error: SpoolError,
    ) -> Result<(), LedgerError> {
        let only_ordinary = priority == Priority::Ordinary && matches!(error, SpoolError::Full { .. });
        let error = LedgerError::from(error);
        tracing::error!(%error, events = staged.len(), "a group of events could not be written");
        *self.vitals.fault() = Some(error.to_string());
        self.vitals.unable.store(true, Ordering::Release);
        self.vitals.failed_groups.fetch_add(1, Ordering::Relaxed);
        for staged in staged.into_iter().rev() {
            self.waiting.push_front(staged.item);
        }
        // What may use the reserve gets another try; else only outcomes are kept.
        for item in std::mem::take(&mut self.waiting) {
            if matches!(item.answer, Answer::Lost(_)) {
                // The next group says it anew.
            } else if only_ordinary && item.content.priority() == Priority::Reserved {
                self.waiting.push_back(item);
            } else if matches!(item.content.call(), Some((_, false))) {
                let Item { content, answer, room, sent_us } = *item;
                answer.give(Err(error.clone()));
                self.put(Item { content, answer: Answer::Nobody, room, sent_us });
            } else {
                if item.answer.is_note() {
                    self.lose_note(&error);
                }
                item.answer.give(Err(error.clone()));
            }
        }
        if only_ordinary { Ok(()) } else { Err(error) }
    }

    fn lose_note(&mut self, error: &LedgerError) {
        tracing::error!(%error, "a note could not be recorded");
        self.lost += 1;
        self.vitals.lost_notes.fetch_add(1, Ordering::Relaxed);
    }

    /// Closes what is open, and says that this run has ended.
    fn stop(&mut self) -> Result<(), LedgerError> {
        let open: Vec<_> = self.book.open().cloned().collect();
        let stopped = self.agent_event("agent.stopped", [("unknown_calls", open.len().to_string())]);
        self.close_unknown(&open);
        self.put(Item::of(stopped));
        self.commit_all()?;
        self.seal().map(drop)
    }

    fn started(&self, recovered: &Recovered) -> Body<Text> {
        let report = &recovered.report;
        let damaged =
            report.damaged.iter().map(|segment| format!("{}: {}", segment.first_seq, segment.fault));
        let detail = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("unknown_calls", recovered.unknown.len().to_string()),
            ("unreadable_events", recovered.unreadable.to_string()),
            ("torn_bytes", report.torn_bytes.to_string()),
            ("room_bytes", report.room_bytes.to_string()),
            ("tail_kept", report.tail_kept.to_string()),
            ("damaged_segments", damaged.collect::<Vec<_>>().join("; ")),
            ("foreign_files", report.foreign.join("; ")),
        ];
        self.agent_event("agent.started", detail)
    }

    fn agent_event<const N: usize>(&self, name: &str, detail: [(&str, String); N]) -> Body<Text> {
        agent_event(&self.config, name, detail)
    }
}

fn agent_event<const N: usize>(config: &LedgerConfig, name: &str, detail: [(&str, String); N]) -> Body<Text> {
    let text =
        |(key, value): (&str, String)| (key.to_owned(), config.masker.text(&value).truncate(MAX_DETAIL));
    Body::Agent(AgentEvent { name: name.to_owned(), detail: detail.into_iter().map(text).collect() })
}
