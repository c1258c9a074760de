//! What an address means to the hooks. Pure, so that a plain host test covers what runs in the kernel.
//!
//! Enters and leaves: 16 bytes in network order, IPv4 in its v4-mapped form. Must never: compare by slices, which
//! becomes a call to `bcmp`, and that the kernel does not have.

/// `::1`
pub const LOOPBACK_V6: [u8; 16] = bytes([0, 0, 0, 1_u32.to_be()]);
/// `::ffff:127.0.0.1`
pub const LOOPBACK_V4: [u8; 16] = mapped([127, 0, 0, 1]);

const MAPPED_PREFIX: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// An IPv4 address in its v4-mapped form.
#[inline(always)]
pub const fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The IPv4 address in a v4-mapped one.
#[inline(always)]
pub const fn v4(address: [u8; 16]) -> Option<[u8; 4]> {
    let [p0, p1, p2, v4] = words(address);
    if p0 == MAPPED_PREFIX[0] && p1 == MAPPED_PREFIX[1] && p2 == MAPPED_PREFIX[2] {
        Some(v4.to_ne_bytes())
    } else {
        None
    }
}

/// `127.0.0.0/8` in either family, and `::1`.
#[inline(always)]
pub const fn is_loopback(address: [u8; 16]) -> bool {
    match v4(address) {
        Some([first, ..]) => first == 127,
        None => {
            let [w0, w1, w2, w3] = words(address);
            w0 == 0 && w1 == 0 && w2 == 0 && w3 == 1_u32.to_be()
        }
    }
}

/// Whether an address is of a network that is nobody's in public, beyond loopback: `10.0.0.0/8`, `172.16.0.0/12` and
/// `192.168.0.0/16` (RFC 1918), `100.64.0.0/10` (RFC 6598), `169.254.0.0/16` and `fe80::/10` (link-local), `fc00::/7` (RFC 4193).
#[inline(always)]
pub const fn is_private(address: [u8; 16]) -> bool {
    const fn within(address: u32, network: u32, bits: u32) -> bool {
        (address ^ network) >> (32 - bits) == 0
    }
    let [first, .., last] = words(address);
    if v4(address).is_some() {
        let v4 = u32::from_be(last);
        within(v4, 0x0a00_0000, 8)
            || within(v4, 0xac10_0000, 12)
            || within(v4, 0xc0a8_0000, 16)
            || within(v4, 0x6440_0000, 10)
            || within(v4, 0xa9fe_0000, 16)
    } else {
        let v6 = u32::from_be(first);
        within(v6, 0xfc00_0000, 7) || within(v6, 0xfe80_0000, 10)
    }
}

/// Puts in place of `0.0.0.0`, `::ffff:0.0.0.0` or `::` where the kernel goes from a socket that is bound to `source`: to loopback,
/// but from an IPv4 address back to that very one (`ip_route_output_key_hash_rcu`, `tcp_v6_connect`). Any other address is left.
/// In place, since bytes that may come from several places would take much of a kernel program's stack.
#[inline(always)]
pub fn settle(address: &mut [u8; 16], source: &[u8; 16]) {
    let [w0, w1, w2, w3] = words(*address);
    if w0 != 0 || w1 != 0 || w3 != 0 {
        return;
    }
    let from = v4(*source);
    if w2 == MAPPED_PREFIX[2] {
        *address = LOOPBACK_V4;
        if let Some(from) = from
            && !is_zero(from)
        {
            *address = *source;
        }
    } else if w2 == 0 {
        *address = LOOPBACK_V6;
        if from.is_some() {
            *address = LOOPBACK_V4;
        }
    }
}

const fn is_zero(v4: [u8; 4]) -> bool {
    u32::from_ne_bytes(v4) == 0
}

/// Four words as the kernel's structures hold them: network order in memory.
#[inline(always)]
pub const fn words(address: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// The reverse of [`words`].
#[inline(always)]
pub const fn bytes([first, second, third, fourth]: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    let [i, j, k, l] = third.to_ne_bytes();
    let [m, n, o, p] = fourth.to_ne_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn address(text: &str) -> [u8; 16] {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    #[test]
    fn loopback_is_known_in_both_families() {
        for yes in ["::1", "::ffff:127.0.0.1", "::ffff:127.255.255.254"] {
            assert!(is_loopback(address(yes)), "{yes}");
        }
        for no in ["::", "::2", "1::1", "::127.0.0.1", "::ffff:128.0.0.1", "::ffff:126.0.0.1", "fe80::1"] {
            assert!(!is_loopback(address(no)), "{no}");
        }
    }

    #[test]
    fn private_networks_are_known_in_both_families() {
        const FIRST_AND_LAST: [[&str; 2]; 7] = [
            ["::ffff:10.0.0.0", "::ffff:10.255.255.255"],
            ["::ffff:172.16.0.0", "::ffff:172.31.255.255"],
            ["::ffff:192.168.0.0", "::ffff:192.168.255.255"],
            ["::ffff:100.64.0.0", "::ffff:100.127.255.255"],
            ["::ffff:169.254.0.0", "::ffff:169.254.255.255"],
            ["fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
            ["fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        ];
        for network in FIRST_AND_LAST {
            let [first, last] = network.map(|end| u128::from_be_bytes(address(end)));
            for (yes, no) in [(first, first - 1), (last, last + 1)] {
                assert!(is_private(yes.to_be_bytes()), "{network:?}");
                // What follows `fdff` is nobody's.
                assert!(!is_private(no.to_be_bytes()), "{network:?}");
            }
        }
        for no in [
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:0.0.0.0",
            "::ffff:192.0.2.7",
            "2001:db8::1",
            "::10.0.0.1",
        ] {
            assert!(!is_private(address(no)), "{no}");
        }
    }

    #[test]
    fn unspecified_becomes_the_loopback_of_its_own_family_or_the_bound_address() {
        let meant = |to, from| {
            let mut to = address(to);
            settle(&mut to, &address(from));
            to
        };
        for unbound in ["::", "::ffff:0.0.0.0"] {
            assert_eq!(meant("::ffff:0.0.0.0", unbound), LOOPBACK_V4);
        }
        assert_eq!(meant("::ffff:0.0.0.0", "::ffff:192.0.2.7"), address("::ffff:192.0.2.7"));
        assert_eq!(meant("::", "::"), LOOPBACK_V6);
        assert_eq!(meant("::", "2001:db8::7"), LOOPBACK_V6);
        assert_eq!(meant("::", "::ffff:192.0.2.7"), LOOPBACK_V4);
        for other in ["::1", "::ffff:0.0.0.1", "::ffff:127.0.0.1", "1::"] {
            assert_eq!(meant(other, "::ffff:192.0.2.7"), address(other), "{other}");
        }
    }

    #[test]
    fn mapped_and_words_can_be_reversed() {
        assert_eq!(mapped([192, 0, 2, 7]), address("::ffff:192.0.2.7"));
        assert_eq!(v4(address("::ffff:192.0.2.7")), Some([192, 0, 2, 7]));
        assert_eq!(v4(address("::192.0.2.7")), None);
        let any = address("2001:db8:1:2:3:4:5:6");
        assert_eq!(bytes(words(any)), any);
    }
}
