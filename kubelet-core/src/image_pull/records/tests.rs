//! The records on a real file system.

use std::os::unix::fs::PermissionsExt as _;

use super::super::access::PullSecret;
use super::*;

const NOW: Time = Time(1_700_000_000);

fn secret(name: &str) -> Access {
    let text = |text: &str| text.to_owned();
    let (uid, namespace, credential_hash) = (text("u"), text("d"), text("h"));
    Access::by(Some(PullSecret { uid, namespace, name: text(name), credential_hash }))
}

/// Names and times of all files, which change with each write.
fn files(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let folders = ["pulling", "pulled"].map(|name| folder.join(name));
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
    entries.map(|e| e.unwrap()).map(|e| (e.path(), e.metadata().unwrap().modified().unwrap())).collect()
}

#[tokio::test]
async fn a_pull_is_known_as_begun_and_then_as_done() {
    let root = tempfile::tempdir().unwrap();
    let records = PullRecords::new(&root.path().join("image_manager"));
    assert!(matches!(records.look_up("a:1", "sha256:1"), Known::Nothing));
    assert!(!root.path().join("image_manager").exists(), "looking writes nothing");
    let intent = records.begin("a:1").await.unwrap();
    let second = records.begin("a:1").await.unwrap();
    assert!(matches!(records.look_up("a:1", "sha256:1"), Known::Begun));
    assert!(matches!(records.look_up("a:2", "sha256:1"), Known::Nothing));
    let folder = root.path().join("image_manager");
    let path = folder.join("pulling").join(file_name("a:1"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    intent.pulled("sha256:1", Some(secret("s")), NOW).await;
    assert!(path.exists(), "another pull of it goes on");
    second.failed().await;
    assert_eq!(files(&folder).len(), 1, "only the record is left");
    let Known::Pulled(record) = records.look_up("a:1", "sha256:1") else { panic!("it is recorded") };
    assert_eq!(record.image_ref, "sha256:1");
    // The same once more: nothing of the record is written.
    let before = files(&folder);
    records.begin("a:1").await.unwrap().pulled("sha256:1", Some(secret("s")), NOW).await;
    assert_eq!(files(&folder), before);
    records.grant("a:1", "sha256:1", secret("t"), NOW).await.unwrap();
    assert_ne!(files(&folder), before);
}

#[tokio::test]
async fn a_pull_that_brought_nothing_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let records = PullRecords::new(root.path());
    records.begin("a:1").await.unwrap().failed().await;
    assert!(files(root.path()).is_empty());
    assert!(matches!(records.look_up("a:1", "sha256:1"), Known::Nothing));
}

#[tokio::test]
async fn a_pull_that_is_given_up_after_it_came_is_recorded() {
    let root = tempfile::tempdir().unwrap();
    let records = PullRecords::new(root.path());
    drop(records.begin("a:1").await.unwrap().pulled("sha256:1", Some(secret("s")), NOW));
    // At any time until then it is not taken for preloaded.
    while !matches!(records.look_up("a:1", "sha256:1"), Known::Pulled(_)) {
        assert!(matches!(records.look_up("a:1", "sha256:1"), Known::Begun | Known::Pulled(_)));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn torn_files_are_known_as_such_and_replaced() {
    let root = tempfile::tempdir().unwrap();
    let records = PullRecords::new(root.path());
    records.grant("a:1", "sha256:1", secret("s"), NOW).await.unwrap();
    let path = root.path().join("pulled").join(file_name("sha256:1"));
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 1, whole.len() / 2] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(records.look_up("a:1", "sha256:1"), Known::Unreadable));
    }
    records.grant("a:1", "sha256:1", secret("s"), NOW).await.unwrap();
    assert!(matches!(records.look_up("a:1", "sha256:1"), Known::Pulled(_)));
    // A record under the name of another is none.
    std::fs::write(root.path().join("pulled").join(file_name("sha256:2")), &whole).unwrap();
    assert!(matches!(records.look_up("a:1", "sha256:2"), Known::Nothing));
    let intent = root.path().join("pulling").join(file_name("b:1"));
    std::fs::create_dir_all(intent.parent().unwrap()).unwrap();
    std::fs::write(intent, "{").unwrap();
    assert!(matches!(records.look_up("b:1", "sha256:3"), Known::Unreadable));
    assert!(records.unfinished().is_empty());
}

#[tokio::test]
async fn records_go_with_their_images() {
    let root = tempfile::tempdir().unwrap();
    let records = PullRecords::new(root.path());
    for id in ["sha256:1", "sha256:2", "sha256:3"] {
        records.grant("a:1", id, secret("s"), NOW).await.unwrap();
    }
    let foreign = root.path().join("pulled/notes");
    std::fs::write(&foreign, "not ours").unwrap();
    let before = records.recorded();
    records.grant("a:1", "sha256:2", secret("s"), NOW).await.unwrap();
    let present = || ["sha256:1", "sha256:4"].into_iter();
    records.prune(&before, present());
    assert!(matches!(records.look_up("a:1", "sha256:2"), Known::Pulled(_)), "it was pulled meanwhile");
    records.prune(&records.recorded(), present());
    assert!(matches!(records.look_up("a:1", "sha256:1"), Known::Pulled(_)));
    assert!(matches!(records.look_up("a:1", "sha256:2"), Known::Nothing));
    assert!(matches!(records.look_up("a:1", "sha256:3"), Known::Nothing));
    assert!(foreign.exists());
}
