//! Where a statement ends and its data begins.
//!
//! In: the bytes of a query, perhaps with the rows of an INSERT behind them. Out: the statement, the format that it
//! names, and the data, none of them copied. It reads tokens, not grammar: what is no INSERT with data of its own is left
//! to the engine's parser. It must never look for anything inside strings, quoted names or comments.

mod token;

use self::token::{Token, Tokens};

/// One text, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub enum Statement<'t> {
    /// `INSERT INTO ... [FORMAT f]`, with the rows outside the statement.
    Insert { head: &'t [u8], format: &'t str, data: &'t [u8] },
    /// Anything else, `INSERT ... SELECT` and `INSERT ... VALUES` with their rows included.
    Plain { format: Option<&'t str>, touches_client_files: bool },
}

/// The format of an INSERT that names none. Its rows may be expressions, so the engine reads them as part of the text.
pub const VALUES: &str = "Values";

/// Takes `text` apart.
pub fn split(text: &[u8]) -> Statement<'_> {
    match insert(text) {
        Some(found) => found,
        None => plain(text),
    }
}

fn insert(text: &[u8]) -> Option<Statement<'_>> {
    let mut tokens = Tokens::of(text);
    tokens.next()?.is_word("insert").then_some(())?;
    let mut token = tokens.next()?;
    if token.is_word("into") {
        token = tokens.next()?;
    }
    if token.is_word("table") {
        // `INSERT INTO table VALUES`: the word may be the table's own name.
        let mut ahead = tokens.clone();
        if ahead.next().is_some_and(|next| next.is_name() && !is_clause(next)) {
            token = tokens.next()?;
        }
    }
    if token.is_word("function") {
        token = tokens.next()?;
    }
    // The table's name, `a` or `a.b`, which may be spelled like a keyword.
    if !token.is_name() {
        return None;
    }
    let mut ahead = tokens.clone();
    if ahead.next() == Some(Token::Mark(b'.')) && ahead.next().is_some_and(Token::is_name) {
        tokens = ahead;
    }
    let mut depth = 0_usize;
    let mut end = tokens.at();
    while let Some(token) = tokens.next() {
        match token {
            Token::Mark(b'(') => depth += 1,
            Token::Mark(b')') => depth = depth.saturating_sub(1),
            // Whatever comes behind, the engine's parser shall judge it.
            Token::Mark(b';') if depth == 0 => return None,
            // A SELECT in parentheses, or a list of columns.
            Token::Word(word) if depth == 1 && word.eq_ignore_ascii_case("select") => return None,
            Token::Word(_) if depth > 0 => {}
            Token::Word(word) if word.eq_ignore_ascii_case("format") => {
                let Some(Token::Word(format)) = tokens.next() else { return None };
                let data = data_after(text.get(tokens.at()..)?);
                return Some(Statement::Insert { head: text.get(..end)?, format, data });
            }
            Token::Word(word)
                if ["values", "select", "with", "from", "watch"]
                    .iter()
                    .any(|w| word.eq_ignore_ascii_case(w)) =>
            {
                return None;
            }
            _ => {}
        }
        end = tokens.at();
    }
    Some(Statement::Insert { head: text.get(..end)?, format: VALUES, data: &[] })
}

fn is_clause(token: Token<'_>) -> bool {
    ["values", "format", "select", "with", "settings", "from"].iter().any(|word| token.is_word(word))
}

/// ClickHouse's rule: the data starts after the first newline if only blanks stand before it, else after the blanks.
fn data_after(rest: &[u8]) -> &[u8] {
    let start = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | 0x0c)).unwrap_or(rest.len());
    let rest = rest.get(start..).unwrap_or_default();
    let rest = rest.strip_prefix(b"\r").unwrap_or(rest);
    rest.strip_prefix(b"\n").unwrap_or(rest)
}

fn plain(text: &[u8]) -> Statement<'_> {
    let mut tokens = Tokens::of(text);
    let mut format = None;
    let mut depth = 0_usize;
    let mut touches_client_files = false;
    let mut before: Option<Token<'_>> = None;
    while let Some(token) = tokens.next() {
        match token {
            Token::Mark(b'(') => depth += 1,
            Token::Mark(b')') => depth = depth.saturating_sub(1),
            Token::Word(word) if depth == 0 && word.eq_ignore_ascii_case("format") => {
                let mut ahead = tokens.clone();
                if let Some(Token::Word(name)) = ahead.next()
                    && ahead.next().is_none_or(|next| next == Token::Mark(b';') || next.is_word("settings"))
                {
                    format = Some(name);
                }
            }
            _ => {}
        }
        touches_client_files |= before.is_some_and(|before| {
            (before.is_word("into") && token.is_word("outfile"))
                || (before.is_word("from") && token.is_word("infile"))
        });
        before = Some(token);
    }
    Statement::Plain { format, touches_client_files }
}

#[cfg(test)]
mod tests;
