use tlog_tiles::tlog;

use super::*;

fn leaves(n: usize) -> Vec<Hash> {
    (0..n).map(|i| leaf_hash(format!("event {i}").as_bytes())).collect()
}

/// The same tree by another implementation.
struct Oracle(Vec<tlog::Hash>);

impl tlog::HashReader for Oracle {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
        Ok(indexes.iter().map(|at| self.0[usize::try_from(*at).unwrap()]).collect())
    }
}

impl Oracle {
    fn of(n: usize) -> Self {
        let mut oracle = Self(Vec::new());
        for i in 0..n {
            let stored = tlog::stored_hashes(i as u64, format!("event {i}").as_bytes(), &oracle).unwrap();
            oracle.0.extend(stored);
        }
        oracle
    }

    fn root(&self, n: usize) -> Hash {
        tlog::tree_hash(n as u64, self).unwrap().0
    }
}

const MOST: usize = 70;

#[test]
fn roots_are_those_of_another_implementation_at_each_size() {
    let (leaves, oracle) = (leaves(MOST), Oracle::of(MOST));
    let mut frontier = Frontier::default();
    assert_eq!(frontier.root(), EMPTY_ROOT);
    for (at, leaf) in leaves.iter().enumerate() {
        frontier.push(*leaf);
        assert_eq!(frontier.root(), oracle.root(at + 1), "{at}");
        assert_eq!(frontier.root(), root(&leaves[..=at]));
        let again: Frontier = serde_json::from_str(&serde_json::to_string(&frontier).unwrap()).unwrap();
        assert_eq!(again, frontier);
    }
}

#[test]
fn proofs_are_those_of_another_implementation_and_prove_nothing_else() {
    let (leaves, oracle) = (leaves(MOST), Oracle::of(MOST));
    for size in 1..=MOST {
        let whole = root(&leaves[..size]);
        for at in 0..size {
            let proof = inclusion_proof(&leaves[..size], at).unwrap();
            let theirs = tlog::prove_record(size as u64, at as u64, &oracle).unwrap();
            assert_eq!(proof, theirs.iter().map(|hash| hash.0).collect::<Vec<_>>(), "{at} of {size}");
            assert!(verify_inclusion(&leaves[at], at as u64, size as u64, &whole, &proof));
            let wrong = at as u64 ^ 1;
            assert!(!verify_inclusion(&leaves[at], wrong, size as u64, &whole, &proof), "{at} of {size}");
            assert!(!verify_inclusion(&leaf_hash(b"other"), at as u64, size as u64, &whole, &proof));
            for bad in spoilt(&proof) {
                assert!(
                    !verify_inclusion(&leaves[at], at as u64, size as u64, &whole, &bad),
                    "{at} of {size}"
                );
            }
        }
        for old in 1..=size {
            let (before, proof) = (root(&leaves[..old]), consistency_proof(&leaves[..size], old).unwrap());
            let theirs = tlog::prove_tree(size as u64, old as u64, &oracle).unwrap();
            assert_eq!(proof, theirs.iter().map(|hash| hash.0).collect::<Vec<_>>(), "{old} of {size}");
            let holds = |old: usize, before: &Hash, proof: &[Hash]| {
                verify_consistency(old as u64, before, size as u64, &whole, proof)
            };
            assert!(holds(old, &before, &proof), "{old} of {size}");
            assert!(!holds(old, &leaf_hash(b"other"), &proof));
            for bad in spoilt(&proof) {
                assert!(!holds(old, &before, &bad), "{old} of {size}");
            }
        }
    }
}

/// A proof with one bit changed, one hash more, and one less.
fn spoilt(proof: &[Hash]) -> Vec<Vec<Hash>> {
    let mut out = vec![[proof, &[[7; HASH_LEN]]].concat()];
    if let Some((_, rest)) = proof.split_last() {
        out.push(rest.to_vec());
    }
    for at in 0..proof.len() {
        let mut bad = proof.to_vec();
        bad[at][0] ^= 1;
        out.push(bad);
    }
    out
}

#[test]
fn nothing_is_proved_of_what_is_not_there() {
    let leaves = leaves(5);
    assert_eq!(inclusion_proof(&leaves, 5), None);
    assert_eq!(consistency_proof(&leaves, 6), None);
    assert_eq!(consistency_proof(&leaves, 0), Some(Vec::new()));
    assert!(!verify_inclusion(&leaves[0], 0, 0, &EMPTY_ROOT, &[]));
    assert!(verify_consistency(0, &EMPTY_ROOT, 5, &root(&leaves), &[]));
    assert!(!verify_consistency(0, &leaves[0], 5, &root(&leaves), &[]));
    assert!(!verify_consistency(5, &root(&leaves), 4, &root(&leaves[..4]), &[]));
    // Numbers at the end of what there is neither overflow nor hang.
    assert!(!verify_inclusion(&leaves[0], u64::MAX - 1, u64::MAX, &leaves[1], &leaves));
    assert!(!verify_consistency(u64::MAX - 1, &leaves[0], u64::MAX, &leaves[1], &leaves));
    assert!(!verify_consistency(1 << 63, &leaves[0], u64::MAX, &leaves[1], &leaves));
}

#[test]
fn a_frontier_that_cannot_be_is_not_read() {
    for bad in [
        r#"{"size":1,"nodes":[]}"#,
        r#"{"size":0,"nodes":["00"]}"#,
        r#"{"size":2,"nodes":["zz00000000000000000000000000000000000000000000000000000000000000"]}"#,
        r#"{"size":281474976710657,"nodes":[]}"#,
    ] {
        assert!(serde_json::from_str::<Frontier>(bad).is_err(), "{bad}");
    }
    assert_eq!(Frontier::of_parts(MAX_TREE + 1, vec![[0; 32]; 2]), None);
}
