//! The paths that a Rust source file names, each with its line, resolved as far as `crate`, `self` and `super` go.
//!
//! A lexer and the grammar of `use` trees, and no more: comments, strings and test modules are passed over.

/// A path, from its crate on.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub line: usize,
    pub segments: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    /// `::`
    Sep,
    Mark(char),
}

/// All paths of two names or more, and all that `use` brings in. `module` is the module that the source is.
pub fn named_in(source: &str, module: &[String]) -> Vec<Named> {
    let tokens = without_tests(&lex(source));
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_name = |at: usize, wanted: &str| matches!(tokens.get(at), Some((Token::Name(name), _)) if name == wanted);
        // `impl Trait + use<'a>` is not an import.
        if is_name(at, "use") && !matches!(tokens.get(at + 1), Some((Token::Mark('<'), _))) {
            at = use_tree(&tokens, at + 1, &[], &mut found);
        } else if is_name(at, "extern") && is_name(at + 1, "crate") {
            at = use_tree(&tokens, at + 2, &[], &mut found);
        } else {
            at = plain_path(&tokens, at, &mut found);
        }
    }
    for named in &mut found {
        resolve(&mut named.segments, module);
    }
    found
}

/// Reads a use tree from `at` on: `a::{b, c::d as e, self, *}`. Gives the place after it.
fn use_tree(tokens: &[(Token, usize)], mut at: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let mut segments = prefix.to_vec();
    let mut line = tokens.get(at).map_or(0, |(_, line)| *line);
    loop {
        match tokens.get(at) {
            Some((Token::Name(name), _)) if name == "as" => at += 2,
            Some((Token::Name(name), here)) => {
                line = *here;
                if name != "self" || segments.is_empty() {
                    segments.push(name.clone());
                }
                at += 1;
            }
            Some((Token::Sep | Token::Mark('*'), _)) => at += 1,
            Some((Token::Mark('{'), _)) => {
                at += 1;
                while !matches!(tokens.get(at), None | Some((Token::Mark('}' | ';'), _))) {
                    let before = at;
                    at = use_tree(tokens, at, &segments, found);
                    if matches!(tokens.get(at), Some((Token::Mark(','), _))) || at == before {
                        at += 1;
                    }
                }
                return at + 1;
            }
            _ => {
                if segments.len() > prefix.len() || !prefix.is_empty() {
                    found.push(Named { line, segments });
                }
                return at;
            }
        }
    }
}

/// Reads `a::b::c` from `at` on, if there is one. Gives the place after it.
fn plain_path(tokens: &[(Token, usize)], mut at: usize, found: &mut Vec<Named>) -> usize {
    let Some((Token::Name(first), line)) = tokens.get(at) else { return at + 1 };
    let mut segments = vec![first.clone()];
    at += 1;
    while let (Some((Token::Sep, _)), Some((Token::Name(name), _))) = (tokens.get(at), tokens.get(at + 1)) {
        segments.push(name.clone());
        at += 2;
    }
    if segments.len() > 1 {
        found.push(Named { line: *line, segments });
    }
    at
}

fn resolve(segments: &mut Vec<String>, module: &[String]) {
    let mut base = match segments.first().map(String::as_str) {
        Some("crate") => module[..module.len().min(1)].to_vec(),
        Some("self" | "super") => module.to_vec(),
        _ => return,
    };
    while let Some(first) =
        segments.first().filter(|name| matches!(name.as_str(), "crate" | "self" | "super"))
    {
        if first == "super" {
            base.pop();
        }
        segments.remove(0);
    }
    base.append(segments);
    *segments = base;
}

/// Takes out every item that `#[cfg(test)]` stands before.
fn without_tests(tokens: &[(Token, usize)]) -> Vec<(Token, usize)> {
    let attribute: Vec<Token> = [
        Token::Mark('#'),
        Token::Mark('['),
        Token::Name("cfg".into()),
        Token::Mark('('),
        Token::Name("test".into()),
        Token::Mark(')'),
        Token::Mark(']'),
    ]
    .into();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let here = tokens[at..].iter().take(attribute.len()).map(|(token, _)| token);
        if !here.eq(attribute.iter()) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += attribute.len();
        // The item ends with its first block, or with a semicolon before any.
        let mut depth = 0_u32;
        while let Some((token, _)) = tokens.get(at) {
            at += 1;
            match token {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        break;
                    }
                }
                Token::Mark(';') if depth == 0 => break,
                _ => {}
            }
        }
    }
    kept
}

/// Names, `::` and marks, each with its line.
fn lex(source: &str) -> Vec<(Token, usize)> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    while at < chars.len() {
        let began = at;
        match (chars[at], peek(at + 1)) {
            ('/', '/') => at += chars[at..].iter().take_while(|&&c| c != '\n').count(),
            ('/', '*') => at = after_comment(&chars, at),
            ('"', _) => at = after_string(&chars, at + 1),
            ('\'', '\\') => at = after_quote(&chars, at + 3),
            ('\'', _) if peek(at + 2) == '\'' => at += 3,
            // A lifetime.
            ('\'', _) => at += 1,
            (':', ':') => {
                tokens.push((Token::Sep, line));
                at += 2;
            }
            (c, _) if c.is_alphabetic() || c == '_' => {
                let length = chars[at..].iter().take_while(|&&c| c.is_alphanumeric() || c == '_').count();
                let name: String = chars[at..at + length].iter().collect();
                at += length;
                let hashes = chars[at..].iter().take_while(|&&c| c == '#').count();
                match (name.as_str(), peek(at), peek(at + hashes)) {
                    ("r" | "br" | "cr", _, '"') => at = after_raw_string(&chars, at + hashes + 1, hashes),
                    ("b" | "c", '"', _) => at = after_string(&chars, at + 1),
                    ("b", '\'', _) => at = after_quote(&chars, at + if peek(at + 1) == '\\' { 3 } else { 1 }),
                    // A raw name: `r#type`.
                    ("r", '#', _) => at += 1,
                    _ => tokens.push((Token::Name(name), line)),
                }
            }
            (c, _) => {
                if !c.is_whitespace() && !c.is_ascii_digit() {
                    tokens.push((Token::Mark(c), line));
                }
                at += 1;
            }
        }
        at = at.min(chars.len());
        line += chars[began..at].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

/// Block comments nest.
fn after_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    break;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn after_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

fn after_raw_string(chars: &[char], mut at: usize, hashes: usize) -> usize {
    while at < chars.len() {
        at += 1;
        if chars[at - 1] == '"' && chars[at..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes {
            return at + hashes;
        }
    }
    at
}

fn after_quote(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        at += 1;
        if chars[at - 1] == '\'' {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<String> {
        let module = ["weir".to_owned(), "tls".to_owned(), "accept".to_owned()];
        named_in(source, &module).into_iter().map(|named| named.segments.join("::")).collect()
    }

    #[test]
    fn use_trees_are_read_to_their_leaves() {
        assert_eq!(
            paths("use a::{b, c::{self, d as e}, f::*}; use ::g; pub(crate) use h::i;"),
            ["a::b", "a::c", "a::c::d", "a::f", "g", "h::i"]
        );
    }

    #[test]
    fn paths_are_resolved_from_where_they_stand() {
        assert_eq!(
            paths("use crate::spool; fn f() { super::super::gate::go(); self::x::y(); }"),
            ["weir::spool", "weir::gate::go", "weir::tls::accept::x::y"]
        );
    }

    #[test]
    fn comments_strings_and_tests_are_passed_over() {
        let source = "/* a::b /* c::d */ */ // e::f\n const S: &str = \"g::\\\"h\"; const C: char = '\\''; const R: &str = \
                      r##\"i::j\"#\"##; const B: u8 = b'\"'; fn f<'a>(x: &'a str) {} #[cfg(test)] mod t { use k::l; } use m::n;";
        assert_eq!(paths(source), ["m::n"]);
    }
}
