//! What each segment carries over of all before it, so that those can be trimmed: a carry frame's bytes come in and go
//! out. It is for the agent itself, and proves nothing.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use weir_core::evidence::key::VerifyingKey;
use weir_core::ids::CallId;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Carry {
    /// The calls whose intent is in the log, and whose outcome is not.
    pub open: BTreeSet<CallId>,
    /// The key of the segment's epoch; none in a carry of before there were trees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<VerifyingKey>,
    /// By what statement the key before named this one, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
}

/// Before there were keys, a carry was the list of open calls alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Paper {
    Now(Box<Carry>),
    Before(BTreeSet<CallId>),
}

impl Carry {
    /// Reads a carry frame.
    pub fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(match serde_json::from_slice(bytes)? {
            Paper::Now(carry) => *carry,
            Paper::Before(open) => Self { open, ..Self::default() },
        })
    }

    /// A carry frame's bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // Strings alone: there is nothing in it that has no JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::MAX_OPEN_RECORDS;
    use weir_core::evidence::key::SigningKey;
    use weir_core::segment::MAX_FRAME;

    #[test]
    fn a_carry_reads_back_and_the_largest_fits_a_frame() {
        let open = (0..MAX_OPEN_RECORDS as u128).map(|n| CallId::from_random(n.to_be_bytes())).collect();
        let key = SigningKey::from_seed(&[1; 32]).verifying("t/h/o/1").unwrap();
        let carry = Carry { open, key: Some(key), rotation: Some("r".repeat(2000)) };
        let bytes = carry.to_bytes();
        assert!(bytes.len() < MAX_FRAME / 4, "{}", bytes.len());
        assert_eq!(Carry::read(&bytes).unwrap(), carry);
    }

    #[test]
    fn a_carry_of_before_there_were_keys_is_a_list_of_calls() {
        let call = CallId::from_random([7; 16]);
        let read = Carry::read(format!("[\"{call}\"]").as_bytes()).unwrap();
        assert_eq!(read, Carry { open: [call].into(), ..Carry::default() });
        assert!(Carry::read(b"{").is_err() && Carry::read(b"[1]").is_err());
    }
}
