//! Root in a job, with nothing but system calls: finds the links on its cgroup by their numbers, as no pin is needed for
//! that, and takes them off, gives them another program, or removes their pins.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Result, ensure};
use weir_tests::World;

/// Joins the cgroup first. Its arguments: the cgroup, its id, what to do, the folder of pins.
const SCRIPT: &str = r#"
import ctypes, os, struct, sys
folder, cgroup, action, pins = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
open(folder + "/cgroup.procs", "w").write(str(os.getpid()))
NUMBER = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
PROG_LOAD, INFO, LINK_UPDATE, LINK_FD, LINK_NEXT, LINK_DETACH = 5, 15, 29, 30, 31, 34
SOCK_ADDR, CONNECT4, CONNECT6 = 18, 10, 11
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    result = libc.syscall(NUMBER, command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attributes(*parts):
    return ctypes.create_string_buffer(b"".join(parts), 128)
def links():
    number = 0
    while True:
        ask = attributes(struct.pack("II", number, 0))
        try:
            bpf(LINK_NEXT, ask)
        except FileNotFoundError:
            return
        number = struct.unpack("II", ask.raw[:8])[1]
        try:
            link = bpf(LINK_FD, attributes(struct.pack("I", number)))
        except FileNotFoundError:
            continue
        info = ctypes.create_string_buffer(32)
        bpf(INFO, attributes(struct.pack("IIQ", link, 32, ctypes.addressof(info))))
        _, number, _, _, where, kind, _ = struct.unpack("IIIIQII", info.raw)
        if where == cgroup:
            yield number, link, kind
def passing(kind):
    code = ctypes.create_string_buffer(struct.pack("QQ", 1 << 32 | 0xb7, 0x95))
    license = ctypes.create_string_buffer(b"GPL")
    head = struct.pack("IIQQ", SOCK_ADDR, 2, ctypes.addressof(code), ctypes.addressof(license))
    return bpf(PROG_LOAD, attributes(head, bytes(44), struct.pack("I", kind)))
if action == "unpin":
    for above, _, files in os.walk(pins):
        if above.endswith("/links"):
            for name in files:
                os.unlink(os.path.join(above, name)); print(name)
else:
    for number, link, kind in list(links()):
        if action == "detach":
            bpf(LINK_DETACH, attributes(struct.pack("I", link)))
        elif action == "update":
            if kind not in (CONNECT4, CONNECT6):
                continue
            bpf(LINK_UPDATE, attributes(struct.pack("IIII", link, passing(kind), 0, 0)))
        print(number)
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// LINK_DETACH of each link on the cgroup.
    Detach,
    /// LINK_UPDATE of the connect hooks, to programs that let all pass.
    Update,
    /// The pins of all links are unlinked.
    Unpin,
}

impl Attack {
    /// As the record calls it.
    pub fn state(self) -> &'static str {
        match self {
            Attack::Detach => "detached",
            Attack::Update => "other_program",
            Attack::Unpin => "unpinned",
        }
    }
}

/// Attacks from within the job's cgroup, as root; gives what it reached.
pub fn attack(world: &World, attack: Attack) -> Result<Vec<String>> {
    let action = match attack {
        Attack::Detach => "detach",
        Attack::Update => "update",
        Attack::Unpin => "unpin",
    };
    run(world, action)
}

/// The numbers of the links on the job's cgroup.
pub fn links(world: &World) -> Result<Vec<String>> {
    run(world, "list")
}

pub fn cgroup_id(world: &World) -> Result<u64> {
    Ok(std::fs::metadata(world.selected.path())?.ino())
}

fn run(world: &World, action: &str) -> Result<Vec<String>> {
    let output = Command::new(world.setup.python())
        .args(["-c", SCRIPT])
        .arg(world.selected.path())
        .arg(cgroup_id(world)?.to_string())
        .arg(action)
        .arg(world.pins.path())
        .output()?;
    ensure!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}
