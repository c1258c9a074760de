//! ClickHouse's lexical rules, as far as words, strings, quoted names, comments and marks go.

/// One token. Strings and numbers carry nothing: nobody looks into them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'t> {
    /// A bare word: a keyword or a name.
    Word(&'t str),
    /// A name in backquotes or double quotes.
    QuotedName,
    /// A string literal or a heredoc.
    Literal,
    /// Any other single byte.
    Mark(u8),
}

impl Token<'_> {
    /// Whether this is the keyword `word` (keywords know no case).
    pub fn is_word(self, word: &str) -> bool {
        matches!(self, Token::Word(found) if found.eq_ignore_ascii_case(word))
    }

    pub fn is_name(self) -> bool {
        matches!(self, Token::Word(_) | Token::QuotedName)
    }
}

/// The tokens of a text, from left to right.
#[derive(Clone)]
pub struct Tokens<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Tokens<'t> {
    pub fn of(text: &'t [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// Where the token that was given last ends.
    pub fn at(&self) -> usize {
        self.at
    }

    fn rest(&self) -> &'t [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Moves behind the first `end` in what is left, or to the end of the text.
    fn skip_past(&mut self, end: &[u8]) {
        let found = self.rest().windows(end.len()).position(|window| window == end);
        self.at = found.map_or(self.text.len(), |found| self.at + found + end.len());
    }

    fn skip_blanks_and_comments(&mut self) {
        loop {
            match self.rest() {
                [blank, ..] if blank.is_ascii_whitespace() || *blank == 0x0b => self.at += 1,
                [b'-', b'-', ..] | [b'#', b' ' | b'!', ..] => self.skip_past(b"\n"),
                [b'/', b'*', ..] => {
                    self.at += 2;
                    self.skip_past(b"*/");
                }
                _ => return,
            }
        }
    }

    /// Moves behind the closing `quote`; a backslash escapes, and a doubled quote stands for itself (it then reads as two
    /// tokens, which changes nothing for anyone here).
    fn skip_quoted(&mut self, quote: u8) {
        self.at += 1;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == quote {
                break;
            }
        }
        self.at = self.at.min(self.text.len());
    }

    fn word(&mut self) -> Option<Token<'t>> {
        let rest = self.rest();
        let length = rest.iter().position(|byte| !is_word_byte(*byte)).unwrap_or(rest.len());
        let word = std::str::from_utf8(rest.get(..length)?).ok()?;
        self.at += length;
        Some(Token::Word(word))
    }

    /// The length of `$tag$` at the start of `rest`.
    fn heredoc_tag(rest: &[u8]) -> Option<&[u8]> {
        let inner = rest.strip_prefix(b"$")?;
        let end = inner.iter().position(|byte| !is_word_byte(*byte))?;
        (inner.get(end) == Some(&b'$')).then(|| rest.get(..end + 2))?
    }
}

impl<'t> Iterator for Tokens<'t> {
    type Item = Token<'t>;

    fn next(&mut self) -> Option<Token<'t>> {
        self.skip_blanks_and_comments();
        match *self.rest().first()? {
            b'\'' => {
                self.skip_quoted(b'\'');
                Some(Token::Literal)
            }
            quote @ (b'`' | b'"') => {
                self.skip_quoted(quote);
                Some(Token::QuotedName)
            }
            b'$' => {
                let Some(tag) = Self::heredoc_tag(self.rest()) else {
                    self.at += 1;
                    return Some(Token::Mark(b'$'));
                };
                self.at += tag.len();
                self.skip_past(tag);
                Some(Token::Literal)
            }
            byte if is_word_byte(byte) => self.word(),
            mark => {
                self.at += 1;
                Some(Token::Mark(mark))
            }
        }
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}
