use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};

use super::*;
use crate::mask::{MaskKey, Masker};
use crate::record::Proof;

const NOW: u64 = 1_790_000_000_000_000;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::new(KeypairData::Ed25519(Ed25519Keypair::from_seed(&[seed; 32])), "").unwrap()
}

fn signers() -> AllowedSigners {
    AllowedSigners::parse(&format!("alice {}", key(1).public_key().to_openssh().unwrap())).unwrap()
}

fn hold() -> SubmittedHold {
    let masker = Masker::new(MaskKey::new([3; 32]));
    let text = |s: &str| masker.text(s);
    Hold {
        approval_id: ApprovalId::from_random([1; 16]),
        call_id: CallId::from_random([2; 16]),
        tenant: "t".into(),
        origin: Origin::from_random([3; 16]),
        host: "h".into(),
        call_digest: "d".into(),
        policy_digest: "p".into(),
        rule: "deploys".into(),
        server: Server {
            address: "127.0.0.1".into(),
            port: 1,
            name: text("localhost"),
            proof: Proof::Certificate,
        },
        target: text("/mcp"),
        tool: text("deploy"),
        arguments: Payload { text: text("{}"), bytes: 2, ..Payload::default() },
        requester: Caller {
            start_time: Some(2),
            executable: text("/usr/bin/node"),
            command_line: text("node a"),
            cgroup: text("/job"),
            seen_alive: true,
            ..Caller::unseen(1, (3, 3), text("node"))
        },
        created_us: NOW,
        expires_us: NOW + 60_000_000,
        nonce: "n".into(),
    }
}

/// What an approver sees.
fn shown() -> Hold<String> {
    serde_json::from_value(serde_json::to_value(hold()).unwrap()).unwrap()
}

fn statement() -> Statement {
    Statement::new(shown(), Answer::Approve, "alice".into(), "a release as planned".into(), NOW + 1)
}

fn sign(statement: &Statement, namespace: &str, key: &PrivateKey) -> SignedStatement {
    let statement = statement.canonical().unwrap();
    let signature = key.sign(namespace, HashAlg::Sha512, statement.as_bytes()).unwrap();
    SignedStatement { statement, signature: signature.to_pem(LineEnding::LF).unwrap() }
}

fn verify(signed: SignedStatement) -> Result<Decision, DecisionError> {
    Decision::verify(&hold(), signed, &signers(), NOW + 2)
}

#[test]
fn an_allowed_key_decides_in_both_directions() {
    let approved = verify(sign(&statement(), NAMESPACE, &key(1))).unwrap();
    assert!(approved.is_approval() && approved.fingerprint().starts_with("SHA256:"));
    let no = Statement { answer: Answer::Refuse, ..statement() };
    assert!(!verify(sign(&no, NAMESPACE, &key(1))).unwrap().is_approval());
}

#[test]
fn another_key_or_another_name_decides_nothing() {
    assert!(matches!(verify(sign(&statement(), NAMESPACE, &key(2))), Err(DecisionError::UnknownKey(_))));
    let mallory = Statement { approver: "bob".into(), ..statement() };
    assert!(matches!(verify(sign(&mallory, NAMESPACE, &key(1))), Err(DecisionError::NotTheApprovers { .. })));
}

#[test]
fn a_signature_for_another_purpose_or_text_decides_nothing() {
    assert!(matches!(verify(sign(&statement(), "git", &key(1))), Err(DecisionError::BadSignature(_))));
    let refused = sign(&Statement { answer: Answer::Refuse, ..statement() }, NAMESPACE, &key(1));
    let swapped = SignedStatement { statement: statement().canonical().unwrap(), ..refused };
    assert!(matches!(verify(swapped), Err(DecisionError::BadSignature(_))));
    let garbage = SignedStatement { statement: statement().canonical().unwrap(), signature: "x".into() };
    assert!(matches!(verify(garbage), Err(DecisionError::BadSignature(_))));
}

#[test]
fn any_change_of_what_was_shown_voids_the_statement() {
    let mut other = statement();
    other.hold.call_digest = "e".into();
    assert_eq!(verify(sign(&other, NAMESPACE, &key(1))), Err(DecisionError::OtherCall("call_digest")));
    let mut elsewhere = statement();
    elsewhere.hold.target = "/staging".into();
    assert_eq!(verify(sign(&elsewhere, NAMESPACE, &key(1))), Err(DecisionError::OtherCall("target")));
    let mut other = statement();
    other.hold.arguments.text = "{\"force\":true}".into();
    assert_eq!(verify(sign(&other, NAMESPACE, &key(1))), Err(DecisionError::OtherCall("arguments")));
    let reusable = Statement { max_uses: 9, ..statement() };
    assert_eq!(
        verify(sign(&reusable, NAMESPACE, &key(1))),
        Err(DecisionError::OtherCall("the statement's form"))
    );
}

#[test]
fn a_decision_needs_a_reason_and_comes_in_time() {
    let terse = Statement { justification: "ok               ".into(), ..statement() };
    assert_eq!(verify(sign(&terse, NAMESPACE, &key(1))), Err(DecisionError::NoJustification));
    for issued_us in [NOW - CLOCK_SKEW_US - 1, NOW + 60_000_001] {
        let stale = Statement { issued_us, ..statement() };
        assert_eq!(verify(sign(&stale, NAMESPACE, &key(1))), Err(DecisionError::OutOfTime));
    }
    let late =
        Decision::verify(&hold(), sign(&statement(), NAMESPACE, &key(1)), &signers(), NOW + 60_000_001);
    assert_eq!(late, Err(DecisionError::OutOfTime));
}

#[test]
fn a_statement_is_recorded_to_the_letter_even_if_it_looks_like_a_secret_is_in_its_json() {
    // Across two strings, "https://" and "@" look like a password in an address.
    let masker = Masker::new(MaskKey::new([3; 32]));
    let arguments = masker.json(r#"{"url":"https://eu.example.test","owner":"bob@example.test"}"#).0;
    let hold = SubmittedHold { arguments: Payload { text: arguments, ..hold().arguments }, ..hold() };
    let shown = serde_json::from_value(serde_json::to_value(&hold).unwrap()).unwrap();
    let statement = Statement { hold: shown, ..statement() };
    let signed = sign(&statement, NAMESPACE, &key(1));
    assert_ne!(masker.json(&signed.statement).0.as_str(), signed.statement);
    let decision = Decision::verify(&hold, signed.clone(), &signers(), NOW + 2).unwrap();
    assert_eq!(decision.words().statement.as_str(), signed.statement);
    assert_eq!(decision.words().justification.as_str(), "a release as planned");
}

#[test]
fn a_secret_in_the_approvers_words_decides_nothing() {
    let words = Statement { justification: "with password=correct-horse as agreed".into(), ..statement() };
    let refused = verify(sign(&words, NAMESPACE, &key(1))).unwrap_err();
    assert!(refused.to_string().starts_with("the justification holds"), "{refused}");
    let ticket = Statement { ticket: "AKIAIOSFODNN7EXAMPLE".into(), ..statement() };
    assert!(verify(sign(&ticket, NAMESPACE, &key(1))).unwrap_err().to_string().starts_with("the ticket"));
}

#[test]
fn a_signature_whose_letters_look_like_a_secret_is_recorded_to_the_letter() {
    // Its last letters are "pwD", and what follows them on the next line is long enough for a password.
    let signature = "-----BEGIN SSH SIGNATURE-----\n\
        U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgkK2rG22DMxT+RyGb9Jeja4s+F0\n\
        sFk89a2V8TxDXitwgAAAANd2Vpci1hcHByb3ZhbAAAAAAAAAAGc2hhNTEyAAAAUwAAAAtz\n\
        c2gtZWQyNTUxOQAAAED15UXH+C+/26IblvZUgP/E0vKVmQquVp/QirGMxrCLsFxkr7fy1Z\n\
        IgfyLeeCCsY9wgnYuhtbVbclMNfnunepwD\n\
        -----END SSH SIGNATURE-----\n";
    let masker = Masker::new(MaskKey::new([3; 32]));
    assert_ne!(masker.text(signature).as_str(), signature, "the coincidence that this is about");
    let recorded = |signature: String| {
        SignedStatement { statement: String::new(), signature }.masked_signature(&masker, 4096)
    };
    assert_eq!(recorded(signature.to_owned()).as_str(), signature);
    for other in
        [format!("password: hunter2hunter2\n{signature}"), format!("{signature}password: hunter2hunter2")]
    {
        assert!(!recorded(other).as_str().contains("hunter2"));
    }
    assert!(!recorded("password: hunter2hunter2".into()).as_str().contains("hunter2"));
}
