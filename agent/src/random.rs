//! Random bytes from the kernel.

/// As many as asked for. Ends the process when the kernel has none: ids and salts must never repeat.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    if let Err(error) = getrandom::fill(&mut out) {
        tracing::error!(%error, "the kernel gives no random bytes");
        std::process::abort();
    }
    out
}
