//! Digests of tool definitions: the result of a `tools/list` comes in, each tool's name goes out with SHA-256 over its
//! definition in canonical form (RFC 8785), so that a definition that was only written anew is the same one.

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::ids::hex;

/// The most tools of one result that are looked at.
pub const MAX_TOOLS: usize = 1024;

/// The tools of a result, each by its name; those without one are left out.
pub fn digests(result: &str) -> Vec<(String, String)> {
    #[derive(Deserialize)]
    struct Listed<'a> {
        #[serde(borrow, default)]
        tools: Vec<&'a RawValue>,
    }
    let Ok(listed) = serde_json::from_str::<Listed>(result) else { return Vec::new() };
    listed.tools.into_iter().take(MAX_TOOLS).filter_map(|raw| digest(raw.get())).collect()
}

fn digest(definition: &str) -> Option<(String, String)> {
    let value: serde_json::Value = serde_json::from_str(definition).ok()?;
    let name = value.get("name")?.as_str()?.to_owned();
    let canonical = serde_json_canonicalizer::to_vec(&value).ok()?;
    Some((name, hex(&Sha256::digest(canonical))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_the_same_however_it_is_written() {
        let one = digests(r#"{"tools":[{"name":"a","inputSchema":{"type":"object","x":1.0}}]}"#);
        let again =
            digests(r#"{"tools":[{"inputSchema":{"x":1,"type":"object"}, "name":"\u0061"}],"ttl":1}"#);
        assert!(one == again && one.len() == 1 && one[0].0 == "a" && one[0].1.len() == 64, "{one:?}");
        let other =
            digests(r#"{"tools":[{"name":"a","description":"d","inputSchema":{"type":"object","x":1}}]}"#);
        assert_ne!(one, other);
    }

    #[test]
    fn what_is_no_list_has_no_tools() {
        for result in ["null", "{}", r#"{"tools":7}"#, r#"{"tools":[7,{},{"name":1}]}"#] {
            assert_eq!(digests(result), [], "{result}");
        }
        let many = format!(r#"{{"tools":[{}{{"name":"z"}}]}}"#, r#"{"name":"a"},"#.repeat(MAX_TOOLS));
        assert!(digests(&many).iter().all(|(name, _)| name == "a"));
    }
}
