//! Inputs made from others by a seed: the same seed makes the same inputs, on any machine.

/// What is put into inputs now and then: the words that parsers look for.
const WORDS: [&[u8]; 40] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"0",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"\xef\xbb\xbf",
    b"\xff",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"Host: ",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"GET / HTTP/1.1\r\n",
    b"0\r\n\r\n",
    b"data: ",
    b"event: endpoint",
    b"id: ",
    b"\"jsonrpc\":\"2.0\"",
    b"\"method\":\"tools/call\"",
    b"\"id\":1",
    b"\"name\"",
    b"=?base64?",
];
/// The longest input that is made.
const MAX_INPUT: usize = 4096;

/// Makes inputs out of others.
#[derive(Debug)]
pub struct Mutator(u64);

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // Marsaglia's xorshift, multiplied.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % bound.max(1)
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }

    /// An input that has something of one of `corpus`, or of two.
    pub fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = self.one_of(corpus).cloned().unwrap_or_default();
        if self.below(8) == 0 {
            // One's beginning, another's end.
            let other = self.one_of(corpus).cloned().unwrap_or_default();
            let (cut, from) = (self.below(bytes.len() + 1), self.below(other.len() + 1));
            bytes.truncate(cut);
            bytes.extend(other.into_iter().skip(from));
        }
        for _ in 0..=self.below(6) {
            self.change(&mut bytes);
        }
        bytes.truncate(MAX_INPUT);
        bytes
    }

    /// One small change.
    pub fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let len = self.below(16).min(bytes.len() - at);
        match self.below(8) {
            0 => drop(bytes.splice(at..at + len, [])),
            1 => {
                let copy = bytes.get(at..at + len).unwrap_or_default().to_vec();
                let to = self.below(bytes.len() + 1);
                drop(bytes.splice(to..to, copy));
            }
            2 => bytes.truncate(at),
            3 => bytes.insert(at, u8::try_from(self.below(256)).unwrap_or(0)),
            4 | 5 => {
                let word = self.one_of(&WORDS).copied().unwrap_or_default();
                let over = if self.below(2) == 0 { word.len().min(bytes.len() - at) } else { 0 };
                drop(bytes.splice(at..at + over, word.iter().copied()));
            }
            6 => {
                let flip = 1 << self.below(8);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= flip;
                }
            }
            _ => {
                let new = u8::try_from(self.below(256)).unwrap_or(0);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = new;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_inputs_each_time_and_others_than_another_seed() {
        let corpus = [b"GET / HTTP/1.1\r\n\r\n".to_vec(), b"{}".to_vec()];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..100).map(|_| mutator.input(&corpus)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
        let different: std::collections::HashSet<_> = inputs(7).into_iter().collect();
        assert!(different.len() > 80, "{} of 100", different.len());
    }
}
