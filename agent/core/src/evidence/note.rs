//! Signed notes (C2SP signed-note, and cosignature/v1 over one): a text and signatures come in, a note goes out, and back.
//! A text is believed for the keys that its reader names, and for no other.
//!
//! ```text
//! text, lines that end in \n
//!
//! — name base64(key id, 4 bytes, big-endian | signature)
//! ```

use std::fmt;
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::EvidenceError;
use super::key::{Algorithm, SIGNATURE_LEN, SigningKey, VerifyingKey, is_name};

/// The most bytes of a note.
pub const MAX_NOTE: usize = 64 << 10;
/// The most signatures of one.
pub const MAX_SIGNATURES: usize = 16;

const SIGNATURES: &str = "\n\u{2014} ";
const ID_LEN: usize = 4;
const TIME_LEN: usize = 8;

/// A text with signatures, of which none need be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    name: String,
    id: u32,
    bytes: Vec<u8>,
}

impl SignedNote {
    /// A text without signatures. It must end in a line's end and have no other control characters.
    pub fn new(text: String) -> Result<Self, EvidenceError> {
        let wrong = EvidenceError::Note;
        if text.len() > MAX_NOTE {
            return Err(wrong("it is too long"));
        }
        if !text.ends_with('\n') || text.chars().any(|c| c.is_control() && c != '\n') {
            return Err(wrong("its text is not lines of plain text"));
        }
        // The signatures begin at the last empty line.
        if text.contains(SIGNATURES) {
            return Err(wrong("its text has a line like a signature's"));
        }
        Ok(Self { text, signatures: Vec::new() })
    }

    /// What was signed; read it after [`SignedNote::verify`].
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Adds a log's signature under this name.
    pub fn sign(&mut self, key: &SigningKey, name: &str) -> Result<(), EvidenceError> {
        let public = key.verifying(name)?;
        let bytes = key.sign(self.text.as_bytes()).to_vec();
        self.add(&public, bytes)
    }

    /// Adds a witness's signature: that at `time_s`, seconds since 1970, it had seen this and nothing against it.
    pub fn cosign(&mut self, key: &SigningKey, name: &str, time_s: u64) -> Result<(), EvidenceError> {
        let public = key.cosigning(name)?;
        let mut bytes = time_s.to_be_bytes().to_vec();
        bytes.extend_from_slice(&key.sign(cosigned_message(&self.text, time_s).as_bytes()));
        self.add(&public, bytes)
    }

    /// Adds the signatures of another note of the same text.
    pub fn add_signatures(&mut self, other: &Self) -> Result<(), EvidenceError> {
        if other.text != self.text {
            return Err(EvidenceError::Note("it is of another text"));
        }
        for signature in &other.signatures {
            if !self.signatures.contains(signature) {
                self.push(signature.clone())?;
            }
        }
        Ok(())
    }

    fn add(&mut self, key: &VerifyingKey, bytes: Vec<u8>) -> Result<(), EvidenceError> {
        self.push(Signature { name: key.name().to_owned(), id: key.id(), bytes })
    }

    fn push(&mut self, signature: Signature) -> Result<(), EvidenceError> {
        if self.signatures.len() == MAX_SIGNATURES {
            return Err(EvidenceError::Note("it has too many signatures"));
        }
        self.signatures.push(signature);
        Ok(())
    }

    /// Whether this log's key has signed the text.
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), EvidenceError> {
        let signature = self.by(key, Algorithm::Ed25519)?;
        let good = key.is_signature(self.text.as_bytes(), &signature.bytes);
        good.then_some(()).ok_or_else(|| EvidenceError::BadSignature(key.name().to_owned()))
    }

    /// When this witness cosigned the text, in seconds since 1970.
    pub fn cosigned(&self, key: &VerifyingKey) -> Result<u64, EvidenceError> {
        let signature = self.by(key, Algorithm::Cosignature)?;
        let bad = || EvidenceError::BadSignature(key.name().to_owned());
        let (time, bytes) = signature.bytes.split_first_chunk::<TIME_LEN>().ok_or_else(bad)?;
        let time_s = u64::from_be_bytes(*time);
        let good = key.is_signature(cosigned_message(&self.text, time_s).as_bytes(), bytes);
        good.then_some(time_s).ok_or_else(bad)
    }

    /// When its witnesses say to have signed it, in seconds since 1970, whoever they are; nothing is checked here.
    pub fn said_cosigned(&self) -> impl Iterator<Item = u64> {
        let times = self.signatures.iter().filter(|one| one.bytes.len() == TIME_LEN + SIGNATURE_LEN);
        times.filter_map(|one| one.bytes.first_chunk::<TIME_LEN>()).map(|time| u64::from_be_bytes(*time))
    }

    fn by(&self, key: &VerifyingKey, algorithm: Algorithm) -> Result<&Signature, EvidenceError> {
        let unsigned = || EvidenceError::Unsigned(key.name().to_owned());
        let is_by = |signature: &&Signature| signature.name == key.name() && signature.id == key.id();
        let found = self.signatures.iter().find(is_by).ok_or_else(unsigned)?;
        (key.algorithm() == algorithm).then_some(found).ok_or_else(unsigned)
    }
}

/// What a witness signs.
fn cosigned_message(text: &str, time_s: u64) -> String {
    format!("cosignature/v1\ntime {time_s}\n{text}")
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for Signature { name, id, bytes } in &self.signatures {
            let whole = [&id.to_be_bytes()[..], bytes].concat();
            writeln!(f, "\u{2014} {name} {}", BASE64_STANDARD.encode(whole))?;
        }
        Ok(())
    }
}

impl FromStr for SignedNote {
    type Err = EvidenceError;

    fn from_str(note: &str) -> Result<Self, EvidenceError> {
        let wrong = EvidenceError::Note;
        if note.len() > MAX_NOTE {
            return Err(wrong("it is too long"));
        }
        let at = note.find(SIGNATURES).ok_or(wrong("it has no signature"))?;
        let (text, signatures) = note.split_at(at);
        let mut out = Self::new(text.to_owned())?;
        let lines = signatures.strip_prefix('\n').and_then(|lines| lines.strip_suffix('\n'));
        for line in lines.ok_or(wrong("its end is missing"))?.split('\n') {
            let parts = line.strip_prefix("\u{2014} ").and_then(|line| line.split_once(' '));
            let (name, bytes) = parts.ok_or(wrong("a signature is not a name and base64"))?;
            let bytes = BASE64_STANDARD.decode(bytes).map_err(|_| wrong("a signature is not base64"))?;
            let Some((id, bytes)) = bytes.split_first_chunk::<ID_LEN>() else {
                return Err(wrong("a signature has no key id"));
            };
            if !is_name(name) || bytes.is_empty() || bytes.len() > 8 * SIGNATURE_LEN {
                return Err(wrong("a signature cannot be one"));
            }
            out.push(Signature {
                name: name.to_owned(),
                id: u32::from_be_bytes(*id),
                bytes: bytes.to_vec(),
            })?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "acme/host-1/log/1";

    fn signed() -> (SignedNote, SigningKey, SigningKey) {
        let (log, witness) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let mut note = SignedNote::new(format!("{NAME}\n3\nroot\n")).unwrap();
        note.sign(&log, NAME).unwrap();
        note.cosign(&witness, "collector", 1_790_000_000).unwrap();
        (note, log, witness)
    }

    #[test]
    fn a_note_reads_back_and_is_believed_for_its_own_keys_alone() {
        let (note, log, witness) = signed();
        let again: SignedNote = note.to_string().parse().unwrap();
        assert_eq!(again, note);
        again.verify(&log.verifying(NAME).unwrap()).unwrap();
        assert_eq!(again.cosigned(&witness.cosigning("collector").unwrap()), Ok(1_790_000_000));
        let unsigned = |key: &VerifyingKey| EvidenceError::Unsigned(key.name().to_owned());
        for key in [witness.verifying(NAME).unwrap(), log.verifying("other").unwrap()] {
            assert_eq!(again.verify(&key), Err(unsigned(&key)));
        }
        let key = witness.cosigning("collector").unwrap();
        assert_eq!(again.verify(&key), Err(unsigned(&key)));
        let key = log.verifying(NAME).unwrap();
        assert_eq!(again.cosigned(&key), Err(unsigned(&key)));
    }

    #[test]
    fn another_implementation_believes_it_too() {
        use signed_note::{Note, StandardVerifier, VerifierList};
        let (note, log, _) = signed();
        let theirs = Note::from_bytes(note.to_string().as_bytes()).unwrap();
        let key = StandardVerifier::new(&log.verifying(NAME).unwrap().to_string()).unwrap();
        let (known, unknown) = theirs.verify(&VerifierList::new(vec![Box::new(key)])).unwrap();
        assert_eq!((known.len(), unknown.len()), (1, 1));
    }

    #[test]
    fn no_byte_of_a_note_can_be_changed() {
        let (note, log, witness) = signed();
        let (log, witness) = (log.verifying(NAME).unwrap(), witness.cosigning("collector").unwrap());
        let text = note.to_string();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            let both = changed
                .parse::<SignedNote>()
                .is_ok_and(|n| n.verify(&log).is_ok() && n.cosigned(&witness).is_ok());
            assert!(!both, "byte {at}");
        }
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let (note, log, _) = signed();
        let text = note.to_string();
        for bad in ["", "text\n", "text\n\n", "\u{2014} a b\n", text.trim_end(), &"x\n".repeat(MAX_NOTE)] {
            assert!(bad.parse::<SignedNote>().is_err(), "{bad:.20}");
        }
        for bad in ["no end", "tab\t\n", "a\n\n\u{2014} like a signature\n"] {
            assert!(SignedNote::new(bad.to_owned()).is_err(), "{bad}");
        }
        let mut full = note;
        let added = (0..MAX_SIGNATURES).map(|_| full.sign(&log, NAME)).filter(Result::is_ok).count();
        assert_eq!(added, MAX_SIGNATURES - 2);
    }

    #[test]
    fn signatures_of_the_same_text_come_together() {
        let (note, log, _) = signed();
        let mut bare = SignedNote::new(note.text().to_owned()).unwrap();
        bare.sign(&log, NAME).unwrap();
        bare.add_signatures(&note).unwrap();
        assert_eq!(bare, note);
        let other = SignedNote::new("other\n".to_owned()).unwrap();
        assert!(bare.add_signatures(&other).is_err());
    }
}
