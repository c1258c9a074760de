//! Connects that wait until the agent has dialled their destination, so that the client of a private one sees whether anybody
//! listens there.
//!
//! Enters: a connect on its way to the agent. Leaves: the port of a listener that answers no SYN yet, for this connect alone. Must never:
//! give one listener to two connects, or to any if it is not the agent's.
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy would take room on a stack that is full"
)]

use aya_ebpf::{bindings::bpf_sock_addr, helpers::bpf_ktime_get_boot_ns};
use weir_ebpf::{
    FlowKey, FlowOrigin, HELD_SLOTS, HeldKey, Listeners, MARK_LISTENER, ReachedKey, Waiting,
    address::{self, mapped},
    counter,
};

use crate::{HELD, REACHED, WAITING, account::add_to_host, connect::listener, destination::Destination};

/// The port of the listener in which this connect is to wait; 0: it does not wait.
#[inline(never)]
pub fn claim(ctx: *mut bpf_sock_addr, to: &Destination, netns_cookie: u64, own: &Listeners) -> u16 {
    if !address::is_private(to.address) || is_reached(netns_cookie, to) {
        return 0;
    }
    let is_v4 = address::v4(to.address).is_some();
    let mut key = HeldKey { netns_cookie, is_v6: u32::from(!is_v4), slot: 0 };
    for slot in 0..HELD_SLOTS {
        key.slot = slot;
        let Some(port) = HELD.get_ptr(&key) else { continue };
        // SAFETY: the kernel gave the pointer, which is valid until the program returns.
        let port = unsafe { *port };
        // Only one can take it out.
        if HELD.remove(&key).is_err() {
            continue;
        }
        // Whoever binds the port of an agent that is gone gets nothing.
        let address = if is_v4 { mapped(own.v4) } else { own.v6 };
        if listener(ctx, &address, port) == MARK_LISTENER {
            return port;
        }
    }
    add_to_host(counter::NOT_HELD, 1);
    0
}

/// Whether the agent had dialled it shortly before.
#[inline(never)]
fn is_reached(netns_cookie: u64, to: &Destination) -> bool {
    let key = ReachedKey::new(netns_cookie, to.address, to.port);
    let Some(until) = REACHED.get_ptr(&key) else { return false };
    // SAFETY: the kernel gave the pointer, which is valid until the program returns; the helper reads a clock.
    unsafe { bpf_ktime_get_boot_ns() < *until }
}

/// Wakes the agent. What there is no room for the agent finds by itself, later.
#[inline(always)]
pub fn tell(key: &FlowKey, origin: &FlowOrigin) {
    let waiting = Waiting {
        key: *key,
        destination: origin.destination,
        destination_port: origin.destination_port,
        reserved: [0; 6],
    };
    let _ = WAITING.output(&waiting, u64::from(aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP));
}
