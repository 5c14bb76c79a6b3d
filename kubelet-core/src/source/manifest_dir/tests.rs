//! A real folder under inotify: what is written into it comes out, and nothing else does.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::objects::ObjectSource as _;

const DEADLINE: Duration = Duration::from_secs(20);

struct Folder {
    root: TempDir,
    source: ManifestDir,
    pods: watch::Receiver<PodSet>,
    errors: watch::Receiver<Arc<Vec<FileError>>>,
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
    )
}

impl Folder {
    async fn start(prepare: impl FnOnce(&Path)) -> Self {
        let root = TempDir::new().unwrap();
        prepare(root.path());
        let source = ManifestDir::start(ManifestDirConfig {
            path: root.path().join("manifests"),
            node_name: "Node".into(),
            allow_object_references: true,
            clock: Clock::system(),
        })
        .await
        .unwrap();
        let (pods, errors) = (source.pods(), source.errors());
        Self { root, source, pods, errors }
    }

    async fn with_folder() -> Self {
        Self::start(|root| fs::create_dir(root.join("manifests")).unwrap()).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("manifests").join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.pods.borrow().values().map(|pod| pod.metadata.name.clone()).collect();
        names.sort();
        names
    }

    async fn until_pods(&mut self, expected: &[&str]) {
        let mut pods = self.pods.clone();
        let wait = pods.wait_for(|pods| {
            let mut names: Vec<_> = pods.values().map(|pod| pod.metadata.name.as_str()).collect();
            names.sort_unstable();
            names == expected
        });
        let result = tokio::time::timeout(DEADLINE, wait).await.map(|result| result.is_ok());
        assert!(
            result.is_ok(),
            "expected {expected:?}, have {:?}, errors {:?}",
            self.names(),
            self.errors.borrow()
        );
    }

    async fn until_error(&mut self, expected: &str) {
        let mut errors = self.errors.clone();
        let wait = errors.wait_for(|errors| {
            let text: Vec<_> = errors.iter().map(ToString::to_string).collect();
            if expected.is_empty() { text.is_empty() } else { text.iter().any(|e| e.contains(expected)) }
        });
        let result = tokio::time::timeout(DEADLINE, wait).await.map(|result| result.is_ok());
        assert!(result.is_ok(), "expected {expected:?}, have {:?}", self.errors.borrow());
    }
}

#[tokio::test]
async fn files_come_change_and_go() {
    let mut folder = Folder::start(|root| {
        fs::create_dir(root.join("manifests")).unwrap();
        fs::write(root.join("manifests/a.yaml"), pod("a", "i")).unwrap();
    })
    .await;
    assert_eq!(folder.names(), ["a-node"], "the folder is read before start returns");
    fs::write(folder.path("b.yaml"), pod("b", "i")).unwrap();
    folder.until_pods(&["a-node", "b-node"]).await;
    let uid = folder.pods.borrow().values().next().unwrap().metadata.uid.clone();
    for ignored in [".c.yaml", "c.yaml~", ".c.yaml.swp", "c.swp"] {
        fs::write(folder.path(ignored), pod("c", "i")).unwrap();
    }
    fs::create_dir(folder.path("sub")).unwrap();
    fs::write(folder.path("sub/d.yaml"), pod("d", "i")).unwrap();
    fs::write(folder.path("b.yaml"), pod("b", "other")).unwrap();
    let mut pods = folder.pods.clone();
    let changed = pods.wait_for(|pods| pods.values().any(|pod| pod.spec.containers[0].image == "other"));
    tokio::time::timeout(DEADLINE, changed).await.unwrap().unwrap();
    assert_eq!(folder.names(), ["a-node", "b-node"]);
    assert!(!uid.is_empty());
    fs::remove_file(folder.path("a.yaml")).unwrap();
    fs::rename(folder.path("b.yaml"), folder.root.path().join("b.yaml")).unwrap();
    folder.until_pods(&[]).await;
}

#[tokio::test]
async fn a_pod_that_is_not_changed_is_the_same_object() {
    let mut folder = Folder::with_folder().await;
    fs::write(folder.path("a.yaml"), pod("a", "i")).unwrap();
    folder.until_pods(&["a-node"]).await;
    let before = folder.pods.borrow_and_update().clone();
    // The same content in another form, with a second pod that shows that it was read.
    fs::write(folder.path("a.yaml"), format!("# comment\n{}---\n{}", pod("a", "i"), pod("b", "i"))).unwrap();
    folder.until_pods(&["a-node", "b-node"]).await;
    let (uid, kept) = before.iter().next().unwrap();
    assert!(Arc::ptr_eq(kept, &folder.pods.borrow()[uid]));
}

#[tokio::test]
async fn a_rewrite_in_any_style_never_stops_the_pod() {
    let mut folder = Folder::with_folder().await;
    fs::write(folder.path("a.yaml"), pod("a", "i")).unwrap();
    folder.until_pods(&["a-node"]).await;
    folder.pods.borrow_and_update();
    // Truncated, written in two halves with a close between, with an editor's rename, removed and made anew.
    fs::write(folder.path("a.yaml"), "").unwrap();
    fs::write(folder.path("a.yaml"), &pod("a", "i")[..40]).unwrap();
    folder.until_error("a.yaml").await;
    fs::rename(folder.path("a.yaml"), folder.path("a.yaml~")).unwrap();
    fs::write(folder.path("a.yaml"), pod("a", "i")).unwrap();
    folder.until_error("").await;
    fs::remove_file(folder.path("a.yaml")).unwrap();
    fs::write(folder.path("a.yaml"), pod("a", "i")).unwrap();
    // A marker that comes after all of it has been seen.
    fs::write(folder.path("z.yaml"), pod("z", "i")).unwrap();
    let mut seen = Vec::new();
    while !folder.names().contains(&"z-node".to_owned()) {
        tokio::time::timeout(DEADLINE, folder.pods.changed()).await.unwrap().unwrap();
        seen.push(folder.names());
    }
    assert_eq!(seen, [["a-node", "z-node"]]);
}

#[tokio::test]
async fn bad_files_say_why_and_harm_no_other() {
    let mut folder = Folder::with_folder().await;
    fs::write(folder.path("bad.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {}").unwrap();
    fs::write(folder.path("good.yaml"), pod("good", "i")).unwrap();
    folder.until_pods(&["good-node"]).await;
    folder.until_error("bad.yaml: Pod \"b\" is invalid: spec.containers: Required value").await;
    fs::write(folder.path("twice.yaml"), pod("good", "other")).unwrap();
    let first = folder.path("good.yaml").display().to_string();
    folder
        .until_error(&format!(
            "twice.yaml: pod default/good-node is already defined in {first}; the one of this file is ignored"
        ))
        .await;
    assert_eq!(folder.pods.borrow().values().next().unwrap().spec.containers[0].image, "i");
    fs::remove_file(folder.path("good.yaml")).unwrap();
    let mut pods = folder.pods.clone();
    let takes_over = pods.wait_for(|pods| pods.values().any(|pod| pod.spec.containers[0].image == "other"));
    tokio::time::timeout(DEADLINE, takes_over).await.unwrap().unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    fs::File::create(folder.path("huge")).unwrap().set_len(MAX_BYTES as u64 + 1).unwrap();
    folder.until_error("huge: larger than 10 MiB").await;
    folder.until_error("fifo: neither a file nor a link to one").await;
    fs::write(folder.path("empty"), "").unwrap();
    folder.until_error("empty: the file is empty; remove it if nothing of it should run").await;
}

#[tokio::test]
async fn the_folder_may_appear_later_be_replaced_and_vanish() {
    let mut folder = Folder::start(|_| ()).await;
    folder.until_error("the folder does not exist; its pods start once it does").await;
    fs::create_dir(folder.path("")).unwrap();
    fs::write(folder.path("a.yaml"), pod("a", "i")).unwrap();
    folder.until_pods(&["a-node"]).await;
    folder.until_error("").await;
    // Another folder in its place: what both hold runs on.
    let other = folder.root.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a.yaml"), pod("a", "i")).unwrap();
    fs::write(other.join("b.yaml"), pod("b", "i")).unwrap();
    fs::rename(folder.path(""), folder.root.path().join("old")).unwrap();
    fs::rename(&other, folder.path("")).unwrap();
    let mut seen = Vec::new();
    while folder.names() != ["a-node", "b-node"] {
        tokio::time::timeout(DEADLINE, folder.pods.changed()).await.unwrap().unwrap();
        seen.push(folder.names());
    }
    assert!(seen.iter().all(|names| names.contains(&"a-node".to_owned())), "{seen:?}");
    fs::write(folder.root.path().join("old/c.yaml"), pod("c", "i")).unwrap();
    fs::write(folder.path("d.yaml"), pod("d", "i")).unwrap();
    folder.until_pods(&["a-node", "b-node", "d-node"]).await;
    fs::remove_dir_all(folder.path("")).unwrap();
    folder.until_pods(&[]).await;
    folder.until_error("the folder does not exist").await;
}

#[tokio::test]
async fn a_file_in_the_folder_s_place_is_an_error_until_a_folder_is() {
    let mut folder = Folder::start(|root| fs::write(root.join("manifests"), "x").unwrap()).await;
    folder.until_error("cannot watch the folder: Not a directory").await;
    fs::remove_file(folder.root.path().join("manifests")).unwrap();
    fs::create_dir(folder.path("")).unwrap();
    fs::write(folder.path("a.yaml"), pod("a", "i")).unwrap();
    folder.until_pods(&["a-node"]).await;
}

#[tokio::test]
async fn links_are_files_and_a_swapped_link_is_a_change() {
    // The layout of a ConfigMap volume: files that link through `..data` to a folder that is swapped.
    let mut folder = Folder::with_folder().await;
    for (version, image) in [("..1", "one"), ("..2", "two")] {
        fs::create_dir(folder.path(version)).unwrap();
        fs::write(folder.path(version).join("a.yaml"), pod("a", image)).unwrap();
    }
    symlink("..1", folder.path("..data")).unwrap();
    symlink("..data/a.yaml", folder.path("a.yaml")).unwrap();
    folder.until_pods(&["a-node"]).await;
    symlink("..2", folder.path("..new")).unwrap();
    fs::rename(folder.path("..new"), folder.path("..data")).unwrap();
    let mut pods = folder.pods.clone();
    let swapped = pods.wait_for(|pods| pods.values().all(|pod| pod.spec.containers[0].image == "two"));
    tokio::time::timeout(DEADLINE, swapped).await.unwrap().unwrap();
    fs::write(folder.root.path().join("outside"), pod("b", "i")).unwrap();
    fs::hard_link(folder.root.path().join("outside"), folder.path("b.yaml")).unwrap();
    folder.until_pods(&["a-node", "b-node"]).await;
}

#[tokio::test]
async fn config_maps_and_secrets_change_without_a_word_to_the_pods() {
    let mut folder = Folder::with_folder().await;
    let map = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{k: {value}}}\n")
    };
    fs::write(folder.path("a.yaml"), format!("{}---\n{}", pod("a", "i"), map("one"))).unwrap();
    folder.until_pods(&["a-node"]).await;
    folder.pods.borrow_and_update();
    let objects = folder.source.objects();
    let mut changes = objects.changes();
    assert_eq!(objects.config_map("default", "m").unwrap().data["k"], "one");
    assert!(objects.config_map("other", "m").is_none());
    fs::write(folder.path("a.yaml"), format!("{}---\n{}", pod("a", "i"), map("two"))).unwrap();
    tokio::time::timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
    assert_eq!(objects.config_map("default", "m").unwrap().data["k"], "two");
    assert!(!folder.pods.has_changed().unwrap());
    fs::write(folder.path("s.yaml"), "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {p: w}")
        .unwrap();
    tokio::time::timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
    assert_eq!(objects.secret("default", "s").unwrap().data["p"].0, b"w");
}
