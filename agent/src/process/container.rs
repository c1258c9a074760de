//! Which container a cgroup is of, by the names that container engines give: docker, podman, containerd, cri-o, with the
//! systemd and the cgroupfs driver.
//!
//! Enters: a cgroup's path. Leaves: the container's id. Must never: take a name for one that is not 64 hexadecimal digits.

/// The id of the innermost container in the path; empty when there is none.
pub fn id(cgroup: &str) -> &str {
    cgroup.rsplit('/').find_map(id_in).unwrap_or_default()
}

/// `docker-<id>.scope`, `libpod-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>.scope`, `libpod-conmon-..` (which is none),
/// or the id alone (`/docker/<id>`, `/kubepods/../<id>`, `/libpod_parent/libpod-<id>`).
fn id_in(name: &str) -> Option<&str> {
    const PREFIXES: [&str; 5] = ["docker-", "libpod-", "cri-containerd-", "crio-", "nerdctl-"];
    let name = name.strip_suffix(".scope").unwrap_or(name);
    // cri-o and podman put a container below its scope.
    let id = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engines_names_are_known() {
        let id64 = "0123456789abcdef".repeat(4);
        for path in [
            format!("/system.slice/docker-{id64}.scope"),
            format!("/docker/{id64}"),
            format!("/machine.slice/libpod-{id64}.scope/container"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-{id64}.scope"
            ),
            format!("/kubepods/besteffort/pod1/{id64}"),
            format!("/kubepods.slice/crio-{id64}.scope"),
        ] {
            assert_eq!(id(&path), id64, "{path}");
        }
        for path in ["", "/", "/system.slice/docker-0123.scope", "/system.slice/docker.service"] {
            assert_eq!(id(path), "", "{path}");
        }
        assert_eq!(id(&format!("/libpod-conmon-{id64}.scope")), "");
        assert_eq!(id(&format!("/docker-{}.scope", id64.to_uppercase())), "");
    }
}
