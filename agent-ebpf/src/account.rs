//! Accounting: each verdict is counted under its job, and what the agent does not see otherwise is told in a ring.
//!
//! Enters: an origin with its verdict. Leaves: one more in the job's counts, and an event or one more of the lost. Must
//! never: count twice, or drop an event without counting that too.

use core::{arch::asm, ptr::from_ref};

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_ringbuf_query,
};
use weir_ebpf::{CONNECTS_BYTES, FlowOrigin, JobCounts, STRAY_JOB, counter, verdict};

use crate::{CONNECTS, COUNTS, JOBS};

/// Refused datagrams and sockets can come by the million; this much of the ring is theirs, so that connects are told.
const ROOM_FOR_DATAGRAMS: u64 = CONNECTS_BYTES as u64 / 2;
const VERDICTS: u64 = 0;
const LOST: u64 = size_of::<[u64; verdict::KINDS as usize]>() as u64;

/// Counts under the origin's job. One whose job is not in the table becomes a stray.
#[inline(always)]
pub fn count(origin: &mut FlowOrigin) {
    if !add(origin.job, VERDICTS, origin.verdict, 1) {
        origin.job = STRAY_JOB;
        add(STRAY_JOB, VERDICTS, origin.verdict, 1);
        add_to_host(counter::STRAY, 1);
    }
}

/// Counts a redirected connect as begun, or as never to be.
#[inline(always)]
pub fn count_begun(origin: &FlowOrigin) {
    add(origin.job, VERDICTS, verdict::BEGUN, 1);
}

/// Takes back what was counted as redirected and begun, and counts it as failed.
#[inline(always)]
pub fn fail(origin: &mut FlowOrigin) {
    add(origin.job, VERDICTS, verdict::BEGUN, 1_u64.wrapping_neg());
    recount(origin, verdict::FAILED);
}

/// Takes back what was counted under another verdict, and counts this one.
#[inline(always)]
pub fn recount(origin: &mut FlowOrigin, verdict: u8) {
    add(origin.job, VERDICTS, origin.verdict, 1_u64.wrapping_neg());
    origin.verdict = verdict;
    add(origin.job, VERDICTS, verdict, 1);
}

/// Tells the agent, which looks by itself every few milliseconds; with `urgent` it is woken.
#[inline(always)]
pub fn tell(origin: &FlowOrigin, urgent: bool) {
    let is_connect = origin.verdict < verdict::DATAGRAM;
    let flags = if urgent { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    let told = (is_connect || has_room_for_datagrams()) && CONNECTS.output(origin, u64::from(flags)).is_ok();
    if !told {
        add(origin.job, LOST, origin.verdict, 1);
    }
}

fn has_room_for_datagrams() -> bool {
    // SAFETY: the map is a ring; the query reads its positions.
    unsafe {
        bpf_ringbuf_query(from_ref(&CONNECTS).cast_mut().cast(), u64::from(BPF_RB_AVAIL_DATA))
            < ROOM_FOR_DATAGRAMS
    }
}

#[inline(always)]
fn add(job: u64, part: u64, verdict: u8, by: u64) -> bool {
    let Some(counts) = JOBS.get_ptr_mut(job) else { return false };
    let slot = part + u64::from(verdict & (verdict::KINDS - 1)) * 8;
    const { assert!(size_of::<JobCounts>() as u64 == 2 * LOST) };
    // SAFETY: the kernel gave the pointer, and the slot lies within the value: 8 bytes, aligned.
    unsafe { add_to(counts.cast::<u8>().add(slot as usize).cast(), by) };
    true
}

pub fn add_to_host(slot: u32, by: u64) {
    if let Some(cell) = COUNTS.get_ptr_mut(slot) {
        // SAFETY: the kernel gave the pointer: 8 bytes, aligned, valid until the program returns.
        unsafe { add_to(cell, by) };
    }
}

/// Adds, wrapping. In one instruction, since programs run on several CPUs and can preempt another; as assembly, since
/// `core` has no `fetch_add` for a target without compare-and-swap.
#[inline(always)]
unsafe fn add_to(cell: *mut u64, by: u64) {
    // SAFETY: the caller's.
    unsafe { asm!("lock *(u64 *)({cell} + 0) += {by}", cell = in(reg) cell, by = in(reg) by) };
}
