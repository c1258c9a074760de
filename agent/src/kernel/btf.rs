//! Where the running kernel keeps the fields that the lineage programs read: out of its own type information (BTF).
//!
//! Enters: the bytes of `/sys/kernel/btf/vmlinux`. Leaves: [`Offsets`], or the first field that this kernel does not
//! have. Must never: trust a number in the bytes, follow types in a circle, or guess an offset.
//!
//! The format: Documentation/bpf/btf.rst of the kernel.

use std::collections::HashMap;

use weir_ebpf::task::Offsets;

use super::KernelError;

const FILE: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// What there is only in a kernel built with MPTCP.
const MPTCP: &[u8] = b"mptcp_sock";

/// Kinds of types.
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const TYPE_TAG: u32 = 18;

/// How many qualifiers and typedefs may lie before a type, and how deep structures without a name may nest.
const DEPTH: usize = 16;

/// What is wrong with type information.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BtfError {
    #[error("it is not type information in a form that Weir can read ({0})")]
    Malformed(&'static str),
    #[error("it has no {0}")]
    Missing(String),
}

/// What the programs are told of the running kernel.
#[derive(Debug)]
pub(super) struct Layout {
    pub offsets: Offsets,
    /// 1: it knows MPTCP sockets.
    pub mptcp: u32,
}

/// That of the running kernel.
pub(super) fn layout() -> Result<Layout, KernelError> {
    let failed = |reason: String| KernelError::Layout { file: FILE.into(), reason };
    let bytes = std::fs::read(FILE).map_err(|e| failed(e.to_string()))?;
    layout_in(&bytes).map_err(|e| failed(e.to_string()))
}

fn layout_in(bytes: &[u8]) -> Result<Layout, BtfError> {
    let types = Types::read(bytes)?;
    Ok(Layout { offsets: offsets_in(&types)?, mptcp: types.named.contains_key(MPTCP).into() })
}

fn offsets_in(types: &Types<'_>) -> Result<Offsets, BtfError> {
    let at = |structure, field| types.offset(structure, field);
    Ok(Offsets {
        task_pid: at("task_struct", "pid")?,
        task_tgid: at("task_struct", "tgid")?,
        task_real_parent: at("task_struct", "real_parent")?,
        task_start_boottime: at("task_struct", "start_boottime")?,
        task_group_leader: at("task_struct", "group_leader")?,
        task_nsproxy: at("task_struct", "nsproxy")?,
        task_mm: at("task_struct", "mm")?,
        task_signal: at("task_struct", "signal")?,
        task_exit_code: at("task_struct", "exit_code")?,
        task_cgroups: at("task_struct", "cgroups")?,
        signal_live: at("signal_struct", "live")?,
        nsproxy_net_ns: at("nsproxy", "net_ns")?,
        nsproxy_mnt_ns: at("nsproxy", "mnt_ns")?,
        nsproxy_pid_ns_for_children: at("nsproxy", "pid_ns_for_children")?,
        net_cookie: at("net", "net_cookie")?,
        net_ns_inum: at("net", "ns.inum")?,
        mnt_ns_inum: at("mnt_namespace", "ns.inum")?,
        pid_ns_inum: at("pid_namespace", "ns.inum")?,
        mm_arg_start: at("mm_struct", "arg_start")?,
        mm_arg_end: at("mm_struct", "arg_end")?,
        css_set_dfl_cgrp: at("css_set", "dfl_cgrp")?,
        cgroup_kn: at("cgroup", "kn")?,
        cgroup_level: at("cgroup", "level")?,
        cgroup_ancestors: at("cgroup", "ancestors")?,
        cgroup_root: at("cgroup", "root")?,
        cgroup_root_hierarchy: at("cgroup_root", "hierarchy_id")?,
        cgroup_flags: at("cgroup", "self.flags")?,
        sock_cgroup: at("sock", "sk_cgrp_data.cgroup")?,
        kernfs_node_id: at("kernfs_node", "id")?,
        binprm_filename: at("linux_binprm", "filename")?,
        binprm_file: at("linux_binprm", "file")?,
        file_inode: at("file", "f_inode")?,
        inode_ino: at("inode", "i_ino")?,
        inode_sb: at("inode", "i_sb")?,
        super_block_dev: at("super_block", "s_dev")?,
    })
}

/// All types of a kernel.
struct Types<'a> {
    section: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in the section; type 0 is `void` and has no place.
    places: Vec<usize>,
    /// Structures and unions by name. A name may stand for several.
    named: HashMap<&'a [u8], Vec<u32>>,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    members: usize,
    /// Members' offsets share their bits with the sizes of bit fields.
    with_bit_fields: bool,
    target: u32,
    /// Of what follows the type's head.
    details: usize,
}

impl<'a> Types<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let malformed = BtfError::Malformed;
        let header = bytes.first_chunk::<HEADER>().ok_or(malformed("it is shorter than its header"))?;
        if u16::from_ne_bytes([header[0], header[1]]) != MAGIC {
            return Err(malformed("its first bytes are others"));
        }
        let field = |at| word(bytes, at).map(|word| word as usize).ok_or(malformed("its header is cut"));
        let section = |offset: usize, length: usize| -> Option<&'a [u8]> {
            let start = field(4).ok()?.checked_add(offset)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let types = section(field(8)?, field(12)?).ok_or(malformed("its types are cut"))?;
        let strings = section(field(16)?, field(20)?).ok_or(malformed("its names are cut"))?;
        let mut read = Self { section: types, strings, places: vec![usize::MAX], named: HashMap::new() };
        let mut place = 0;
        while place < types.len() {
            let head = read.head(place).ok_or(malformed("a type is cut"))?;
            let size =
                details(head.kind, head.members).ok_or(malformed("it has a type of an unknown kind"))?;
            if matches!(head.kind, STRUCT | UNION) && head.name != 0 {
                let id = u32::try_from(read.places.len()).map_err(|_| malformed("it has too many types"))?;
                let name = name(strings, head.name).ok_or(malformed("a name is cut"))?;
                read.named.entry(name).or_default().push(id);
            }
            read.places.push(place);
            place = head.details.checked_add(size).ok_or(malformed("a type is cut"))?;
        }
        if place != types.len() {
            return Err(malformed("a type is cut"));
        }
        Ok(read)
    }

    /// Bytes from a structure's beginning to a field of it, given as `field` or `field.inner`.
    fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let candidates = self.named.get(structure.as_bytes()).map(Vec::as_slice).unwrap_or_default();
        let found = candidates.iter().find_map(|id| {
            let mut bits = 0_u32;
            let mut of = *id;
            for field in path.split('.') {
                let (offset, kind) = self.member(of, field.as_bytes(), 0)?;
                bits = bits.checked_add(offset)?;
                of = kind;
            }
            bits.is_multiple_of(8).then_some(bits / 8)
        });
        found.ok_or_else(|| BtfError::Missing(format!("{structure}.{path}")))
    }

    /// A member's offset in bits, and its type. Members of a member without a name count as the structure's own.
    fn member(&self, structure: u32, wanted: &[u8], depth: usize) -> Option<(u32, u32)> {
        let structure = self.plain(structure)?;
        if !matches!(structure.kind, STRUCT | UNION) || depth > DEPTH {
            return None;
        }
        (0..structure.members).find_map(|n| {
            let at = structure.details.checked_add(n.checked_mul(12)?)?;
            let (own, kind) = (word(self.section, at)?, word(self.section, at + 4)?);
            let offset = word(self.section, at + 8)?;
            // A bit field has no address.
            if structure.with_bit_fields && offset >> 24 != 0 {
                return None;
            }
            let name = name(self.strings, own)?;
            if name.is_empty() {
                let (inner, kind) = self.member(kind, wanted, depth + 1)?;
                return Some((offset.checked_add(inner)?, kind));
            }
            (name == wanted).then_some((offset, kind))
        })
    }

    /// A type without its typedefs and qualifiers.
    fn plain(&self, id: u32) -> Option<Type> {
        let mut id = id;
        for _ in 0..DEPTH {
            let head = self.head(*self.places.get(id as usize)?)?;
            match head.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = head.target,
                _ => return Some(head),
            }
        }
        None
    }

    fn head(&self, place: usize) -> Option<Type> {
        let (name, info) = (word(self.section, place)?, word(self.section, place.checked_add(4)?)?);
        Some(Type {
            name,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            with_bit_fields: info >> 31 == 1,
            target: word(self.section, place.checked_add(8)?)?,
            details: place.checked_add(12)?,
        })
    }
}

/// Bytes that follow a type's head. None: a kind that this reader does not know, after which it would be lost.
fn details(kind: u32, members: usize) -> Option<usize> {
    const INT: u32 = 1;
    const POINTER: u32 = 2;
    const ENUM: u32 = 6;
    const FORWARD: u32 = 7;
    const FUNCTION: u32 = 12;
    const PROTOTYPE: u32 = 13;
    const VARIABLE: u32 = 14;
    const SECTION: u32 = 15;
    const FLOAT: u32 = 16;
    const DECLARATION_TAG: u32 = 17;
    const ENUM64: u32 = 19;
    match kind {
        POINTER | FORWARD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNCTION | FLOAT | TYPE_TAG => Some(0),
        INT | VARIABLE | DECLARATION_TAG => Some(4),
        ARRAY => Some(12),
        STRUCT | UNION | SECTION | ENUM64 => members.checked_mul(12),
        ENUM | PROTOTYPE => members.checked_mul(8),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_ne_bytes(*word))
}

/// Up to the zero that ends it.
fn name(strings: &[u8], at: u32) -> Option<&[u8]> {
    let rest = strings.get(at as usize..)?;
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type information with the given types, whose names are offsets into `strings`.
    fn btf(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let words = [HEADER, 0, types.len(), types.len(), strings.len()];
        let mut bytes = [MAGIC.to_ne_bytes().as_slice(), &[1, 0]].concat();
        bytes.extend(words.iter().flat_map(|word| (*word as u32).to_ne_bytes()));
        [bytes, types, strings.to_vec()].concat()
    }

    const STRINGS: &[u8] = b"\0outer\0inner\0field\0loop\0";
    const OUTER: u32 = 1;
    const INNER: u32 = 7;
    const FIELD: u32 = 13;
    const LOOP: u32 = 19;

    fn head(name: u32, kind: u32, members: u32, target: u32) -> [u32; 3] {
        [name, kind << 24 | members, target]
    }

    #[test]
    fn the_running_kernel_has_every_field() {
        let Layout { offsets, .. } = layout().unwrap();
        assert_ne!(offsets.task_pid, offsets.task_tgid);
        assert_eq!(offsets.task_tgid, offsets.task_pid + 4);
        assert!(offsets.cgroup_ancestors > 0 && offsets.net_ns_inum > 0 && offsets.super_block_dev > 0);
    }

    #[test]
    fn members_of_structures_without_a_name_are_found_and_typedefs_are_followed() {
        let types: Vec<u32> = [
            head(0, STRUCT, 1, 8).as_slice(),
            &[FIELD, 0, 32],
            &head(INNER, TYPEDEF, 0, 1),
            &head(OUTER, STRUCT, 2, 24),
            &[0, 1, 64],
            &[INNER, 2, 128],
        ]
        .concat();
        let bytes = btf(&types, STRINGS);
        let types = Types::read(&bytes).unwrap();
        assert_eq!(types.offset("outer", "field"), Ok(12));
        assert_eq!(types.offset("outer", "inner.field"), Ok(20));
        assert_eq!(types.offset("outer", "loop"), Err(BtfError::Missing("outer.loop".into())));
        assert_eq!(types.offset("none", "field"), Err(BtfError::Missing("none.field".into())));
    }

    #[test]
    fn types_that_lead_in_a_circle_end() {
        let types: Vec<u32> = [
            head(OUTER, STRUCT, 1, 8).as_slice(),
            &[0, 1, 0],
            &head(INNER, STRUCT, 1, 8),
            &[LOOP, 3, 0],
            &head(LOOP, TYPEDEF, 0, 3),
        ]
        .concat();
        let bytes = btf(&types, STRINGS);
        let types = Types::read(&bytes).unwrap();
        assert!(types.offset("outer", "field").is_err() && types.offset("inner", "loop.field").is_err());
    }

    #[test]
    fn garbage_is_refused_and_never_read_past_its_end() {
        for bytes in [&b""[..], b"\x9f\xeb", &[0; 64], &[0xff; 64]] {
            assert!(layout_in(bytes).is_err(), "{bytes:?}");
        }
        let whole = btf(&[head(OUTER, STRUCT, 1, 8).as_slice(), &[FIELD, 0, 0]].concat(), STRINGS);
        for length in 0..whole.len() {
            assert!(layout_in(whole.get(..length).unwrap()).is_err(), "{length}");
        }
        // Each byte in turn altered, in several ways.
        for place in 0..whole.len() {
            for with in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                let mut altered = whole.clone();
                altered[place] = with;
                assert!(layout_in(&altered).is_err());
            }
        }
        assert!(matches!(layout_in(&whole), Err(BtfError::Missing(what)) if what == "task_struct.pid"));
    }
}
