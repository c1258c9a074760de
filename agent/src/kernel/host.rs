//! What the kernel programs want of this host, looked at before anything is loaded, so that a refusal can be named.
//!
//! Enters: `/proc`, `/sys/kernel/btf`. Leaves: nothing, or the one thing that is missing. Must never: load anything.

use std::{fs, path::Path};

use super::KernelError;

const BTF: &str = "/sys/kernel/btf/vmlinux";
const STATUS: &str = "/proc/thread-self/status";

/// Bits of `capability.h`. CAP_SYS_ADMIN holds what CAP_BPF and CAP_PERFMON were split from.
const NEEDED: [(&str, u32, bool); 3] =
    [("CAP_BPF", 39, true), ("CAP_NET_ADMIN", 12, false), ("CAP_PERFMON", 38, true)];
const CAP_SYS_ADMIN: u32 = 21;

pub(super) fn check() -> Result<(), KernelError> {
    // Where /proc cannot be read, the kernel itself will say what it thinks of the caller.
    if let Ok(status) = fs::read_to_string(STATUS) {
        check_capabilities(&status)?;
    }
    check_btf(Path::new(BTF))
}

fn check_btf(path: &Path) -> Result<(), KernelError> {
    if path.exists() { Ok(()) } else { Err(KernelError::NoBtf(path.to_owned())) }
}

fn check_capabilities(status: &str) -> Result<(), KernelError> {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = field.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else { return Ok(()) };
    let has = |bit: u32| held >> bit & 1 == 1;
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|&(_, bit, in_sys_admin)| !(has(bit) || in_sys_admin && has(CAP_SYS_ADMIN)))
        .map(|(name, ..)| name)
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(KernelError::Privilege { missing: missing.join(", ") }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(cap_eff: u64) -> Option<String> {
        let status = format!("Name:\tweir\nCapPrm:\t000001ffffffffff\nCapEff:\t{cap_eff:016x}\n");
        match check_capabilities(&status) {
            Ok(()) => None,
            Err(KernelError::Privilege { missing }) => Some(missing),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn each_missing_capability_is_named() {
        assert_eq!(missing(0).as_deref(), Some("CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"));
        assert_eq!(missing(1 << 39 | 1 << 38).as_deref(), Some("CAP_NET_ADMIN"));
        assert_eq!(missing(1 << 39 | 1 << 12).as_deref(), Some("CAP_PERFMON"));
        assert_eq!(missing(1 << 39 | 1 << 12 | 1 << 38), None);
        assert_eq!(missing(1 << 21 | 1 << 12), None);
    }

    #[test]
    fn without_type_information_the_error_names_the_file_and_the_mend() {
        let error = check_btf(Path::new("/no/such/btf")).unwrap_err().to_string();
        assert!(error.contains("/no/such/btf") && error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }
}
