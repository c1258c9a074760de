//! Approval: a held call's request goes out as a [`Hold`]; a human's signed [`Statement`] comes back; only a
//! valid signature by an allowed key, over exactly this hold, becomes a [`Decision`].
//!
//! A statement is canonical JSON (RFC 8785), signed as `ssh-keygen -Y sign -n weir-approval` does. The agent
//! builds the statement that it expects from its own hold and compares the bytes, so a collector that alters
//! anything, or an approver who was shown something else, approves nothing.
//!
//! ```compile_fail,E0451
//! // A decision is made by checking a signature, and in no other way.
//! # use weir_core::approval::*;
//! fn forge(signed: SignedStatement, statement: Statement) -> Decision {
//!     Decision { approved: true, statement, signed, fingerprint: String::new() }
//! }
//! ```

mod signers;

use serde::{Deserialize, Serialize};
use ssh_key::{HashAlg, LineEnding, PublicKey, SshSig};

pub use signers::{AllowedSigners, SignersError};

use crate::ids::{ApprovalId, CallId, Origin};
use crate::mask::{Masked, Masker, secret_in_prose};
use crate::record::{Caller, Payload, Server};

/// The signature's namespace: a signature made for anything else is not an approval.
pub const NAMESPACE: &str = "weir-approval";
/// The least characters of a justification.
pub const MIN_JUSTIFICATION: usize = 15;
/// How far an approver's clock may be behind the agent's, microseconds.
pub const CLOCK_SKEW_US: u64 = 300_000_000;

/// What the agent submits.
pub type SubmittedHold = Hold<Masked<String>>;

/// A call that waits for a decision, as the approver sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold<T> {
    pub approval_id: ApprovalId,
    pub call_id: CallId,
    pub tenant: String,
    pub origin: Origin,
    pub host: String,
    /// A commitment to the exact bytes that will be forwarded, but for the request's id, which is another one when the
    /// client asks again: HMAC-SHA-256 with a salt that stays in the agent, as hex. A plain hash of a call could be
    /// guessed.
    pub call_digest: String,
    pub policy_digest: String,
    /// The rule that holds the call.
    pub rule: String,
    pub server: Server<T>,
    /// What is asked for there, masked: several MCP servers may share a name.
    pub target: T,
    pub tool: T,
    /// The masked arguments, and where they were masked.
    pub arguments: Payload<T>,
    pub requester: Caller<T>,
    pub created_us: u64,
    /// No decision after this: no answer is a refusal.
    pub expires_us: u64,
    /// 16 random bytes, hex: no statement fits two holds.
    pub nonce: String,
}

/// What an approver says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Approve,
    Refuse,
}

/// What an approver signs: the hold as it was shown, and the answer to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    #[serde(rename = "type")]
    pub kind: String,
    pub hold: Hold<String>,
    pub answer: Answer,
    pub justification: String,
    pub ticket: String,
    /// The principal of the allowed-signers file as which the approver signs.
    pub approver: String,
    pub issued_us: u64,
    /// Always 1: an approval serves one call.
    pub max_uses: u32,
}

impl Statement {
    /// The statement of an answer to `hold`.
    pub fn new(
        hold: Hold<String>,
        answer: Answer,
        approver: String,
        justification: String,
        issued_us: u64,
    ) -> Self {
        let (kind, ticket) = ("weir.approval/1".to_owned(), String::new());
        Self { kind, hold, answer, justification, ticket, approver, issued_us, max_uses: 1 }
    }

    /// What the approver wrote must hold nothing to mask: the statement is recorded to the letter, so that its
    /// signature can be checked again.
    pub fn check_for_secrets(&self) -> Result<(), DecisionError> {
        let fields =
            [("justification", &self.justification), ("ticket", &self.ticket), ("approver", &self.approver)];
        let found = fields.into_iter().find_map(|(field, text)| Some((field, secret_in_prose(text)?)));
        found.map_or(Ok(()), |(field, detector)| Err(DecisionError::Secret { field, detector }))
    }

    /// The bytes to sign.
    pub fn canonical(&self) -> Result<String, serde_json::Error> {
        serde_json_canonicalizer::to_string(self)
    }
}

/// A statement with its signature, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedStatement {
    /// The canonical statement, to the letter.
    pub statement: String,
    /// The signature (`-----BEGIN SSH SIGNATURE-----`).
    pub signature: String,
}

impl SignedStatement {
    /// The signature for the record, whatever it is worth: to the letter when it is an armoured signature and
    /// nothing else, which holds no words that a masker could find, but letters that may look like some.
    pub fn masked_signature(&self, masker: &Masker, limit: usize) -> Masked<String> {
        let armour = SshSig::from_pem(&self.signature).and_then(|signature| signature.to_pem(LineEnding::LF));
        let nothing_else = armour.is_ok_and(|armour| armour.trim_end() == self.signature.trim_end());
        match nothing_else && self.signature.len() <= limit {
            true => Masked::vouched_for(self.signature.clone()),
            false => masker.name(&self.signature, limit),
        }
    }
}

/// Why a signed statement decides nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecisionError {
    #[error("the statement cannot be read: {0}")]
    Malformed(String),
    #[error("the statement is about another call, or about what this call was not: {0} differs")]
    OtherCall(&'static str),
    #[error("the justification has fewer than {MIN_JUSTIFICATION} characters")]
    NoJustification,
    #[error("the {field} holds what looks like a secret ({detector}), and would be recorded")]
    Secret { field: &'static str, detector: &'static str },
    #[error("the statement was signed outside of the hold's time")]
    OutOfTime,
    #[error("no allowed signer has the key {0}")]
    UnknownKey(String),
    #[error("the key {key} is not one of {approver}'s")]
    NotTheApprovers { key: String, approver: String },
    #[error("the signature does not hold: {0}")]
    BadSignature(String),
}

/// A human's decision, its signature checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    approved: bool,
    statement: Statement,
    signed: SignedStatement,
    fingerprint: String,
}

/// What a decision's record quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    pub statement: Masked<String>,
    pub approver: Masked<String>,
    pub justification: Masked<String>,
    pub ticket: Masked<String>,
    pub signature: Masked<String>,
}

impl Decision {
    /// Checks a signed statement against the hold that the agent itself made. `now_us` is its wall clock.
    pub fn verify(
        hold: &SubmittedHold,
        signed: SignedStatement,
        signers: &AllowedSigners,
        now_us: u64,
    ) -> Result<Self, DecisionError> {
        let statement: Statement =
            serde_json::from_str(&signed.statement).map_err(|e| DecisionError::Malformed(e.to_string()))?;
        same_call(&statement, hold, &signed.statement)?;
        if statement.justification.trim().chars().count() < MIN_JUSTIFICATION {
            return Err(DecisionError::NoJustification);
        }
        statement.check_for_secrets()?;
        let issued = statement.issued_us;
        if issued.saturating_add(CLOCK_SKEW_US) < hold.created_us
            || issued > hold.expires_us
            || now_us > hold.expires_us
        {
            return Err(DecisionError::OutOfTime);
        }
        let bad = |e: ssh_key::Error| DecisionError::BadSignature(e.to_string());
        let signature = SshSig::from_pem(&signed.signature).map_err(bad)?;
        let key = PublicKey::from(signature.public_key().clone());
        key.verify(NAMESPACE, signed.statement.as_bytes(), &signature).map_err(bad)?;
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        if !signers.knows(&key) {
            return Err(DecisionError::UnknownKey(fingerprint));
        }
        if !signers.allows(&key, &statement.approver) {
            return Err(DecisionError::NotTheApprovers { key: fingerprint, approver: statement.approver });
        }
        Ok(Self { approved: statement.answer == Answer::Approve, statement, signed, fingerprint })
    }

    pub fn is_approval(&self) -> bool {
        self.approved
    }

    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    pub fn signed(&self) -> &SignedStatement {
        &self.signed
    }

    /// The statement and the approver's words for the record, all to the letter: the hold in the statement is the
    /// agent's own, masked before it was shown, and in the words there was nothing to mask.
    pub fn words(&self) -> Words {
        let vouched_for = |text: &str| Masked::vouched_for(text.to_owned());
        Words {
            statement: vouched_for(&self.signed.statement),
            approver: vouched_for(&self.statement.approver),
            justification: vouched_for(&self.statement.justification),
            ticket: vouched_for(&self.statement.ticket),
            // It is one, and what it signs is the statement.
            signature: vouched_for(&self.signed.signature),
        }
    }

    /// `SHA256:...` of the signing key.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// The statement must be, byte for byte, what an honest approver would have signed for this hold.
fn same_call(statement: &Statement, hold: &SubmittedHold, signed: &str) -> Result<(), DecisionError> {
    let malformed = |e: serde_json::Error| DecisionError::Malformed(e.to_string());
    let own = serde_json::to_value(hold).map_err(malformed)?;
    let theirs = serde_json::to_value(&statement.hold).map_err(malformed)?;
    if own != theirs {
        let fields = [
            "approval_id",
            "call_digest",
            "nonce",
            "arguments",
            "tool",
            "server",
            "target",
            "policy_digest",
            "requester",
        ];
        let differs = fields.into_iter().find(|field| own.get(field) != theirs.get(field));
        return Err(DecisionError::OtherCall(differs.unwrap_or("the hold")));
    }
    let expected = Statement { kind: "weir.approval/1".into(), max_uses: 1, ..statement.clone() };
    if expected.canonical().map_err(malformed)? != signed {
        return Err(DecisionError::OtherCall("the statement's form"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
