//! Keys: a seed or a key's text comes in, signatures and judgements of them go out. A key has a name, since what is
//! signed and who signs are said by name; a signing key is never shown.
//!
//! On paper a public key is what C2SP calls a vkey: `<name>+<key id, 8 hex digits>+<base64 of the algorithm's byte and the
//! key>`. The algorithm is in the key's id, so a signature of one algorithm never passes for another's, and further ones
//! have their place.

use std::fmt;
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine};
use ed25519_dalek::Signer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::EvidenceError;

/// Bytes of an Ed25519 seed, and of a public key.
pub const KEY_LEN: usize = 32;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_LEN: usize = 64;
/// The most bytes of a key's name.
pub const MAX_NAME: usize = 512;

/// What a signature is made by, and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// Ed25519 over a note's text: a log's own signature (C2SP signed-note, 0x01).
    Ed25519,
    /// Ed25519 over a time and a note's text: a witness's (C2SP cosignature/v1, 0x04).
    Cosignature,
}

impl Algorithm {
    fn byte(self) -> u8 {
        match self {
            Algorithm::Ed25519 => 1,
            Algorithm::Cosignature => 4,
        }
    }

    fn of_byte(byte: u8) -> Option<Self> {
        [Self::Ed25519, Self::Cosignature].into_iter().find(|algorithm| algorithm.byte() == byte)
    }
}

/// A key's name may stand in a note: something, without spaces, controls and `+`.
pub(super) fn is_name(name: &str) -> bool {
    let good = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(good)
}

/// A public key and its name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VerifyingKey {
    name: String,
    algorithm: Algorithm,
    key: ed25519_dalek::VerifyingKey,
}

impl VerifyingKey {
    /// The name under which it signs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it makes signatures by.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key itself.
    pub fn bytes(&self) -> &[u8; KEY_LEN] {
        self.key.as_bytes()
    }

    /// The same key under another name: an epoch's that goes on with the key of the one before.
    pub fn renamed(&self, name: &str) -> Result<Self, EvidenceError> {
        let name =
            is_name(name).then(|| name.to_owned()).ok_or(EvidenceError::Key("that is no key's name"))?;
        Ok(Self { name, ..self.clone() })
    }

    /// What signatures by this key are marked with.
    pub fn id(&self) -> u32 {
        let hash = Sha256::new()
            .chain_update(&self.name)
            .chain_update([b'\n', self.algorithm.byte()])
            .chain_update(self.bytes())
            .finalize();
        hash.iter().take(4).fold(0, |id, byte| id << 8 | u32::from(*byte))
    }

    /// Strict: of the many encodings that some verifiers take, the one that a signer makes.
    pub(super) fn is_signature(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
        self.key.verify_strict(message, &signature).is_ok()
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![self.algorithm.byte()];
        bytes.extend_from_slice(self.bytes());
        write!(f, "{}+{:08x}+{}", self.name, self.id(), BASE64_STANDARD.encode(bytes))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<VerifyingKey> for String {
    fn from(key: VerifyingKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for VerifyingKey {
    type Error = EvidenceError;

    fn try_from(text: String) -> Result<Self, EvidenceError> {
        text.parse()
    }
}

impl FromStr for VerifyingKey {
    type Err = EvidenceError;

    fn from_str(text: &str) -> Result<Self, EvidenceError> {
        let wrong = EvidenceError::Key;
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(bytes)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("it is not NAME+ID+KEY"));
        };
        let bytes = BASE64_STANDARD.decode(bytes).map_err(|_| wrong("it does not end in base64"))?;
        let Some((algorithm, bytes)) = bytes.split_first() else { return Err(wrong("it is empty")) };
        let algorithm = Algorithm::of_byte(*algorithm).ok_or(wrong("its algorithm is unknown"))?;
        let bytes: &[u8; KEY_LEN] = bytes.try_into().map_err(|_| wrong("its length is not Ed25519's"))?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes)
            .map_err(|_| wrong("it is no point of the curve"))?;
        if !is_name(name) {
            return Err(wrong("its name is empty, too long, or has spaces"));
        }
        let key = Self { name: name.to_owned(), algorithm, key };
        // Ids in capitals would make two texts of one key.
        if id != format!("{:08x}", key.id()) {
            return Err(wrong("its id is not that of its name and bytes: is a part missing?"));
        }
        Ok(key)
    }
}

/// A private key. Its `Debug` says nothing.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// From 32 random bytes.
    pub fn from_seed(seed: &[u8; KEY_LEN]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Its public half as a log's key of this name.
    pub fn verifying(&self, name: &str) -> Result<VerifyingKey, EvidenceError> {
        self.public(name, Algorithm::Ed25519)
    }

    /// Its public half as a witness's key of this name.
    pub fn cosigning(&self, name: &str) -> Result<VerifyingKey, EvidenceError> {
        self.public(name, Algorithm::Cosignature)
    }

    fn public(&self, name: &str, algorithm: Algorithm) -> Result<VerifyingKey, EvidenceError> {
        let name =
            is_name(name).then(|| name.to_owned()).ok_or(EvidenceError::Key("that is no key's name"))?;
        Ok(VerifyingKey { name, algorithm, key: self.0.verifying_key() })
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> VerifyingKey {
        SigningKey::from_seed(&[7; 32]).verifying("acme/host-1/log/1").unwrap()
    }

    #[test]
    fn a_key_reads_back_from_its_text_and_no_other_text_is_one() {
        let text = key().to_string();
        assert_eq!(text.parse::<VerifyingKey>().unwrap(), key());
        let (head, tail) = text.split_at(text.len() - 2);
        for bad in [
            String::new(),
            "acme".into(),
            head.to_owned(),
            format!("other{text}"),
            text.to_uppercase(),
            format!("{head}{}", tail.chars().rev().collect::<String>()),
            format!("{text}\n"),
        ] {
            assert!(bad.parse::<VerifyingKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_has_another_id_by_its_name_and_by_what_it_signs() {
        let signing = SigningKey::from_seed(&[7; 32]);
        assert_ne!(key().id(), signing.verifying("other").unwrap().id());
        assert_ne!(key().id(), signing.cosigning(key().name()).unwrap().id());
        assert_eq!(key().renamed("other").unwrap(), signing.verifying("other").unwrap());
    }

    #[test]
    fn names_that_cannot_stand_in_a_note_are_refused_and_no_key_is_shown() {
        let signing = SigningKey::from_seed(&[7; 32]);
        for bad in ["", "two words", "a+b", "line\n", "\u{a0}", &"x".repeat(MAX_NAME + 1)] {
            assert!(signing.verifying(bad).is_err() && key().renamed(bad).is_err(), "{bad:?}");
        }
        assert_eq!(format!("{signing:?}"), "SigningKey(..)");
    }
}
