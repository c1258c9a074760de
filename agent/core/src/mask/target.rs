//! Masking of what a request asks for: a path may hold a key or a session's name as one of its parts, and a query
//! nearly anything.

use super::{Masked, Masker};

/// A part of a path this long, or longer, may be a key.
const MIN_KEY: usize = 16;
/// So often at least letters and digits take turns in a key.
const MIN_TURNS: usize = 3;

impl Masker {
    /// Masks the target of a request: parts of the path that look like keys, and all values of the query.
    pub fn target(&self, target: &str) -> Masked<String> {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let parts: Vec<String> = path.split('/').map(|part| self.part(part)).collect();
        let mut out = self.text(&parts.join("/")).0;
        if let Some(query) = query {
            let pairs: Vec<String> = query.split('&').map(|pair| self.pair(pair)).collect();
            out.push('?');
            out.push_str(&pairs.join("&"));
        }
        Masked(out)
    }

    fn part(&self, part: &str) -> String {
        if is_key(part) { self.replacement("path-key", part) } else { self.text(part).0 }
    }

    fn pair(&self, pair: &str) -> String {
        match pair.split_once('=') {
            Some((name, value)) if !value.is_empty() => {
                format!("{}={}", self.part(name), self.replacement("query-value", value))
            }
            _ => self.part(pair),
        }
    }
}

fn is_key(part: &str) -> bool {
    let kinds = || part.bytes().map(|byte| (byte.is_ascii_alphabetic(), byte.is_ascii_digit()));
    let turns = kinds()
        .zip(kinds().skip(1))
        .filter(|(a, b)| matches!((a, b), ((true, _), (_, true)) | ((_, true), (true, _))));
    part.len() >= MIN_KEY && turns.count() >= MIN_TURNS
}

#[cfg(test)]
mod tests {
    use super::super::tests::masker;

    #[test]
    fn keys_in_a_path_and_values_of_a_query_are_masked() {
        for (target, hidden) in [
            ("/mcp/s/YjQ3NzE5ZTItNDRm/mcp", "YjQ3"),
            ("/messages/?session_id=550e8400e29b41d4a716446655440000", "550e8400"),
            ("/x?code=ab&state", "ab"),
            ("/u/550e8400-e29b-41d4-a716-446655440000", "550e8400"),
            ("https://user:hunter2@host.test/x", "hunter2"),
        ] {
            let out = masker().target(target);
            assert!(!out.as_str().contains(hidden), "{}", out.as_str());
        }
        let kept = masker().target("/messages/?session_id=abc&b=");
        assert!(
            kept.as_str().starts_with("/messages/?session_id=[masked:query-value:p0:"),
            "{}",
            kept.as_str()
        );
        for target in
            ["/mcp", "/", "*", "/react-dom-18.2.0.production.min.js", "/v2/notifications-of-today", ""]
        {
            assert_eq!(masker().target(target).as_str(), target);
        }
    }
}
