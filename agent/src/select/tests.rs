//! What gives way where there is no room for all that is selected. Needs root.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use weir_core::ids::Boot;
use weir_core::mask::{MaskKey, Masker};

use super::*;
use crate::cgroup::Cgroup as Folder;
use crate::config::SelectEntry;
use crate::kernel::Plan;
use crate::ledger::{Ledger, LedgerConfig};
use crate::process::Processes;
use crate::spool::faulty::Faulty;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_of_the_cgroup_that_gives_way_is_selected_by_itself_and_a_look_takes_no_strictness_away()
{
    let name = format!("weir-select-{}", std::process::id());
    let make = |path: &str| Folder::create(format!("{name}/{path}")).expect("these tests need root");
    let entry =
        |pattern: String, egress| SelectEntry { cgroups: vec![pattern], egress, ..Default::default() };
    let open = entry(format!("{name}-*"), Reach::default());
    let strict = entry(format!("{name}-strict*"), Reach::Strict);
    let plan = Plan { cgroups_room: 8, ..Plan::default() };
    let hooks = Arc::new(Hooks::load(plan).expect("these tests need root"));
    let masker = Masker::new(MaskKey::new([1; 32]));
    let boot = Boot::from_random([1; 16]);
    let config = LedgerConfig::new(Arc::new(Faulty::new()), "t".into(), "h".into(), boot, masker.clone());
    let (ledger, _) = tokio::task::spawn_blocking(move || Ledger::open(config)).await.unwrap().unwrap();
    let processes = Arc::new(Processes::new(masker, hooks.epoch()));
    let accounts = Accounts::new(hooks.clone(), ledger.clone(), processes, Duration::from_secs(30), None);
    let mut selection = Selection::new(&Select { entries: vec![open, strict] }).unwrap();

    // It is named itself, as those that it holds.
    let crowd = format!("{name}-crowd");
    let mut folders = vec![make(&crowd)];
    folders.extend((0..6).map(|n| make(&format!("{crowd}/{name}-{n}"))));
    let holder = folders[0].id().unwrap();
    assert_eq!(selection.scan(&hooks, &accounts).unwrap().new.len(), 7);
    let own = make(&format!("{name}-strict"));
    let (id, mut new) = (own.id().unwrap(), Vec::new());
    selection.made(&hooks, &accounts, id, &format!("/{name}/{name}-strict"), &mut new).unwrap();
    let selected = |id| hooks.selected_cgroups().unwrap().get(&id).copied();
    assert_eq!(new.iter().map(|cgroup| cgroup.id).collect::<Vec<_>>(), [id]);
    assert_eq!(selected(id).unwrap().flags, flag::STRICT);
    assert_eq!(selected(holder).unwrap().flags, 0, "that is another's");
    let path = format!("{name}/{crowd}");
    let widened = Note::Widened { path: path.clone(), instead_of: 6, because: Because::NoRoom };
    assert_eq!(selection.notes(), [widened]);

    // One of those that it holds is strict, and finds no room: from here on all of it is.
    folders.extend((0..6).map(|n| make(&format!("{crowd}/{name}-strict-{n}"))));
    for _ in 0..2 {
        selection.scan(&hooks, &accounts).unwrap();
        assert_eq!(selected(holder).unwrap().flags, flag::STRICT);
    }
    assert_eq!(selection.cgroups().count(), 2);
    for folder in folders.into_iter().rev().chain([own]) {
        folder.remove().unwrap();
    }
    let mount = cgroup::mount_point().unwrap();
    fs::remove_dir(mount.join(&name)).unwrap();
    accounts.end();
    ledger.shutdown().await.unwrap();
}

#[test]
fn where_there_are_too_many_the_cgroup_for_which_the_most_count_gives_way() {
    let many = (0..20).map(|n| format!("user.slice/job/x{n}/docker-1.scope"));
    let few = (0..12).map(|n| format!("user.slice/other/deep/in/it/docker-{n}.scope"));
    let flat = (0..50).map(|n| format!("system.slice/docker-{n}.scope"));
    let paths: Vec<String> = many.chain(few).chain(flat).collect();
    let fullest = |enough| fullest(paths.iter().map(String::as_str), enough);
    assert_eq!(fullest(10).as_deref(), Some("user.slice/job"));
    // Nobody below them holds so many: whoever makes room.
    assert_eq!(fullest(100).as_deref(), Some("user.slice/job"));
    let of = |paths: &[&'static str]| super::fullest(paths.iter().copied(), 2);
    assert_eq!(of(&["a/b/1", "a/c/1", "d/1"]).as_deref(), Some("a"), "nothing else makes room");
    assert_eq!(of(&["a", "b"]), None, "nothing lies above them");
}
