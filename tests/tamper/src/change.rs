//! Twelve kinds of tampering with an export. A kind, lines and dice come in; changed lines go out, and what must be found.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weir_core::evidence::Frontier;
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::note::SignedNote;

use crate::dice::Dice;
use crate::honest::WITNESS;
use crate::lines::Line;

/// What somebody with every right on the store may do to what an export holds. It holds no views and few columns: the
/// collector's own tests change those in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// An event's bytes.
    Canonical,
    /// An event's bytes, and its leaf everywhere.
    CanonicalAndLeaf,
    /// What derives from something else.
    Column,
    DeleteRow,
    /// A batch and its events.
    DeleteBatch,
    /// The end of a log and its checkpoints.
    DeleteTail,
    DeleteOrigin,
    DoubleRow,
    SwapRows,
    /// Another log's row in the place of one, or behind the end.
    Splice,
    /// A checkpoint, signed with another key, over a tree of the forger's.
    AnotherKey,
    /// Every log, as it once was.
    RollBack,
}

/// All that can be done to an export.
pub const ACTS: [Act; 12] = [
    Act::Canonical,
    Act::CanonicalAndLeaf,
    Act::Column,
    Act::DeleteRow,
    Act::DeleteBatch,
    Act::DeleteTail,
    Act::DeleteOrigin,
    Act::DoubleRow,
    Act::SwapRows,
    Act::Splice,
    Act::AnotherKey,
    Act::RollBack,
];

impl Act {
    /// The label of what must be found; one of them is enough.
    pub fn shows_as(self) -> &'static [&'static str] {
        match self {
            // The bytes may name another log now, or another place.
            Act::Canonical | Act::CanonicalAndLeaf => &["altered", "spliced", "reordered"],
            Act::Column => &["projection"],
            Act::DeleteRow | Act::DeleteBatch | Act::DeleteOrigin => &["deleted"],
            Act::DeleteTail => &["truncated", "rolled_back"],
            Act::DoubleRow => &["doubled"],
            Act::SwapRows => &["reordered"],
            Act::Splice => &["spliced"],
            Act::AnotherKey => &["another_key"],
            Act::RollBack => &["rolled_back"],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Act::Canonical => "canonical",
            Act::CanonicalAndLeaf => "canonical_and_leaf",
            Act::Column => "column",
            Act::DeleteRow => "delete_row",
            Act::DeleteBatch => "delete_batch",
            Act::DeleteTail => "delete_tail",
            Act::DeleteOrigin => "delete_origin",
            Act::DoubleRow => "double_row",
            Act::SwapRows => "swap_rows",
            Act::Splice => "splice",
            Act::AnotherKey => "another_key",
            Act::RollBack => "roll_back",
        }
    }
}

/// What was done, and where a finding must point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    pub act: Act,
    pub origin: String,
    /// A finding of [`Act::shows_as`] must cover one of these numbers.
    pub first_seq: u64,
    pub last_seq: u64,
}

/// Does it. The lines are those of an untouched export.
pub fn change(act: Act, lines: &mut Vec<Line>, dice: &mut Dice) -> Result<Done> {
    let logs = logs(lines);
    let &(from, to) = dice.pick(&logs).context("there is no log")?;
    let origin = lines[from].text("origin");
    let (first_seq, last_seq) = match act {
        Act::Canonical => {
            let at = signed_event(lines, from, to, dice)?;
            flip(&mut lines[at], dice, false);
            one(&lines[at])
        }
        Act::CanonicalAndLeaf => {
            let at = signed_event(lines, from, to, dice)?;
            flip(&mut lines[at], dice, true);
            let seq = lines[at].number("seq");
            if dice.below(2) == 0 {
                change_leaf(lines, at);
            }
            (seq, seq)
        }
        Act::Column => column(lines, from, to, dice)?,
        Act::DeleteRow => {
            let at = signed_event(lines, from, to, dice)?;
            if dice.below(2) == 0 {
                leave_out(lines, at);
            }
            one(&lines.remove(at))
        }
        Act::DeleteBatch => {
            let batches = of(lines, from, to, |line| line.is('B'));
            // The last one is the tail.
            let at = *dice.pick(&batches[..batches.len() - 1]).context("no batch")?;
            let place = (lines[at].number("first_seq"), lines[at].number("last_seq"));
            let with_checkpoints = dice.below(2) == 0;
            remove(lines, (from, to), |line| {
                let seq = line.next_seq() - 1;
                let inside =
                    (place.0..=place.1).contains(&seq) && !line.is('L') && !line.is('K') && !line.is('T');
                inside && (with_checkpoints || !line.is('C'))
            });
            place
        }
        Act::DeleteTail => {
            let events = of(lines, from, to, |line| line.is_event() && line.number("epoch") > 0);
            let cut = lines[*dice.pick(&events).context("no event")?].number("seq");
            let last =
                lines[from..to].iter().filter(|l| l.is('B')).map(Line::next_seq).max().unwrap_or(cut + 1) - 1;
            remove(lines, (from, to), |line| match line {
                Line::Json('B' | 'C', _) => line.next_seq() > cut,
                Line::Event { seq, .. } => *seq >= cut,
                Line::Json(..) => false,
            });
            (cut, last)
        }
        Act::DeleteOrigin => {
            let place = (lines[from + 1].number("first_seq"), u64::MAX);
            lines.drain(from..to);
            place
        }
        Act::DoubleRow => {
            let at = signed_event(lines, from, to, dice)?;
            let again = lines[at].clone();
            let place = one(&again);
            // Beside it, behind its batch, or at the log's end.
            let behind = match dice.below(3) {
                0 => at + 1,
                1 => (at + 1..to).find(|next| !lines[*next].is_event()).unwrap_or(to),
                _ => to,
            };
            lines.insert(behind, again);
            place
        }
        Act::SwapRows => swap(lines, from, to, dice)?,
        Act::Splice => splice(lines, &logs, (from, to), dice)?,
        Act::AnotherKey => another_key(lines, from, to, dice)?,
        Act::RollBack => {
            for &(from, to) in logs.iter().rev() {
                let batches = of(lines, from, to, |line| line.is('B'));
                let cut = lines[batches[batches.len() / 2]].number("first_seq");
                remove(lines, (from, to), |line| match line {
                    Line::Json('B' | 'C', _) => line.next_seq() > cut,
                    Line::Event { seq, .. } => *seq >= cut,
                    Line::Json('T', _) => line.number("first_seq") >= cut,
                    Line::Json(..) => line.number("first_seq") > cut,
                });
            }
            (0, u64::MAX)
        }
    };
    Ok(Done { act, origin, first_seq, last_seq })
}

fn one(line: &Line) -> (u64, u64) {
    (line.number("seq"), line.number("seq"))
}

/// Where each log begins and ends.
fn logs(lines: &[Line]) -> Vec<(usize, usize)> {
    let mut starts: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].is('L')).collect();
    starts.push(lines.len());
    starts.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

fn of(lines: &[Line], from: usize, to: usize, which: impl Fn(&Line) -> bool) -> Vec<usize> {
    (from..to).filter(|at| which(&lines[*at])).collect()
}

/// Removes some of a log's lines.
fn remove(lines: &mut Vec<Line>, (from, to): (usize, usize), which: impl Fn(&Line) -> bool) {
    let mut index = 0;
    lines.retain(|line| {
        let here = (from..to).contains(&index);
        index += 1;
        !(here && which(line))
    });
}

fn signed_event(lines: &[Line], from: usize, to: usize, dice: &mut Dice) -> Result<usize> {
    let events = of(lines, from, to, |line| line.is_event() && line.number("epoch") > 0);
    dice.pick(&events).copied().context("the log has no event")
}

/// Changes bytes of an event: one of them, a number in them, or all of them.
fn flip(line: &mut Line, dice: &mut Dice, with_leaf: bool) {
    let Line::Event { canonical, .. } = line else { return };
    let mut changed = canonical.clone();
    match dice.below(4) {
        0 => changed.push(b' '),
        1 => changed.truncate(changed.len() - 1 - dice.below(8)),
        // In the text of the event, which every reader takes as it is.
        2 => {
            let at = changed.windows(8).position(|some| some == b"\"text\":\"").map_or(0, |at| at + 8);
            changed.insert(at, b'x');
        }
        _ => {
            let at = dice.below(changed.len());
            changed[at] ^= 1 << dice.below(5);
        }
    }
    if with_leaf {
        line.rewrite(changed);
    } else if let Line::Event { canonical, .. } = line {
        *canonical = changed;
    }
}

/// Puts the event's leaf into its batch, whose root nobody can sign.
fn change_leaf(lines: &mut [Line], event: usize) {
    let (seq, Line::Event { leaf, .. }) = (lines[event].number("seq"), lines[event].clone()) else { return };
    let Some(batch) = (0..event).rev().find(|at| lines[*at].is('B')) else { return };
    let mut leaves = lines[batch].hashes("leaves");
    let index = usize::try_from(seq - lines[batch].number("first_seq")).unwrap_or(0);
    if let (Some(place), Ok(leaf)) = (leaves.get_mut(index), leaf.try_into()) {
        *place = leaf;
        lines[batch].set_hashes("leaves", &leaves);
    }
}

/// Has the event's batch say that its other events alone come, as in an export of one run.
fn leave_out(lines: &mut [Line], event: usize) {
    let seq = lines[event].number("seq");
    let Some(batch) = (0..event).rev().find(|at| lines[*at].is('B')) else { return };
    let batch = &mut lines[batch];
    let others = (batch.number("first_seq")..batch.next_seq()).filter(|other| *other != seq);
    batch.set("only", others.collect::<Vec<u64>>().into());
}

fn column(lines: &mut [Line], from: usize, to: usize, dice: &mut Dice) -> Result<(u64, u64)> {
    match dice.below(5) {
        4 => {
            let keys = of(lines, from, to, |line| line.is('K'));
            let at = *dice.pick(&keys).context("no key")?;
            let seq = lines[at].number("first_seq");
            lines[at].set("first_seq", (seq + 1).into());
            Ok((seq, seq))
        }
        0 => {
            let at = signed_event(lines, from, to, dice)?;
            if let Line::Event { leaf, .. } = &mut lines[at] {
                let byte = dice.below(leaf.len());
                leaf[byte] ^= 1;
            }
            Ok(one(&lines[at]))
        }
        1 => {
            let at = signed_event(lines, from, to, dice)?;
            if let Line::Event { epoch, .. } = &mut lines[at] {
                *epoch += 1;
            }
            Ok(one(&lines[at]))
        }
        which => {
            let letter = if which == 2 { 'B' } else { 'C' };
            let some = of(lines, from, to, |line| line.is(letter));
            let at = *dice.pick(&some).context("nothing to change")?;
            let seq = lines[at].next_seq() - 1;
            if dice.below(2) == 0 {
                let mut root = lines[at].hashes("root");
                root.first_mut().context("no root")?[3] ^= 4;
                lines[at].set_hashes("root", &root);
                Ok((seq, seq))
            } else {
                let size = lines[at].number("size") + 1;
                lines[at].set("size", size.into());
                // A checkpoint's place follows from its size.
                Ok((seq, seq + 1))
            }
        }
    }
}

fn swap(lines: &mut [Line], from: usize, to: usize, dice: &mut Dice) -> Result<(u64, u64)> {
    let a = signed_event(lines, from, to, dice)?;
    let neighbours = |at: &usize| *at != a && lines[*at].is_event() && lines[*at].number("epoch") > 0;
    let others: Vec<usize> = (from..to).filter(neighbours).collect();
    let near = others.iter().copied().filter(|at| at.abs_diff(a) == 1).collect::<Vec<_>>();
    // Neighbours change places as they are; others keep their numbers and exchange their bytes.
    if dice.below(2) == 0
        && let Some(&b) = dice.pick(&near)
    {
        lines.swap(a, b);
        let seq = lines[a].number("seq").min(lines[b].number("seq"));
        return Ok((seq, seq));
    }
    let b = *dice.pick(&others).context("there is one event alone")?;
    let (one, other) = (lines[a].clone(), lines[b].clone());
    let (Line::Event { canonical: first, .. }, Line::Event { canonical: second, .. }) = (one, other) else {
        bail!("not two events")
    };
    lines[a].rewrite(second);
    lines[b].rewrite(first);
    let seq = lines[a].number("seq");
    Ok((seq, seq))
}

fn splice(
    lines: &mut Vec<Line>,
    logs: &[(usize, usize)],
    (from, to): (usize, usize),
    dice: &mut Dice,
) -> Result<(u64, u64)> {
    let others: Vec<_> = logs.iter().copied().filter(|log| *log != (from, to)).collect();
    let &(other_from, other_to) = dice.pick(&others).context("there is one log alone")?;
    let theirs = signed_event(lines, other_from, other_to, dice)?;
    let Line::Event { canonical, .. } = lines[theirs].clone() else { bail!("not an event") };
    let at = signed_event(lines, from, to, dice)?;
    if dice.below(2) == 0 {
        lines[at].rewrite(canonical);
        return Ok(one(&lines[at]));
    }
    let mut behind = lines[at].clone();
    let next = lines[from..to].iter().filter(|line| line.is('B')).map(Line::next_seq).max().unwrap_or(0);
    if let Line::Event { seq, .. } = &mut behind {
        *seq = next;
    }
    behind.rewrite(canonical);
    lines.insert(to, behind);
    Ok((next, next))
}

/// Rewrites a batch: an event, its leaf, the root, and the checkpoints over it, all signed with keys of the forger's.
fn another_key(lines: &mut [Line], from: usize, to: usize, dice: &mut Dice) -> Result<(u64, u64)> {
    let (key, witness) = (SigningKey::from_seed(&dice.bytes()), SigningKey::from_seed(&dice.bytes()));
    let batches = of(lines, from, to, |line| line.is('B'));
    let at = *dice.pick(&batches).context("no batch")?;
    let (first, last) = (lines[at].number("first_seq"), lines[at].number("last_seq"));
    if dice.below(2) == 0 {
        let inside = |line: &Line| line.is_event() && (first..=last).contains(&line.number("seq"));
        if let Some(&event) = dice.pick(&of(lines, from, to, inside)) {
            flip(&mut lines[event], dice, true);
            change_leaf(lines, event);
        }
    }
    let size = first - lines[at].number("epoch_first_seq");
    let mut tree = Frontier::of_parts(size, lines[at].hashes("frontier")).context("no tree")?;
    tree.extend(lines[at].hashes("leaves"));
    let root = tree.root();
    let ends = |line: &Line| (line.is('B') || line.is('C')) && line.next_seq() == last + 1;
    let with_copy = dice.below(2) == 0;
    for one in of(lines, from, to, ends) {
        if one != at && !with_copy {
            continue;
        }
        let note: SignedNote = lines[one].text("note").parse()?;
        let mut parts: Vec<String> = note.text().lines().map(str::to_owned).collect();
        lines[one].set_hashes("root", &[root]);
        parts[2] = lines[one].text("root");
        let mut forged = SignedNote::new(format!("{}\n", parts.join("\n")))?;
        forged.sign(&key, &parts[0])?;
        if lines[one].is('C') {
            forged.cosign(&witness, WITNESS, 1_795_300_000)?;
        }
        lines[one].set("note", Value::from(forged.to_string()));
    }
    Ok((first, last))
}
