//! Identifiers. Random bytes come in (from the caller: this crate has no source of randomness), newtypes
//! that cannot be confused with one another go out. On paper each is lower-case hex.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes the id from 16 random bytes.
            pub fn from_random(bytes: [u8; 16]) -> Self {
                Self(hex(&bytes))
            }

            /// The id as 32 hex digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() == 32 && text.bytes().all(lower_hex) { Ok(Self(text)) } else { Err(IdError(text)) }
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// One log: a spool folder's life. `(Origin, Seq)` names an event for ever.
    Origin
);
id!(
    /// One run of an agent over a log.
    Boot
);
id!(
    /// One intercepted connection.
    FlowId
);
id!(
    /// One MCP call: joins its intent, decision, messages and outcome.
    CallId
);
id!(
    /// One request of a server's: joins it with the client's answer, and with what either says of it.
    MessageId
);
id!(
    /// One held call's request for a human's decision.
    ApprovalId
);

/// A text that is not 32 lower-case hex digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an id: expected 32 lower-case hex digits")]
pub struct IdError(String);

/// Lower-case hex of any bytes.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(digit(byte >> 4));
        out.push(digit(byte & 15));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_refuse_other_text() {
        let id = CallId::from_random([0xab; 16]);
        assert_eq!(id.to_string().parse::<CallId>(), Ok(id.clone()));
        for bad in ["", "abc", &"A".repeat(32), &"g".repeat(32), &"a".repeat(33)] {
            assert!(bad.parse::<CallId>().is_err(), "{bad:?}");
        }
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    }
}
