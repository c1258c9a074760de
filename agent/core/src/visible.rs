//! Text from outside made fit to be shown: whatever could move a cursor, change a colour, hide or reorder what
//! stands beside it comes out as `\u{..}`. Nothing recorded may reach a terminal in another way.

/// Whether a character shows something else than itself.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Line and column, from 1 and in characters, of a byte offset: where a reader finds a mistake.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before.get(line_start..).unwrap_or_default().chars().count() + 1)
}

/// One line in which every character is what it looks like.
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// The same for JSON text, in JSON's own escapes: it stays the same JSON. Line ends between values stay.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_reordering_become_visible() {
        assert_eq!(line("a\u{1b}[2Jb\nc\u{202e}d\u{9b}é"), "a\\u{1b}[2Jb\\u{a}c\\u{202e}d\\u{9b}é");
    }

    #[test]
    fn json_stays_the_same_json() {
        let clear = "{\"a\":\"\u{9b}\u{e0041}é\"}\n";
        let shown = json(clear);
        assert_eq!(shown, "{\"a\":\"\\u009b\\udb40\\udc41é\"}\n");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&shown), read(clear));
    }
}
