//! The Merkle tree of RFC 6962: leaves come in, roots and proofs go out. Trees are at most [`MAX_TREE`] leaves; what comes
//! from outside is refused when it cannot be a tree's, and never indexed blindly.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::hex;

/// Bytes of a hash.
pub const HASH_LEN: usize = 32;
/// SHA-256.
pub type Hash = [u8; HASH_LEN];
/// The most leaves of one tree: more than any host writes in its life.
pub const MAX_TREE: u64 = 1 << 48;
/// The root of no leaves: SHA-256 of nothing.
pub const EMPTY_ROOT: Hash = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
    0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// A leaf: SHA-256(0x00 || bytes).
pub fn leaf_hash(canonical: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(canonical).finalize().into()
}

/// An inner node: SHA-256(0x01 || left || right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// What is needed of a tree to go on with it: the roots of its perfect subtrees, the largest first; as many as its size
/// has bits that are set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Paper", into = "Paper")]
pub struct Frontier {
    size: u64,
    nodes: Vec<Hash>,
}

/// A frontier on paper: its nodes are hex.
#[derive(Serialize, Deserialize)]
struct Paper {
    size: u64,
    nodes: Vec<String>,
}

impl From<Frontier> for Paper {
    fn from(frontier: Frontier) -> Self {
        Self { size: frontier.size, nodes: frontier.nodes.iter().map(|node| hex(node)).collect() }
    }
}

impl TryFrom<Paper> for Frontier {
    type Error = &'static str;

    fn try_from(paper: Paper) -> Result<Self, Self::Error> {
        let nodes: Option<Vec<Hash>> = paper.nodes.iter().map(|node| hash_of_hex(node)).collect();
        let nodes = nodes.ok_or("a node is not 64 hex digits")?;
        Self::of_parts(paper.size, nodes).ok_or("so many nodes are not a tree of this size")
    }
}

/// Reads 64 lower-case hex digits.
pub(super) fn hash_of_hex(text: &str) -> Option<Hash> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut hash = [0; HASH_LEN];
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != HASH_LEN {
        return None;
    }
    for (out, [high, low]) in hash.iter_mut().zip(pairs) {
        *out = digit(*high)? << 4 | digit(*low)?;
    }
    Some(hash)
}

impl Frontier {
    /// Of a tree of this size; `None` when so many nodes cannot be one's.
    pub fn of_parts(size: u64, nodes: Vec<Hash>) -> Option<Self> {
        (size <= MAX_TREE && nodes.len() == size.count_ones() as usize).then_some(Self { size, nodes })
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The roots of the perfect subtrees, the largest first.
    pub fn nodes(&self) -> &[Hash] {
        &self.nodes
    }

    /// Takes the next leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        // Each perfect subtree of the new node's size becomes one with it.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.nodes.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.nodes.push(node);
        self.size += 1;
    }

    /// The tree's root.
    pub fn root(&self) -> Hash {
        let mut nodes = self.nodes.iter().rev();
        let Some(last) = nodes.next() else { return EMPTY_ROOT };
        nodes.fold(*last, |right, left| node_hash(left, &right))
    }
}

impl Extend<Hash> for Frontier {
    fn extend<I: IntoIterator<Item = Hash>>(&mut self, leaves: I) {
        leaves.into_iter().for_each(|leaf| self.push(leaf));
    }
}

/// The root over these leaves.
pub fn root(leaves: &[Hash]) -> Hash {
    let mut frontier = Frontier::default();
    frontier.extend(leaves.iter().copied());
    frontier.root()
}

/// The largest power of two below `n`, of at least two.
fn split(n: usize) -> usize {
    let below = n - 1;
    1 << below.ilog2()
}

/// That the leaf at `index` is in the tree over `leaves` (RFC 6962, 2.1.1), the nearest hash first. `None` when there is
/// no such leaf.
pub fn inclusion_proof(leaves: &[Hash], index: usize) -> Option<Vec<Hash>> {
    if index >= leaves.len() {
        return None;
    }
    let (mut proof, mut leaves, mut index) = (Vec::new(), leaves, index);
    while leaves.len() > 1 {
        let (left, right) = leaves.split_at(split(leaves.len()));
        let sibling;
        (leaves, sibling) = if index < left.len() {
            (left, right)
        } else {
            index -= left.len();
            (right, left)
        };
        proof.push(root(sibling));
    }
    proof.reverse();
    Some(proof)
}

/// That the tree over the first `old` of `leaves` is the beginning of the tree over all (RFC 6962, 2.1.2). `None` when
/// there are not so many.
pub fn consistency_proof(leaves: &[Hash], old: usize) -> Option<Vec<Hash>> {
    if old > leaves.len() {
        return None;
    }
    if old == 0 || old == leaves.len() {
        return Some(Vec::new());
    }
    let (mut proof, mut leaves, mut old, mut whole) = (Vec::new(), leaves, old, true);
    while old < leaves.len() {
        let (left, right) = leaves.split_at(split(leaves.len()));
        if old <= left.len() {
            proof.push(root(right));
            leaves = left;
        } else {
            proof.push(root(left));
            old -= left.len();
            leaves = right;
            whole = false;
        }
    }
    if !whole {
        proof.push(root(leaves));
    }
    proof.reverse();
    Some(proof)
}

/// Whether `proof` shows that `leaf` has the index `index` in the tree of this size and root (RFC 9162, 2.1.3.2).
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let mut climb = Climb { at: index, last: size - 1 };
    let mut node = *leaf;
    for sibling in proof {
        node = match climb.step() {
            None => return false,
            Some(Side::Left) => node_hash(sibling, &node),
            Some(Side::Right) => node_hash(&node, sibling),
        };
    }
    climb.last == 0 && node == *root
}

/// Whether `proof` shows that the tree of the old size and root is the beginning of the new one (RFC 9162, 2.1.4.2).
pub fn verify_consistency(
    old_size: u64,
    old_root: &Hash,
    new_size: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> bool {
    if old_size > new_size {
        return false;
    }
    if old_size == new_size {
        return proof.is_empty() && old_root == new_root;
    }
    if old_size == 0 {
        return proof.is_empty() && *old_root == EMPTY_ROOT;
    }
    // What is one perfect subtree of both trees comes first; an old tree that is one itself is not in the proof.
    let perfect = (old_size - 1).trailing_ones();
    let mut climb = Climb { at: (old_size - 1) >> perfect, last: (new_size - 1) >> perfect };
    let mut proof = proof.iter();
    let first = if old_size.is_power_of_two() { Some(old_root) } else { proof.next() };
    let Some(first) = first else { return false };
    let (mut old, mut new) = (*first, *first);
    for sibling in proof {
        match climb.step() {
            None => return false,
            Some(Side::Left) => (old, new) = (node_hash(sibling, &old), node_hash(sibling, &new)),
            Some(Side::Right) => new = node_hash(&new, sibling),
        }
    }
    climb.last == 0 && old == *old_root && new == *new_root
}

/// The way from a node up to the root: its place in its level, and that of the level's last node.
struct Climb {
    at: u64,
    last: u64,
}

/// Where a sibling stands.
enum Side {
    Left,
    Right,
}

impl Climb {
    /// Goes up to the next level with two nodes to hash. `None` at the root.
    fn step(&mut self) -> Option<Side> {
        if self.last == 0 {
            return None;
        }
        let side = if self.at & 1 == 1 || self.at == self.last { Side::Left } else { Side::Right };
        if matches!(side, Side::Left) && self.at & 1 == 0 {
            // The last node of a level without a partner there stands as it is in the levels above.
            let skipped = self.at.trailing_zeros().min(63);
            self.at = self.at.unbounded_shr(skipped);
            self.last = self.last.unbounded_shr(skipped);
        }
        self.at >>= 1;
        self.last >>= 1;
        Some(side)
    }
}

#[cfg(test)]
mod tests;
