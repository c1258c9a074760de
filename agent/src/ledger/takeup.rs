//! Where the log goes on: a recovered spool and the keys come in, the epoch that is to be written goes out. On the way each
//! segment that lacks its last checkpoint gets it. It never goes on with a tree of which leaves are lost, and never signs
//! under one key what another key's epoch holds.
//!
//! | what is found | what follows |
//! |---|---|
//! | a new folder | epoch 1 |
//! | segments of version 1 | they stay epoch 0; epoch 1 begins behind them |
//! | a tree, and the key of its epoch | that epoch goes on |
//! | the same, and the last event names the next key | the change of keys is completed |
//! | leaves are lost, or lie behind a torn write; the key is another | the next epoch begins |
//! | the host or the tenant has another name | nothing: another log must begin ([`LedgerError::Renamed`]) |
//! | nothing that says which epoch was the last | the one after what was witnessed; else its number is the time, in seconds |

use weir_core::evidence::checkpoint::{Checkpoint, LogName};
use weir_core::evidence::key::{SigningKey, VerifyingKey};
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::rotation::Rotation;
use weir_core::evidence::{Frontier, TreeState};
use weir_core::record::{Body, Stored};
use weir_core::segment::{FrameKind, Reader, header, push_frame};

use super::carry::Carry;
use super::epoch::Epoch;
use super::keys::LogKeys;
use super::{LedgerConfig, LedgerError};
use crate::spool::{Begins, Found, Standing, WITNESSED_FILE};

/// The name of the event by which a key names the next.
pub(super) const ROTATED: &str = "key.rotated";
/// The detail in which it does.
pub(super) const STATEMENT: &str = "statement";

/// Why an epoch begins where a segment of the one before cannot be read.
const LOST: &str = "events of the epoch before are lost";
/// Why it does where nothing is damaged but the end of the last segment: an ordinary power cut leaves that, too, and then
/// nothing that was acknowledged is missing.
const TAIL_KEPT: &str = "whole frames behind a torn write are kept in the .tail file: of a write that nobody was told of, \
                         as a power cut leaves them, or of events that are lost";

/// See the module.
pub(super) struct TakenUp {
    pub(super) epoch: Epoch,
    /// Why this epoch begins here, if it does and the log does not say so yet.
    pub(super) begun: Option<&'static str>,
    /// The next key is the log's, and is to be put in the other's place once the new epoch is on disk.
    pub(super) unsettled: bool,
}

/// Both keys of a folder.
struct Pair {
    current: SigningKey,
    next: Option<SigningKey>,
}

impl Pair {
    /// The private half of this key, if it is here.
    fn of(&self, key: &VerifyingKey) -> Option<&SigningKey> {
        let is_it = |signing: &&SigningKey| signing.verifying(key.name()).is_ok_and(|own| own == *key);
        [Some(&self.current), self.next.as_ref()].into_iter().flatten().find(is_it)
    }

    fn is_next(&self, key: &VerifyingKey) -> bool {
        self.next.as_ref().is_some_and(|next| next.verifying(key.name()).is_ok_and(|own| own == *key))
    }
}

pub(super) fn take_up(
    config: &LedgerConfig,
    keys: &LogKeys,
    found: &mut Found,
) -> Result<TakenUp, LedgerError> {
    let pair = Pair { current: keys.current_or_new()?, next: keys.next()? };
    let log = LogName {
        tenant: config.tenant.clone(),
        host: config.host.clone(),
        origin: found.origin.clone(),
        epoch: 1,
    };
    // Collectors take a log from one host alone. Before anything is signed or written: what cannot be closed under the name that
    // it has would be written anew under this one.
    if let Some(was) = other_name(&log, found) {
        return Err(LedgerError::Renamed(Box::new(was)));
    }
    let now_us = (config.clock)();
    let foreign = cover(&pair, &log, found, now_us)?;
    let begin = |epoch: u32, why| -> Result<TakenUp, LedgerError> {
        let tree = TreeState::begin(epoch, found.next_seq);
        let epoch = Epoch::of(&log, tree, pair.current.clone(), None)?;
        Ok(TakenUp { epoch, begun: why, unsettled: false })
    };
    // Nothing here tells the number of the last one; what the collector cosigned may.
    let unknown = || {
        let by_the_clock = u32::try_from(now_us / 1_000_000).unwrap_or(u32::MAX);
        begin(
            witnessed(config, &log).map_or(by_the_clock, |epoch| epoch.saturating_add(1)),
            Some("which epoch was the last cannot be read"),
        )
    };
    let head = match &found.begins {
        Begins::Unknown if found.is_fresh() => return begin(1, None),
        Begins::Carry(_) => return begin(1, Some("the log had no trees before")),
        Begins::Unknown => return unknown(),
        Begins::Head(head) => head,
    };
    let (Ok(mut tree), Ok(Carry { key: Some(key), rotation, .. })) =
        (TreeState::read(&head.tree), Carry::read(&head.carry))
    else {
        return unknown();
    };
    // An epoch without events was made known to nobody, and collectors take no number but the next.
    let empty = tree.frontier.size() == 0 && found.events.is_empty() && foreign.is_none();
    let next = tree.epoch.max(foreign.unwrap_or_default()).saturating_add(u32::from(!empty));
    if foreign.is_some() {
        return begin(next, Some("the key of the epoch before is missing"));
    }
    for event in &found.events {
        tree.push(event);
    }
    let damaged = found.report.damaged.iter().any(|segment| segment.first_seq >= tree.first_seq);
    if damaged || tree.next_seq() != found.next_seq {
        let why = if found.report.tail_kept && !damaged { TAIL_KEPT } else { LOST };
        return begin(next, Some(why));
    }
    if let Some((rotation, statement)) = found.events.last().and_then(|event| rotated(event, &key)) {
        return match pair.of(&rotation.key) {
            Some(signing) => {
                let tree = TreeState::begin(rotation.epoch, rotation.first_seq);
                let epoch = Epoch::of(&log, tree, signing.clone(), Some(statement))?;
                Ok(TakenUp { epoch, begun: None, unsettled: pair.is_next(&rotation.key) })
            }
            None => begin(next, Some("the key that the last change of keys names is missing")),
        };
    }
    let Some(signing) = pair.of(&key) else {
        return begin(next, Some("the key of the epoch before is missing"));
    };
    if key.name() != log.at_epoch(tree.epoch).to_string() {
        return begin(next, Some("its head names another log"));
    }
    let epoch = Epoch::of(&log, tree, signing.clone(), rotation)?;
    Ok(TakenUp { epoch, begun: None, unsettled: pair.is_next(&key) })
}

/// The name of the log that is here, if it is of another host or tenant: as the last head says it, or else the last segment whose key
/// can be read.
fn other_name(log: &LogName, found: &Found) -> Option<LogName> {
    let named = |carry: &[u8]| Carry::read(carry).ok()?.key?.name().parse::<LogName>().ok();
    let with_keys = found.segments.iter().rev().filter(|segment| segment.tree.is_some());
    let mut in_segments =
        with_keys.filter_map(|segment| Parts::of(&found.read(segment.file).ok()?).carry.and_then(named));
    let was = found.begins.carry().and_then(named).or_else(|| in_segments.next())?;
    ((&was.tenant, &was.host) != (&log.tenant, &log.host)).then_some(was)
}

/// The last epoch of this log of which a collector has cosigned anything.
fn witnessed(config: &LedgerConfig, log: &LogName) -> Option<u32> {
    let note = config.keys.read(WITNESSED_FILE).ok()?;
    let note: SignedNote = std::str::from_utf8(&note).ok()?.parse().ok()?;
    let seen = Checkpoint::read(&note).ok()?.log;
    (seen.at_epoch(1) == *log).then_some(seen.epoch)
}

/// What this event says of the next key, if it is a statement by this one.
fn rotated(event: &[u8], key: &VerifyingKey) -> Option<(Rotation, String)> {
    let Body::Agent(mut event) = Stored::read(event).ok()?.body else { return None };
    let statement = (event.name == ROTATED).then(|| event.detail.remove(STATEMENT)).flatten()?;
    let rotation = Rotation::open(&statement.parse().ok()?, key).ok()?;
    Some((rotation, statement))
}

/// Closes the segments whose last frame is no checkpoint: what a torn tail or a killed writer left. One whose key is not
/// here cannot be closed by it, and becomes an epoch of its own; the number of the last such epoch is returned.
fn cover(pair: &Pair, log: &LogName, found: &mut Found, now_us: u64) -> Result<Option<u32>, LedgerError> {
    let bare: Vec<Standing> =
        found.segments.iter().filter(|segment| segment.tree.is_some() && !segment.covered).cloned().collect();
    let mut foreign = None;
    for segment in bare {
        let bytes = found.read(segment.file)?;
        let parts = Parts::of(&bytes);
        let carry = parts.carry.map(Carry::read).and_then(Result::ok).unwrap_or_default();
        let tree = segment.tree.as_deref().map(TreeState::read).and_then(Result::ok);
        let known = tree.zip(carry.key.as_ref()).filter(|(_, key)| pair.of(key).is_some());
        let closed = match known {
            Some((tree, key)) => {
                let signing = pair.of(key).unwrap_or(&pair.current).clone();
                // Under the name that it has, whatever the host is called now.
                let log = key.name().parse().unwrap_or_else(|_| log.clone());
                let mut after = tree.clone();
                for event in &parts.events {
                    after.push(event);
                }
                let note = Epoch::of(&log, tree, signing, None)?.sign(&after, now_us);
                let mut closed = bytes;
                push_frame(&mut closed, FrameKind::Checkpoint, segment.file.last_seq() + 1, note.as_bytes());
                closed
            }
            None => {
                let last = segment.tree.as_deref().map(TreeState::read).and_then(Result::ok);
                let number = foreign.max(last.map(|tree| tree.epoch)).unwrap_or_default().saturating_add(1);
                foreign = Some(number);
                anew(pair, log, number, &segment, &carry, &parts.events, now_us)?
            }
        };
        found.rewrite(segment.file.first_seq, &closed)?;
    }
    Ok(foreign)
}

/// A segment with these events, as an epoch of its own.
fn anew(
    pair: &Pair,
    log: &LogName,
    number: u32,
    segment: &Standing,
    carry: &Carry,
    events: &[&[u8]],
    now_us: u64,
) -> Result<Vec<u8>, LedgerError> {
    let first_seq = segment.file.first_seq;
    let tree = TreeState { epoch: number, first_seq, frontier: Frontier::default() };
    let epoch = Epoch::of(log, tree, pair.current.clone(), None)?;
    let carry = Carry { open: carry.open.clone(), key: Some(epoch.key.clone()), rotation: None };
    let mut bytes = header(first_seq).to_vec();
    push_frame(&mut bytes, FrameKind::Tree, first_seq, &epoch.tree.to_bytes());
    push_frame(&mut bytes, FrameKind::Carry, first_seq, &carry.to_bytes());
    let mut after = epoch.tree.clone();
    for (event, seq) in events.iter().zip(first_seq..) {
        after.push(event);
        push_frame(&mut bytes, FrameKind::Event, seq, event);
    }
    push_frame(&mut bytes, FrameKind::Checkpoint, after.next_seq(), epoch.sign(&after, now_us).as_bytes());
    Ok(bytes)
}

/// What is in a segment, as far as it can be read.
#[derive(Default)]
struct Parts<'a> {
    carry: Option<&'a [u8]>,
    events: Vec<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let mut parts = Self::default();
        for frame in Reader::new(bytes).into_iter().flatten().map_while(Result::ok) {
            match frame.kind {
                FrameKind::Carry => parts.carry = Some(frame.bytes),
                FrameKind::Event => parts.events.push(frame.bytes),
                FrameKind::Tree | FrameKind::Checkpoint => {}
            }
        }
        parts
    }
}
