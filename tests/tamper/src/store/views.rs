//! Views: which of them and dice come in; the statements that have it show or fill less than it should go out.

use anyhow::{Context, Result};

use super::{Done, Store, Way, text};
use crate::dice::Dice;

impl Store {
    /// A view that hides every row, or some; one that fills a table, and does so no longer, or not with all.
    pub(super) async fn view(&self, way: Way, dice: &mut Dice) -> Result<Done> {
        let engine = if way == Way::Filling { "MaterializedView" } else { "View" };
        let views = self
            .ask(&format!(
                "SELECT name, as_select FROM system.tables WHERE database = currentDatabase() AND engine = '{engine}' \
                 ORDER BY name"
            ))
            .await?;
        let view = dice.pick(&views).context("no view")?;
        let (view, select) = (text(view, "name")?, text(view, "as_select")?);
        let which = *dice.pick(&["0", "rand() > 0", "now() < toDateTime(0)"]).context("no condition")?;
        let partial = format!("SELECT * FROM ({select}) WHERE {which}");
        let gone = format!("DROP VIEW {view} SYNC");
        let statements = match (way, dice.below(4)) {
            (Way::Filling, 0) => vec![gone],
            (Way::Filling, 1) => vec![
                gone,
                format!("CREATE TABLE IF NOT EXISTS nowhere_{view} ENGINE = Null AS {select}"),
                format!("CREATE MATERIALIZED VIEW {view} TO nowhere_{view} AS {select}"),
            ],
            // It looks as it did, and nothing runs it.
            (Way::Filling, 2) => vec![gone, format!("CREATE VIEW {view} AS {select}")],
            (Way::Filling, _) => vec![format!("ALTER TABLE {view} MODIFY QUERY {partial}")],
            _ => vec![format!("CREATE OR REPLACE VIEW {view} AS {partial}")],
        };
        Ok(Done {
            what: format!("{} {view}", way.name()),
            shows_as: way.shows_as(),
            origin: String::new(),
            first_seq: 0,
            last_seq: 0,
            statements,
        })
    }
}
