//! The official conformance suite, run directly and through Weir, and compared check for check.
//!
//! In: suites to run. Out: for each, the checks that differ, the connections without a terminated flow record, and the messages in
//! which the record and the suite's own log are not one. The suite is unmodified; `tests/sdks/tap.mjs`, loaded beside it, keeps the
//! log. Of the implementation that is tested nothing is demanded here: a check that fails does so with Weir and without.

mod checks;
mod messages;
mod run;
mod suite;

pub use checks::Difference;
pub use run::{Compared, Ground};
pub use suite::{Revision, Sdk, Side, Suite};
