//! The writer against the general implementation: the same bytes, whatever is in the value.

use super::*;
use serde_json::{Value, json};

fn same(value: &impl Serialize) {
    let general = serde_json_canonicalizer::to_vec(value);
    match (to_vec(value), general) {
        (Ok(own), Ok(general)) => {
            assert_eq!(String::from_utf8(own).unwrap(), String::from_utf8(general).unwrap());
        }
        (own, general) => assert_eq!(own.is_err(), general.is_err()),
    }
}

/// Whether the bytes are this module's own, and not the general implementation's.
fn is_usual(value: &impl Serialize) -> bool {
    let mut writer = Writer { out: Vec::new(), spare: Vec::new(), members: Vec::new() };
    value.serialize(&mut writer).is_ok()
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Unit,
    New(u8),
    Struct { b: u8, a: Option<u8> },
}

#[derive(Serialize)]
struct All {
    z: Vec<Kind>,
    a: (u8, char, bool),
    ab: [&'static str; 2],
    #[serde(flatten)]
    rest: std::collections::BTreeMap<String, i64>,
}

#[test]
fn the_bytes_are_those_of_the_general_implementation() {
    let text = "\u{0}\u{1f}\u{8}\t\n\u{c}\r\"\\/\u{7f}\u{e9}\u{2028}\u{1f600}";
    let all = All {
        z: vec![Kind::Unit, Kind::New(7), Kind::Struct { b: 1, a: None }],
        a: (255, '\u{1}', true),
        ab: ["", text],
        rest: [("m".into(), -3), ("a_b".into(), (1 << 53) - 1)].into(),
    };
    assert!(is_usual(&all));
    same(&all);
    for usual in [json!({}), json!([]), json!({"a": [], "": {"a": 1}, "aa": null, "a0": false, "A": -0})] {
        assert!(is_usual(&usual), "{usual}");
        same(&usual);
    }
    for unusual in
        [json!(1.5), json!(1u64 << 53), json!({"\u{e9}": 1, "z": 2}), json!({"a b": 1}), json!(-1e300)]
    {
        assert!(!is_usual(&unusual), "{unusual}");
        same(&unusual);
    }
}

#[test]
fn whatever_is_in_what_its_members_are_in_order() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..2000 {
        let value = random(&mut state, 5);
        assert!(is_usual(&value));
        same(&value);
    }
}

#[test]
fn a_byte_that_is_written_otherwise_is_found_wherever_it_stands() {
    for length in 0..100 {
        let plain = "x".repeat(length);
        same(&plain);
        for at in 0..length {
            for special in ["\"", "\\", "\u{0}", "\u{1f}", " ", "\u{7f}", "\u{e9}", "\u{ff}"] {
                let mut text = plain.clone();
                text.replace_range(at..=at, special);
                same(&text);
            }
        }
    }
}

fn random(state: &mut u64, depth: u32) -> Value {
    let mut next = |below: u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % below
    };
    let (kind, length) = (next(if depth == 0 { 3 } else { 5 }), next(6));
    match kind {
        0 => json!(next(1 << 31)),
        1 => json!(format!("{}\"\n", next(1000))),
        2 => json!(next(2) == 0),
        3 => Value::Array((0..length).map(|_| random(state, depth - 1)).collect()),
        _ => {
            let names: Vec<String> = (0..length).map(|_| format!("{:x}", next(300))).collect();
            Value::Object(names.into_iter().map(|name| (name, random(state, depth - 1))).collect())
        }
    }
}

#[test]
fn members_in_any_order_are_put_into_theirs_behind_what_is_there() {
    let names = ["a", "b", "c", "d"];
    let mut scribe = Scribe::default();
    // Each order of four members is a number below 4^4 with four different digits.
    for order in 0..256 {
        let at = [order % 4, order / 4 % 4, order / 16 % 4, order / 64];
        if (0..4).any(|n| !at.contains(&n)) {
            continue;
        }
        let members = at.map(|n| (names[n], "x".repeat(n * 3)));
        let value =
            Value::Object(members.map(|(name, text)| (name.to_owned(), text.into())).into_iter().collect());
        let mut out = b"before,".to_vec();
        scribe.append(&json!([value, 7]), &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"before,[{"a":"","b":"xxx","c":"xxxxxx","d":"xxxxxxxxx"},7]"#
        );
        let mut unusual = b"before,".to_vec();
        scribe.append(&json!([value, 1.5]), &mut unusual).unwrap();
        assert!(unusual.starts_with(br#"before,[{"a":"#) && unusual.ends_with(b",1.5]"));
    }
}
