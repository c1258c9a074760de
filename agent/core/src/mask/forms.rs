//! The forms of secrets: where a detector's word stands comes in, and the secret that begins there goes out, if one does.
//! Together with it goes how far the form has looked: no word of the same detector before that can begin another secret.

use std::ops::Range;

/// What a secret looks like from its word on.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    Token(Token),
    /// PEM: from its first line to its last one, or to the end of the text.
    PrivateKey,
    /// Three parts, the first two of which are JSON objects in base64.
    Jwt,
    /// What stands behind the word `bearer`.
    Bearer,
    /// `://user:secret@`
    UrlPassword,
    /// `name=secret` and the like.
    Assigned,
    /// `[masked:detector:p0:0123456789abcdef]`
    Replaced,
}

/// A word and what follows without a break; the word begins one.
#[derive(Debug, Clone, Copy)]
pub struct Token {
    pub more: fn(u8) -> bool,
    /// How many characters follow at least; just as many where it is `exact`.
    pub least: usize,
    pub exact: bool,
    /// No letter, digit or `_` stands behind it.
    pub ends_word: bool,
}

/// The secret, and up to where the form has looked.
type Looked = (Option<Range<usize>>, usize);

/// The fewest bytes of what is known by the words before it alone.
const LEAST_BEHIND_WORDS: usize = 8;
/// The most blanks between two parts of an assignment.
const MOST_BLANKS: usize = 4;
/// The most letters of the kind of a private key.
const MOST_OF_KIND: usize = 40;

impl Form {
    /// Whether its words may stand there in any case of letters.
    pub fn ignores_case(&self) -> bool {
        matches!(self, Form::Bearer | Form::Assigned)
    }

    pub fn at(&self, text: &[u8], word: Range<usize>) -> Looked {
        let none = (None, word.start + 1);
        let begins_word =
            || !word.start.checked_sub(1).and_then(|before| text.get(before)).is_some_and(in_word);
        match self {
            Form::Token(token) if begins_word() => token.at(text, word),
            Form::PrivateKey => private_key(text, word),
            Form::Jwt if begins_word() => jwt(text, word),
            Form::Bearer if begins_word() => {
                let blanks = run(text, word.end, is_blank);
                let end =
                    run(text, blanks, |byte| byte.is_ascii_alphanumeric() || b"._~+/=-".contains(&byte));
                if blanks > word.end && end - blanks >= LEAST_BEHIND_WORDS {
                    (Some(blanks..end), end)
                } else {
                    none
                }
            }
            Form::UrlPassword => {
                let user = run(text, word.end, |byte| !is_blank(byte) && !b"/:@".contains(&byte));
                let password = user + 1;
                let end = run(text, password, |byte| !is_blank(byte) && !b"/@[]".contains(&byte));
                let is = text.get(user) == Some(&b':') && text.get(end) == Some(&b'@') && end > password;
                if is { (Some(password..end), end + 1) } else { none }
            }
            Form::Assigned => {
                assigned(text, word.end).map_or(none, |secret| (Some(secret.clone()), secret.end))
            }
            Form::Replaced => replaced(text, word).map_or(none, |range| (Some(range.clone()), range.end)),
            Form::Token(_) | Form::Jwt | Form::Bearer => none,
        }
    }
}

impl Token {
    fn at(&self, text: &[u8], word: Range<usize>) -> Looked {
        let none = (None, word.start + 1);
        let end = if self.exact {
            let end = word.end + self.least;
            let whole =
                text.get(word.end..end).is_some_and(|rest| rest.iter().all(|byte| (self.more)(*byte)));
            if whole { end } else { word.end }
        } else {
            run(text, word.end, self.more)
        };
        let ends = !self.ends_word || !text.get(end).is_some_and(in_word);
        if ends && end - word.end >= self.least { (Some(word.start..end), end) } else { none }
    }
}

fn private_key(text: &[u8], word: Range<usize>) -> Looked {
    let Some(first) = kind_ends(text, word.end) else { return (None, word.start + 1) };
    let mut from = first;
    while let Some(at) = text.get(from..).and_then(|rest| memchr::memmem::find(rest, b"-----END ")) {
        from += at + b"-----END ".len();
        if let Some(end) = kind_ends(text, from) {
            return (Some(word.start..end), end);
        }
    }
    (Some(word.start..text.len()), text.len())
}

/// Where `[A-Z ]{0,40}PRIVATE KEY-----` ends.
fn kind_ends(text: &[u8], from: usize) -> Option<usize> {
    const LAST: &[u8] = b"PRIVATE KEY-----";
    let rest = text.get(from..)?;
    let rest = rest.get(..rest.len().min(MOST_OF_KIND + LAST.len()))?;
    let at = memchr::memmem::find(rest, LAST)?;
    let kind = rest.get(..at)?;
    kind.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b' ').then_some(from + at + LAST.len())
}

fn jwt(text: &[u8], word: Range<usize>) -> Looked {
    const LEAST: usize = 10;
    let in_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let head = run(text, word.end, in_part);
    // What begins later in the same part has the same end, and is shorter.
    if head - word.end < LEAST || text.get(head..head + 4) != Some(b".eyJ") {
        return (None, head);
    }
    let body = run(text, head + 4, in_part);
    if text.get(body) != Some(&b'.') || body - (head + 4) < LEAST {
        return (None, head);
    }
    let end = run(text, body + 1, in_part);
    (Some(word.start..end), end)
}

/// The secret behind the name that ends at `from`.
fn assigned(text: &[u8], from: usize) -> Option<Range<usize>> {
    let quoted = |at: usize| at + usize::from(matches!(text.get(at), Some(b'"' | b'\'')));
    let secret = |at: usize| {
        let start = quoted(at);
        let end = run(text, start, |byte| !is_blank(byte) && !b"\"',;&[]{}".contains(&byte));
        (end - start >= LEAST_BEHIND_WORDS).then_some(start..end)
    };
    let name = quoted(from);
    let blanks = blanks(text, name, 2 * MOST_BLANKS + 2);
    let sign = name + blanks;
    if blanks <= MOST_BLANKS && matches!(text.get(sign), Some(b':' | b'=')) {
        let behind = self::blanks(text, sign + 1, MOST_BLANKS + 1);
        if behind <= MOST_BLANKS
            && let Some(secret) = secret(sign + 1 + behind)
        {
            return Some(secret);
        }
    }
    // A blank is enough.
    if (1..=2 * MOST_BLANKS + 1).contains(&blanks) { secret(sign) } else { None }
}

fn replaced(text: &[u8], word: Range<usize>) -> Option<Range<usize>> {
    const MOST_OF_NAME: usize = 40;
    const DIGITS: usize = 16;
    let name = run(text, word.end, |byte| byte.is_ascii_lowercase() || byte == b'-');
    let digits = text.get(name..)?.strip_prefix(b":p0:")?;
    let known = (1..=MOST_OF_NAME).contains(&(name - word.end));
    let hex = digits.get(..DIGITS)?.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let end = name + 4 + DIGITS;
    (known && hex && text.get(end) == Some(&b']')).then_some(word.start..end + 1)
}

/// How many blanks there are from here on, as far as `most`.
fn blanks(text: &[u8], from: usize, most: usize) -> usize {
    text.iter().skip(from).take(most).take_while(|byte| is_blank(**byte)).count()
}

/// Where the run of such bytes ends that begins here.
fn run(text: &[u8], from: usize, of: impl Fn(u8) -> bool) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.iter().position(|byte| !of(*byte)).unwrap_or(rest.len())
}

fn in_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_'
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}
