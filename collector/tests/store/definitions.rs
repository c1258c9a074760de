//! Tables and views, by `weir-collector verify`: one that hides something, or that fills its table no longer, is named, and a user
//! for whom they cannot be compared does not hear that all is well.

use weir_tests::Between;

use crate::verify::{Audited, findings};
use crate::world::run_with;

/// What of tables and views is not as it should be: as (name, why).
fn named(report: &str) -> Vec<(String, String)> {
    let lines = report.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
    let text = |one: &serde_json::Value, name: &str| one["finding"][name].as_str().unwrap_or("").to_owned();
    let found = lines.filter(|one| text(one, "kind") == "definition");
    found.map(|one| (text(&one, "what"), text(&one, "detail"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_hides_or_no_longer_fills_is_named_and_so_is_what_nobody_could_compare() {
    let audited = Audited::begin().await;
    let world = &audited.world;
    let verify = ["verify", "--json", "--settle", "0", "--trust", audited.trust_file()];
    // Of a user who only reads: all else is checked, and it says what was not.
    let between = Between::to(world.store.address()).expect("a proxy");
    between.only_read();
    let config = std::fs::read_to_string(world.collector.config()).expect("a configuration");
    let config = config.replace(&world.store.url(), &between.url());
    let (code, report, told) = run_with(&world.folder, &config, &verify);
    let found = named(&report);
    assert_eq!((code, findings(&report).len(), found.len()), (1, 1, 1), "{report}{told}");
    assert_eq!(found[0].0, "tables and views");
    assert!(found[0].1.contains("not checked") && found[0].1.contains("weir_auditor"), "{found:?}");
    let (code, shown, _) =
        run_with(&world.folder, &config, &["verify", "--settle", "0", verify[4], verify[5]]);
    assert!(code == 1 && !shown.contains("clean"), "{shown}");
    // A part is of logs alone, and needs no more than to read.
    let origin = ["--origin", "01010101010101010101010101010101"];
    let (code, shown, told) = run_with(
        &world.folder,
        &config,
        &[&["verify", "--settle", "0", verify[4], verify[5]], &origin[..]].concat(),
    );
    assert!(code == 0 && shown.contains("clean"), "{shown}{told}");

    // What the role for analysts is there for; and no more than to read.
    let export = world.folder.path().join("read.tar");
    let export = export.to_str().expect("UTF-8");
    for reading in [
        &["query", "--named", "tools"][..],
        &["query", "SELECT count() FROM flows"],
        &["completeness"],
        &["export", "--settle", "0", "-o", export],
    ] {
        let (code, _, told) = run_with(&world.folder, &config, reading);
        assert_eq!(code, 0, "{reading:?}: {told}");
    }
    let (code, _, told) = run_with(&world.folder, &config, &["migrate"]);
    assert!(code == 1 && told.to_lowercase().contains("read"), "{told}");

    let views = audited.views();
    let select = |name: &str| {
        let question = format!(
            "SELECT as_select FROM system.tables WHERE database = currentDatabase() AND name = '{name}'"
        );
        world.sql(&question)[0]["as_select"].as_str().expect("a select").to_owned()
    };
    let (held, flows) = (select("held_filling"), select("flows"));
    let gone = |name: &str| format!("DROP VIEW {name} SYNC");
    let less =
        held.replace("WHERE approval_id != ''", "WHERE (approval_id != '') AND (server_name != 'evil.test')");
    assert_ne!(less, held);
    // The database's name in the middle of a word: who left such names out before comparing would not see it.
    let hiding = flows.replace("'flow'", "'flweir.ow'");
    assert_ne!(hiding, flows);
    let calls = select("calls_5m_filling");
    let filling = |kind: &str| format!("CREATE {kind} AS {calls}");
    // What is done, and what must be said of each name that it is about.
    type Act<'a> = (&'a [String], &'a [(&'a str, &'a str)]);
    let acts: [Act<'_>; 2] = [
        (
            &[
                gone("held_filling"),
                "ALTER TABLE held MODIFY TTL toDateTime(time) + INTERVAL 1 DAY".to_owned(),
                gone("calls_5m_filling"),
                "CREATE TABLE other AS calls_5m".to_owned(),
                filling("MATERIALIZED VIEW calls_5m_filling TO other"),
                format!("CREATE OR REPLACE VIEW flows AS {hiding}"),
            ],
            &[
                ("calls_5m_filling", "the table that it fills"),
                ("flows", "its source"),
                ("held", "its source"),
                ("held_filling", "not there"),
            ],
        ),
        (
            &[
                "ALTER TABLE held REMOVE TTL".to_owned(),
                format!("ALTER TABLE held_filling MODIFY QUERY {less}"),
                gone("calls_5m_filling"),
                filling("VIEW calls_5m_filling"),
            ],
            &[("calls_5m_filling", "its engine"), ("held_filling", "its source")],
        ),
    ];
    for (statements, expected) in acts {
        for statement in statements {
            world.execute(statement).await;
        }
        let (code, report, told) = world.run(&verify);
        let found = named(&report);
        assert!(code == 1 && found.len() == expected.len(), "{report}{told}");
        for ((name, why), (what, told)) in expected.iter().zip(&found) {
            assert!(name == what && told.contains(why), "{name}, {why}: {found:?}");
        }
        audited.restore_views(&views).await;
    }
    let (code, report, told) = world.run(&verify);
    assert_eq!((code, findings(&report)), (0, vec![]), "{told}");
    let left = world.sql("SELECT name FROM system.databases WHERE name LIKE 'weir_verify%'");
    assert!(left.is_empty(), "{left:?}");
}
