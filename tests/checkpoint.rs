//! What every checkpoint store must do: one suite, which each store passes. A further store needs a
//! [`StorePlace`] and a test.

use std::path::Path;
use std::sync::Arc;

use cloud_sync::change::{Epoch, Position};
use cloud_sync::checkpoint::{Checkpoint, Identity, SledStore, Store, Version};
use tempfile::TempDir;

use crate::support::store::MemoryStore;

/// A place that a store is in: it may be opened again once the store before is dropped.
trait StorePlace: Sized {
    fn open(&self) -> Arc<dyn Store>;

    /// Another place, with what a crash at this moment would leave here.
    fn after_crash(&self) -> Self;
}

impl StorePlace for TempDir {
    fn open(&self) -> Arc<dyn Store> {
        let (store, set_aside) = SledStore::open(&self.path().join("checkpoint")).unwrap();
        assert!(set_aside.is_none(), "{set_aside:?}");
        Arc::new(store)
    }

    fn after_crash(&self) -> Self {
        fn copy(from: &Path, to: &Path) {
            std::fs::create_dir_all(to).unwrap();
            for entry in std::fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                let target = to.join(entry.file_name());
                if entry.file_type().unwrap().is_dir() {
                    copy(&entry.path(), &target);
                } else {
                    std::fs::copy(entry.path(), target).unwrap();
                }
            }
        }
        let place = tempfile::tempdir().unwrap();
        copy(self.path(), place.path());
        place
    }
}

/// The kit's store lives as long as the test.
impl StorePlace for Arc<MemoryStore> {
    fn open(&self) -> Arc<dyn Store> {
        self.clone()
    }

    fn after_crash(&self) -> Self {
        self.clone()
    }
}

fn checkpoint(serial: u64) -> Checkpoint {
    let identity = Identity {
        source_id: "colégio № 1".into(),
        outbox_id: "0b7e".into(),
        system_id: "7012/site/16400".into(),
        epoch: Epoch(2),
    };
    Checkpoint {
        serial,
        term: 3,
        nonce: "nonce".into(),
        low_water: Position(serial as i64 * 10),
        accepted: Some(Version {
            epoch: 2,
            term: 3,
            batch: serial as i64,
        }),
        mirrored: (3, serial),
        ..Checkpoint::beginning(identity)
    }
}

/// The suite. `new_place` makes an empty place.
fn conforms<P: StorePlace>(new_place: impl Fn() -> P) {
    is_empty_at_first(&new_place());
    keeps_the_last_commit(&new_place());
    keeps_a_commit_through_a_crash(&new_place());
    keeps_a_large_checkpoint(&new_place());
    keeps_one_of_concurrent_commits(&new_place());
}

fn is_empty_at_first(place: &impl StorePlace) {
    assert_eq!(place.open().load().unwrap(), None);
    // Opening alone stores nothing.
    assert_eq!(place.open().load().unwrap(), None);
}

fn keeps_the_last_commit(place: &impl StorePlace) {
    {
        let store = place.open();
        for serial in 1..=3 {
            store.commit(&checkpoint(serial)).unwrap();
            assert_eq!(store.load().unwrap(), Some(checkpoint(serial)));
        }
        // Which of two is newer is not the store's to judge.
        store.commit(&checkpoint(2)).unwrap();
    }
    assert_eq!(place.open().load().unwrap(), Some(checkpoint(2)));
}

fn keeps_a_commit_through_a_crash(place: &impl StorePlace) {
    let store = place.open();
    for serial in 1..=20 {
        store.commit(&checkpoint(serial)).unwrap();
        let left = place.after_crash();
        assert_eq!(left.open().load().unwrap(), Some(checkpoint(serial)));
    }
}

fn keeps_a_large_checkpoint(place: &impl StorePlace) {
    let mut large = checkpoint(1);
    large.low_water_by_transaction = (0..20_000).map(|id| (id, Position(id as i64))).collect();
    place.open().commit(&large).unwrap();
    assert_eq!(place.open().load().unwrap(), Some(large));
}

fn keeps_one_of_concurrent_commits(place: &impl StorePlace) {
    let store = place.open();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for serial in 1..=25 {
                    store.commit(&checkpoint(thread * 100 + serial)).unwrap();
                    assert!(store.load().unwrap().is_some());
                }
            });
        }
    });
    let last = store.load().unwrap().unwrap();
    assert!(last.serial % 100 == 25, "{}", last.serial);
    assert_eq!(last, checkpoint(last.serial));
}

#[test]
fn the_store_on_disk_conforms() {
    conforms(|| tempfile::tempdir().unwrap());
}

#[test]
fn the_tests_store_in_memory_conforms() {
    conforms(Arc::<MemoryStore>::default);
}
