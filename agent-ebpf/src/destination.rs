//! Where a connect or a datagram goes, and what the operator decided about that.
//!
//! Enters: the kernel's context of a connect, a send or a getpeername. Leaves: an address and port, an action. Must never:
//! read the context in wider pieces than the verifier allows, or merge two stores into it.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{bindings::bpf_sock_addr, btf_maps::lpm_trie::Key};
use weir_ebpf::{
    DestinationKey, Settings, Tag, action,
    address::{bytes, mapped, words},
    flag,
};

use crate::DESTINATIONS;

/// Where the caller wants to go.
#[derive(Clone, Copy)]
pub struct Destination {
    pub address: [u8; 16],
    pub port: u16,
}

impl Destination {
    pub fn v4(ctx: *mut bpf_sock_addr) -> Self {
        // SAFETY: `ctx` is the kernel's context for this call, valid while the program runs.
        let v4 = unsafe { read_volatile(addr_of!((*ctx).user_ip4)) };
        Self { address: mapped(v4.to_ne_bytes()), port: port(ctx) }
    }

    pub fn v6(ctx: *mut bpf_sock_addr) -> Self {
        // SAFETY: as in `v4`. Four reads, since the verifier allows no wider one here on older kernels.
        let words = unsafe {
            [
                read_volatile(addr_of!((*ctx).user_ip6[0])),
                read_volatile(addr_of!((*ctx).user_ip6[1])),
                read_volatile(addr_of!((*ctx).user_ip6[2])),
                read_volatile(addr_of!((*ctx).user_ip6[3])),
            ]
        };
        Self { address: bytes(words), port: port(ctx) }
    }

    /// Puts another IPv4 destination in the caller's place.
    pub fn write_v4(ctx: *mut bpf_sock_addr, address: [u8; 4], port: u16) {
        // SAFETY: as in `v4`. Volatile, since LLVM would merge the stores and the verifier refuse the result.
        unsafe {
            write_volatile(addr_of_mut!((*ctx).user_ip4), u32::from_ne_bytes(address));
            write_volatile(addr_of_mut!((*ctx).user_port), u32::from(port.to_be()));
        }
    }

    pub fn write_v6(ctx: *mut bpf_sock_addr, address: [u8; 16], port: u16) {
        let address = words(address);
        // SAFETY: as in `write_v4`.
        unsafe {
            write_volatile(addr_of_mut!((*ctx).user_ip6[0]), address[0]);
            write_volatile(addr_of_mut!((*ctx).user_ip6[1]), address[1]);
            write_volatile(addr_of_mut!((*ctx).user_ip6[2]), address[2]);
            write_volatile(addr_of_mut!((*ctx).user_ip6[3]), address[3]);
            write_volatile(addr_of_mut!((*ctx).user_port), u32::from(port.to_be()));
        }
    }

    /// The action for it: by its port and the longest prefix, else by the longest prefix alone, else the one for what is not
    /// named; None: it is not named, and the job may reach named destinations alone.
    pub fn action(&self, settings: &Settings, tag: &Tag) -> Option<u32> {
        let named = match self.look_up(self.port) {
            action::UNKNOWN => self.look_up(0),
            found => found,
        };
        if named != action::UNKNOWN {
            Some(named)
        } else if tag.flags & flag::STRICT != 0 {
            None
        } else {
            Some(settings.unknown)
        }
    }

    fn look_up(&self, port: u16) -> u32 {
        let key = Key::new(DestinationKey::PORT_BITS + 128, DestinationKey::new(port, self.address));
        DESTINATIONS.get(&key).copied().unwrap_or(action::UNKNOWN)
    }
}

fn port(ctx: *mut bpf_sock_addr) -> u16 {
    // SAFETY: as in `Destination::v4`.
    let network_order = unsafe { read_volatile(addr_of!((*ctx).user_port)) };
    u16::from_be(network_order as u16)
}
