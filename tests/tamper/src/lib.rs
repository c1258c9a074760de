//! Tampering: an untouched export and a seed come in, a changed one goes out, with what was done where. Beside it what makes
//! untouched ones ([`honest`]), and what asks the verifiers about each ([`cases`]).
//!
//! [`change`] reads and writes exports by itself, and [`store`] changes a store by SQL: they share no code with what must see their
//! changes.
#![forbid(unsafe_code)]

pub mod cases;
pub mod change;
pub mod dice;
pub mod honest;
pub mod lines;
pub mod store;
