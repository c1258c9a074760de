//! What the kernel programs want of this host, looked at before anything is loaded, so that a refusal can be named.
//!
//! Enters: `/proc`, `/sys/kernel/btf`, and the kernel's answers to programs of two instructions. Leaves: nothing, or what is
//! missing by name. Must never: attach anything.

use std::{fs, path::Path};

use aya::{
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_program_supported},
};
use nix::sys::utsname::uname;

use super::{KernelError, io_error};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const STATUS: &str = "/proc/thread-self/status";
/// The oldest kernel that these programs were run on.
const FLOOR: (u32, u32) = (6, 1);

/// What a capability is needed for.
struct Capability {
    name: &'static str,
    /// As capability.h numbers it.
    bit: u32,
    /// Whether the kernel takes CAP_SYS_ADMIN, too.
    in_sys_admin: bool,
    purpose: &'static str,
}

const NEEDED: [Capability; 5] = [
    Capability { name: "CAP_BPF", bit: 39, in_sys_admin: true, purpose: "load programs" },
    Capability { name: "CAP_NET_ADMIN", bit: 12, in_sys_admin: true, purpose: "load those of the network" },
    Capability { name: "CAP_PERFMON", bit: 38, in_sys_admin: true, purpose: "follow processes" },
    Capability {
        name: "CAP_SYS_PTRACE",
        bit: 19,
        in_sys_admin: false,
        purpose: "tell which program connects",
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        bit: 2,
        in_sys_admin: false,
        purpose: "read the CI job of another user's process, and reach the pins",
    },
];
/// Besides, what it takes to listen in the network namespaces of containers.
const CAP_SYS_ADMIN: u32 = 21;

/// What the programs that intercept are made of.
const PROGRAMS: [ProgramType; 3] =
    [ProgramType::CgroupSockAddr, ProgramType::CgroupSock, ProgramType::SockOps];
const HELPERS: [(ProgramType, BpfHelper); 12] = [
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_current_cgroup_id),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_ktime_get_boot_ns),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_lookup_tcp),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_setsockopt),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_ringbuf_output),
    (ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get),
    (ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie),
    (ProgramType::SockOps, BpfHelper::BPF_FUNC_setsockopt),
];

pub(super) fn check() -> Result<(), KernelError> {
    // Where /proc cannot be read, the kernel itself will say what it thinks of the caller.
    if let Ok(status) = fs::read_to_string(STATUS) {
        check_capabilities(&status)?;
    }
    let release = uname().map(|host| host.release().to_string_lossy().into_owned()).unwrap_or_default();
    check_release(&release)?;
    check_btf(Path::new(BTF))?;
    check_programs()
}

fn check_btf(path: &Path) -> Result<(), KernelError> {
    if path.exists() { Ok(()) } else { Err(KernelError::NoBtf(path.to_owned())) }
}

fn check_release(release: &str) -> Result<(), KernelError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let known = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if known >= FLOOR { Ok(()) } else { Err(KernelError::TooOld { release: release.to_owned() }) }
}

/// A kernel of any release may be built without one of them.
fn check_programs() -> Result<(), KernelError> {
    let unknown = |what: String| {
        move |e: ProgramError| KernelError::Load { what, source: io_error(e), log: String::new() }
    };
    for kind in PROGRAMS {
        if !is_program_supported(kind).map_err(unknown(format!("{kind:?} programs")))? {
            return Err(KernelError::NoFeature { what: format!("{kind:?} programs") });
        }
    }
    for (kind, helper) in HELPERS {
        let what = format!("{helper:?} for {kind:?} programs").replace("BPF_FUNC_", "bpf_");
        if !is_helper_supported(kind, helper).map_err(unknown(what.clone()))? {
            return Err(KernelError::NoFeature { what });
        }
    }
    Ok(())
}

/// Whether this process may enter other network namespaces.
pub(super) fn may_enter_namespaces() -> bool {
    let held = fs::read_to_string(STATUS).ok().and_then(|status| effective(&status));
    held.is_none_or(|held| held >> CAP_SYS_ADMIN & 1 == 1)
}

fn effective(status: &str) -> Option<u64> {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(field.trim(), 16).ok()
}

fn check_capabilities(status: &str) -> Result<(), KernelError> {
    let Some(held) = effective(status) else { return Ok(()) };
    let has = |bit: u32| held >> bit & 1 == 1;
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|needed| !(has(needed.bit) || needed.in_sys_admin && has(CAP_SYS_ADMIN)))
        .map(|needed| format!("{} (to {})", needed.name, needed.purpose))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(KernelError::Privilege { missing: missing.join(", ") }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(bits: &[u32]) -> String {
        let cap_eff = bits.iter().fold(0_u64, |set, bit| set | 1 << bit);
        let status = format!("Name:\tweir\nCapPrm:\t000001ffffffffff\nCapEff:\t{cap_eff:016x}\n");
        match check_capabilities(&status) {
            Ok(()) => String::new(),
            Err(KernelError::Privilege { missing }) => missing,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn each_missing_capability_is_named_with_what_it_is_for() {
        for (all, sys_admin) in [(&[39, 12, 38, 19, 2][..], false), (&[21, 19, 2], true)] {
            assert_eq!(lacking(all), "");
            for needed in &NEEDED {
                let others: Vec<u32> = all.iter().copied().filter(|bit| *bit != needed.bit).collect();
                let expected = if sys_admin && needed.in_sys_admin {
                    String::new()
                } else {
                    format!("{} (to {})", needed.name, needed.purpose)
                };
                assert_eq!(lacking(&others), expected);
            }
        }
        assert!(lacking(&[12, 19, 2]).starts_with("CAP_BPF (to load programs), CAP_PERFMON (to follow"));
    }

    #[test]
    fn without_type_information_the_error_names_the_file_and_the_mend() {
        let error = check_btf(Path::new("/no/such/btf")).unwrap_err().to_string();
        assert!(error.contains("/no/such/btf") && error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }

    #[test]
    fn a_kernel_below_the_floor_is_named_and_one_above_is_not() {
        for release in ["6.1.0-41-cloud-amd64", "6.12.57+deb13-amd64", "6.18.44-fc", "7.0", "10.0.1"] {
            assert!(check_release(release).is_ok(), "{release}");
        }
        for release in ["5.15.0-1051-aws", "6.0.19", "4.19", "", "odd"] {
            let error = check_release(release).unwrap_err().to_string();
            assert!(error.contains(release) && error.contains("6.1"), "{error}");
        }
    }

    /// Needs root; on the kernel that runs it.
    #[test]
    fn this_kernel_has_all_that_is_probed_for() {
        check().unwrap();
        for (kind, helper) in HELPERS {
            assert!(is_helper_supported(kind, helper).unwrap(), "{kind:?} {helper:?}");
        }
        // The probe can say no.
        let absent = is_helper_supported(ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_lookup_tcp);
        assert!(!absent.unwrap());
    }
}
