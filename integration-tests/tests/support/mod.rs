//! What the end-to-end tests share: a folder of manifests on a node of its own.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_integration_tests::containerd::Release;
use coracle_integration_tests::node::{Node, Options};
use coracle_integration_tests::{Executables, example_image, target_dir};
use serde_json::Value;

pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A node on an empty folder.
pub(crate) struct Fixture {
    pub(crate) node: Node,
    pub(crate) marks: PathBuf,
}

impl Fixture {
    /// On the runtime that `CORACLE_TEST_RUNTIME` names; ours if it names none.
    pub(crate) fn start(name: &str) -> Self {
        let containerd = Release::of_environment();
        Self::start_with(name, Options { containerd, ..Options::default() })
    }

    pub(crate) fn start_with(name: &str, options: Options) -> Self {
        let executables = Executables::of_this_build();
        let base = target_dir().join(name);
        let _ = std::fs::remove_dir_all(&base);
        let (manifests, marks) = (base.join("manifests"), base.join("marks"));
        std::fs::create_dir_all(&manifests).unwrap();
        std::fs::create_dir_all(&marks).unwrap();
        let archive = base.join("example.tar");
        example_image::write(&executables.example, &archive).unwrap();
        let node = Node::start_with(&executables, name, &manifests, &archive, options).unwrap();
        Self { node, marks }
    }

    /// Puts a file into the folder in one step.
    pub(crate) fn put(&self, file: &str, text: &str) {
        put(&self.node.manifests, file, text);
    }

    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.node.manifests.join(file)).unwrap();
    }

    /// The pod whose name in its manifest is `name`.
    pub(crate) fn pod(&self, name: &str) -> Option<Value> {
        let prefix = format!("{name}-");
        let is_meant =
            |pod: &Value| pod["metadata"]["name"].as_str().is_some_and(|full| full.starts_with(&prefix));
        self.node.pods().ok()?.into_iter().find(is_meant)
    }

    /// Waits until the pod's JSON fulfils the predicate and returns it.
    pub(crate) fn wait_pod(
        &mut self,
        name: &str,
        what: &str,
        mut is_so: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut found = Value::Null;
        let prefix = format!("{name}-");
        self.node
            .wait(what, LIMIT, |node| {
                let pods = node.pods()?;
                let pod = pods.into_iter().find(|pod| {
                    pod["metadata"]["name"].as_str().is_some_and(|full| full.starts_with(&prefix))
                });
                let fulfilled = pod.as_ref().is_some_and(&mut is_so);
                found = pod.unwrap_or_default();
                Ok(fulfilled)
            })
            .unwrap();
        found
    }

    /// What the pod's containers have logged, as the file has it.
    pub(crate) fn log_of(&self, name: &str) -> String {
        let entries = std::fs::read_dir(self.node.disk.join("logs/containers")).unwrap();
        let links = entries.map(|entry| entry.unwrap().path());
        let prefix = format!("{name}-");
        let own = links.filter(|link| link.file_name().unwrap().to_string_lossy().starts_with(&prefix));
        own.map(|link| std::fs::read_to_string(link).unwrap()).collect()
    }

    pub(crate) fn wait_gone(&mut self) {
        self.node.wait("all pods are gone", LIMIT, |node| Ok(node.pods()?.is_empty())).unwrap();
    }

    /// Removes every manifest, waits until nothing is left of the pods, and stops the node.
    pub(crate) fn finish(mut self) {
        for entry in std::fs::read_dir(&self.node.manifests).unwrap() {
            let _ = std::fs::remove_file(entry.unwrap().path());
        }
        self.wait_gone();
        self.node
            .wait("nothing is left of the pods", LIMIT, |node| {
                let left = node.leftovers();
                if !left.is_empty() {
                    std::fs::write(node.disk.join("leftovers"), left.join("\n"))?;
                }
                Ok(left.is_empty())
            })
            .unwrap_or_else(|error| panic!("{error}\nleft:\n{}", self.node.leftovers().join("\n")));
        self.node.stop().unwrap();
    }
}

pub(crate) fn put(folder: &Path, file: &str, text: &str) {
    let draft = folder.join(format!(".{file}"));
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(&draft, folder.join(file)).unwrap();
}

/// A pod with one container that runs the example program with these arguments.
pub(crate) fn pod(name: &str, arguments: &[&str], more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  hostNetwork: true\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {}\n    args: {}\n{more}",
        example_image::NAME,
        serde_json::to_string(arguments).unwrap(),
    )
}

pub(crate) fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && pod["status"]["containerStatuses"][0]["ready"] == true
}
