//! Masking of what is passed on. As in the record, but so that whoever reads it finds the types that it expects: a
//! string becomes a string, a number 0, and one secret has one stand-in wherever it is in the text. What stands for a
//! secret is the same each time, and the same as in the record.

use super::json::{PassOn, Purpose, mask_for};
use super::{Masker, Span};

/// So many secrets that are known by their names alone are looked for in the rest of a text.
const MAX_NAMED: usize = 256;

/// A JSON text that was masked to be passed on.
pub struct PassedOn {
    pub text: String,
    /// What was masked; empty when nothing was, and then the text is as it was.
    pub spans: Vec<Span>,
    /// Each string that became another one, in clear, with what became of it.
    pub replaced: Vec<(String, String)>,
}

impl Masker {
    /// Masks JSON that is passed on. The members of the outermost object that `keeps` names stay to the letter. `None`
    /// for what is no JSON.
    pub fn pass_on(&self, text: &str, keeps: &[&str]) -> Option<PassedOn> {
        if serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
            return None;
        }
        if !matches!(text.trim_ascii_start().bytes().next(), Some(b'{' | b'[' | b'"')) {
            return Some(PassedOn { text: text.to_owned(), spans: Vec::new(), replaced: Vec::new() });
        }
        let with =
            |named: &[(String, String)]| mask_for(self, text, &Purpose::PassOn(&PassOn { keeps, named }), 0);
        let mut outcome = with(&[])?;
        if !outcome.named.is_empty() {
            let mut named = std::mem::take(&mut outcome.named);
            // A secret that holds another one is looked for first.
            named.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
            named.dedup();
            named.truncate(MAX_NAMED);
            outcome = with(&named)?;
        }
        Some(PassedOn { text: outcome.text, spans: outcome.spans, replaced: outcome.replaced })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::masker;

    fn passed(text: &str) -> String {
        masker().pass_on(text, &[]).unwrap().text
    }

    #[test]
    fn a_structured_result_and_its_text_copy_agree() {
        let text = r#"{"content":[{"type":"text","text":"{\"token\": \"abc123\", \"port\":5}"},{"type":"text","text":"use abc123 now"}],"structuredContent":{"token":"abc123","port":5}}"#;
        let out = passed(text);
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        let token = value["structuredContent"]["token"].as_str().unwrap();
        assert!(token.starts_with("[masked:secret-name:p0:") && !out.contains("abc123"), "{out}");
        let copy: serde_json::Value =
            serde_json::from_str(value["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!(copy, value["structuredContent"]);
        assert_eq!(value["content"][1]["text"], format!("use {token} now"));
        assert_eq!(passed(text), out, "what stands for a secret is stable");
        assert_eq!(passed(&out), out, "masking twice is masking once");
    }

    #[test]
    fn values_keep_their_types() {
        let text = r#"{"pin_token": 1234, "password":-1.5e3,"secret":true,"apiKey":null,"cookie":"x","n":7}"#;
        let out = passed(text);
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(value["pin_token"].is_i64() && value["password"].is_number() && value["cookie"].is_string());
        assert!(
            out.starts_with(
                r#"{"pin_token": 0, "password":0,"secret":true,"apiKey":null,"cookie":"[masked:"#
            )
        );
        assert!(out.ends_with(r#","n":7}"#), "{out}");
    }

    #[test]
    fn what_is_to_stay_stays_to_the_letter() {
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln";
        let text = format!(r#"{{"nextCursor":"{jwt}","a":{{"nextCursor":"{jwt}"}},"b": [1 , 2]}}"#);
        let out = masker().pass_on(&text, &["nextCursor"]).unwrap();
        assert!(out.text.starts_with(&format!(r#"{{"nextCursor":"{jwt}","a":{{"nextCursor":"[masked:jwt:"#)));
        assert!(out.text.ends_with(r#""b": [1 , 2]}"#), "{}", out.text);
        assert_eq!((out.spans.len(), out.spans[0].pointer.as_str()), (1, "/a/nextCursor"));
        assert_eq!(out.replaced.len(), 1);
        for text in [r#"{"a": 1e400, "b":"\u0041"}"#, "7", "\"x\"", "[ ]"] {
            let out = masker().pass_on(text, &[]).unwrap();
            assert!(out.text == text && out.spans.is_empty(), "{text}");
        }
        assert!(masker().pass_on("{", &[]).is_none() && masker().pass_on("words", &[]).is_none());
    }

    #[test]
    fn the_record_and_what_is_passed_on_have_the_same_stand_ins() {
        let text = r#"{"note":"ghp_abcdefghijklmnopqrstuvwxyz0123456789","password":"hunter2","json":"{\"password\":\"hunter2\"}"}"#;
        assert_eq!(passed(text), masker().json(text).0.as_str());
    }
}
