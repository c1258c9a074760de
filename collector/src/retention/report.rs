//! What retention did, as a table or as lines of JSON.

use serde_json::{Value, json};

use super::{State, Stretch};
use crate::query::table;

/// What was done, or would be.
#[derive(Debug)]
pub struct Report {
    pub policy: String,
    /// Nothing was done.
    pub is_dry: bool,
    pub stretches: Vec<Stretch>,
}

impl Report {
    pub(super) fn retired(&self) -> impl Iterator<Item = &Stretch> {
        self.of(State::Retired)
    }

    fn of(&self, state: State) -> impl Iterator<Item = &Stretch> {
        self.stretches.iter().filter(move |stretch| stretch.state == state)
    }

    /// Whether nothing was found altered.
    pub fn is_sound(&self) -> bool {
        self.of(State::Altered).next().is_none()
    }

    /// One object for each stretch.
    pub fn json(&self) -> impl Iterator<Item = Value> + '_ {
        self.stretches.iter().map(|stretch| {
            json!({
                "policy": self.policy, "dry_run": self.is_dry, "state": stretch.state.as_str(),
                "tenant": stretch.tenant, "host": stretch.host, "origin": stretch.origin, "epoch": stretch.epoch,
                "first_seq": stretch.first_seq, "last_seq": stretch.last_seq, "events": stretch.events,
            })
        })
    }

    /// A table, and what it comes to.
    pub fn table(&self, cell_width: Option<usize>) -> String {
        let columns = ["host", "origin", "epoch", "from", "to", "events", "state"].map(str::to_owned);
        let row = |stretch: &Stretch| {
            let numbers = [u64::from(stretch.epoch), stretch.first_seq, stretch.last_seq, stretch.events];
            let mut row = vec![stretch.host.clone(), stretch.origin.clone()];
            row.extend(numbers.iter().map(u64::to_string));
            row.push(stretch.state.as_str().to_owned());
            row
        };
        let rows: Vec<_> = self.stretches.iter().map(row).collect();
        let mut out =
            if rows.is_empty() { String::new() } else { table::render(&columns, &rows, cell_width) + "\n" };
        let sum = |state| self.of(state).map(|stretch| stretch.events).sum::<u64>();
        let did = if self.is_dry { "would be retired" } else { "retired" };
        out += &format!(
            "{} events {did} by {}, {} kept as it asks, {} altered and left as they are\n",
            sum(State::Retired),
            self.policy,
            sum(State::Kept),
            sum(State::Altered)
        );
        out
    }
}
