//! Cutting bytes into pieces, as networks do.

/// The first byte says how the others are cut; gives it, and those.
pub fn cut_by_first(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest))
}

/// The bytes in pieces of different sizes, none longer than `by` and a little: one by one for 0.
pub fn pieces(bytes: &[u8], by: u8) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut turn) = (bytes, 0_usize);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        turn += 1;
        let size = 1 + (usize::from(by) * turn) % (usize::from(by) + 3);
        let (piece, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        Some(piece)
    })
}
