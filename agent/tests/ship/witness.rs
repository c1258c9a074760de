//! What makes the collector a witness: keys that are made known, cosignatures that are believed or not, trees that are shown
//! while nothing is sealed.

use std::time::Duration;

use weir::ship::{ShipError, WitnessError};
use weir_core::evidence::checkpoint::Checkpoint;
use weir_core::evidence::key::SigningKey;
use weir_core::evidence::note::SignedNote;
use weir_core::evidence::root;
use weir_core::evidence::rotation::Rotation;
use weir_core::wire::Advice;

use super::*;

/// Ships all there is, what it says of that included; how often each kind of event came.
async fn said(shipper: &Shipper, stub: &Stub, name: &str) -> usize {
    shipper.ledger.seal_if_older(Duration::ZERO).await.unwrap();
    let _ = shipper.ship_all().await;
    let named = format!("\"name\":\"{name}\"");
    stub.says().taken.values().filter(|event| event.contains(&named)).count()
}

fn begins_epoch() -> Advice {
    Advice { begin_epoch: true, ..Advice::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_known_once_before_its_first_segment_and_the_cosignature_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    assert_eq!(shipper.witness().to(), None);
    shipper.ship_all().await.unwrap();
    let enrolled = stub.says().enrolled.clone();
    let [enrolled] = &enrolled[..] else { panic!("not once") };
    assert_eq!((enrolled.first_seq, &enrolled.rotation), (0, &None));
    assert_eq!(enrolled.key.name(), format!("t/h/{}/1", shipper.origin));
    let to = shipper.witness().to().unwrap();
    assert_eq!((to.epoch, to.size, to.time_s), (1, 4, 1_790_000_000));
    let kept = std::fs::read_to_string(folder.path().join("spool/log.witnessed")).unwrap();
    let kept: SignedNote = kept.parse().unwrap();
    assert_eq!(Checkpoint::open(&kept, &enrolled.key).unwrap().size, 4);
    assert_eq!(kept.cosigned(&stub.says().witness.cosigning("collector").unwrap()), Ok(1_790_000_000));
    // What is kept is known to the next process.
    let storage = Arc::new(Folder::open(folder.path().join("spool")).unwrap());
    assert_eq!(weir::ship::Witness::open(storage).to(), Some(to));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_epochs_key_comes_with_the_statement_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    let rotated = shipper.ledger.rotate_key().await.unwrap();
    shipper.ledger.write(AgentEvent { name: "after".into(), detail: BTreeMap::new() }).await.unwrap();
    assert_eq!(said(&shipper, &stub, "key.rotated").await, 1);
    let enrolled = stub.says().enrolled.clone();
    let [first, second] = &enrolled[..] else { panic!("{enrolled:?}") };
    assert_eq!((&second.key, second.first_seq), (&rotated.key, rotated.first_seq));
    let note = second.rotation.as_ref().unwrap().parse().unwrap();
    assert_eq!(Rotation::open(&note, &first.key).unwrap().key, rotated.key);
    assert_eq!(shipper.witness().to().unwrap().epoch, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_has_another_tree_is_told_of_and_nothing_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    let mut other = SignedNote::new("another/log\n".into()).unwrap();
    other.sign(&SigningKey::from_seed(&[1; 32]), "t").unwrap();
    stub.says().gives_back = Some(other.to_string());
    let error = shipper.ship_all().await.unwrap_err();
    assert!(matches!(error, ShipError::Witness(WitnessError::Another)), "{error}");
    assert_eq!(shipper.ledger.sealed()[0].first_seq, 0, "it stays");
    assert_eq!(said(&shipper, &stub, "witness.fork").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cosignature_by_another_key_does_not_count_and_is_told_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    stub.says().signs_with = Some(SigningKey::from_seed(&[8; 32]));
    shipper.ship_all().await.unwrap();
    assert_eq!((shipper.witness().to(), shipper.ledger.sealed().len()), (None, 0));
    assert_eq!(said(&shipper, &stub, "witness.wrong_key").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_believed_stays_whole_and_is_told_of_once() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    stub.says().refuses.insert(0, Reason::Unproven);
    for _ in 0..3 {
        assert!(shipper.ship_all().await.unwrap_err().to_string().contains("unproven"));
    }
    assert_eq!((shipper.ledger.sealed().len(), stub.says().taken.len()), (3, 0));
    stub.says().refuses.clear();
    assert_eq!(said(&shipper, &stub, "ship.unproven").await, 1);
    assert_eq!(stub.says().enrolled.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_collector_does_not_know_any_more_is_made_known_again() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    stub.says().refuses.insert(2, Reason::UnknownKey);
    assert!(shipper.ship_all().await.is_err());
    assert_eq!((shipper.ledger.sealed().len(), stub.says().enrolled.len()), (2, 1));
    stub.says().refuses.clear();
    assert_eq!(said(&shipper, &stub, "ship.unknown_key").await, 1);
    let enrolled = stub.says().enrolled.clone();
    assert_eq!((enrolled.len(), &enrolled[0]), (2, &enrolled[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_may_have_another_epoch_begun_and_not_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await;
    stub.says().advice = std::iter::repeat_with(begins_epoch).take(20).collect();
    shipper.ship_all().await.unwrap();
    assert_eq!(shipper.ledger.standing().epoch, 2);
    assert_eq!(said(&shipper, &stub, "log.epoch_begun").await, 1);
    shipper.ledger.write(AgentEvent { name: "more".into(), detail: BTreeMap::new() }).await.unwrap();
    assert_eq!(said(&shipper, &stub, "more").await, 1);
    assert_eq!(shipper.ledger.standing().epoch, 2);
    assert_eq!(stub.says().enrolled.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_of_what_is_not_sealed_is_shown_and_no_event_is_sent_for_that() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await.showing_every(Duration::ZERO);
    shipper.show_unsealed().await.unwrap();
    assert!(stub.says().shown.is_empty(), "what is sealed goes first");
    shipper.ship_all().await.unwrap();
    shipper.show_unsealed().await.unwrap();
    assert!(stub.says().shown.is_empty(), "there is nothing else");
    for name in ["fourth", "fifth"] {
        shipper.ledger.write(AgentEvent { name: name.into(), detail: BTreeMap::new() }).await.unwrap();
    }
    shipper.show_unsealed().await.unwrap();
    let shown = stub.says().shown.clone();
    let [shown] = &shown[..] else { panic!("not once") };
    assert_eq!((shown.first_seq, shown.leaves.len()), (4, 2));
    assert_eq!(shipper.witness().to().unwrap().size, 6);
    assert_eq!(shipper.ledger.sealed(), [], "nothing was sealed for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_that_are_shown_are_those_of_the_tree() {
    let folder = tempfile::tempdir().unwrap();
    let stub = Arc::new(Stub::default());
    let shipper = three_segments(folder.path(), stub.clone()).await.showing_every(Duration::ZERO);
    // Of an epoch of its own, so that they are all of its leaves.
    shipper.ledger.begin_epoch("a test").await.unwrap();
    shipper.ship_all().await.unwrap();
    shipper.show_unsealed().await.unwrap();
    let shown = stub.says().shown.pop().unwrap();
    let checkpoint = Checkpoint::read(&shown.note.parse().unwrap()).unwrap();
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    let leaf = |hex: &String| {
        let bytes = hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1]));
        bytes.collect::<Vec<u8>>().try_into().unwrap()
    };
    let leaves: Vec<[u8; 32]> = shown.leaves.iter().map(leaf).collect();
    assert_eq!((checkpoint.size, checkpoint.first_seq), (1, 4));
    assert_eq!(checkpoint.root, root(&leaves));
}
