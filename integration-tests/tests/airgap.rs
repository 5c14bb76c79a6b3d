//! Images without a network: archives of a folder are loaded beside the node's run, and what they brought stays.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use std::path::Path;
use std::process::Command;

use coracle_integration_tests::node::{Node, Options};
use coracle_integration_tests::target_dir;
use coracle_integration_tests::{Executables, example_image};
use coracle_runtime::testing::{LayerCompression, Registry, RegistryOptions, Tarball, TestImage};
use support::{Fixture, LIMIT, is_running, pod};

/// Whether the image of the example is there.
fn has_image(node: &Node) -> bool {
    let (name, _) = example_image::NAME.rsplit_once(':').unwrap();
    node.ask(&["images", "ls"]).unwrap().contains(name)
}

/// An archive that takes as long to load as a test wants: nothing comes out of it until it is written to.
fn endless(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn an_archive_that_takes_long_keeps_neither_the_node_nor_its_end_waiting() {
    let archives = target_dir().join(format!("archives-{}", std::process::id()));
    std::fs::create_dir_all(&archives).unwrap();
    endless(&archives.join("a-large.tar"));
    let flags = vec![format!("--images-dir={}", archives.display())];
    let mut fixture = Fixture::start_with("airgap-slow", Options { flags, ..Options::default() });
    std::fs::copy(fixture.node.disk.join("data/agent/images/example.tar"), archives.join("example.tar"))
        .unwrap();
    fixture.node.terminate_agent().unwrap();
    fixture.node.start_agent().unwrap();
    fixture.put("waits.yaml", &pod("waits", &["sleep"], ""));
    fixture.wait_pod("waits", "it has no image yet", |pod| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    });
    // The large one proves to be none, which makes way for the next.
    std::fs::write(archives.join("a-large.tar"), "no archive").unwrap();
    fixture.wait_pod("waits", "its image has come", is_running);
    assert!(fixture.node.log().contains("a-large.tar"), "{}", fixture.node.log());

    // It is remembered although another one is loaded for ever.
    let remembered = std::fs::read_to_string(fixture.node.disk.join("data/images-loaded.json")).unwrap();
    assert!(remembered.contains("example.tar"), "{remembered}");
    fixture.finish();
    std::fs::remove_dir_all(&archives).unwrap();
}

/// A pod of this image, by a Secret if one is named.
fn private(name: &str, image: &str, policy: &str, secret: Option<&str>) -> String {
    let secret =
        secret.map(|secret| format!("  imagePullSecrets: [{{name: {secret}}}]\n")).unwrap_or_default();
    let more = format!("    imagePullPolicy: {policy}\n{secret}");
    pod(name, &["sleep"], &more).replace(example_image::NAME, image)
}

#[test]
fn a_private_image_is_for_who_has_its_secret_also_without_the_registry() {
    let user = Some(("robot".to_owned(), "hunter2".to_owned()));
    let registry = Registry::start(RegistryOptions { user, ..RegistryOptions::default() }).unwrap();
    let program = std::fs::read(Executables::of_this_build().example).unwrap();
    let image = TestImage::new()
        .layer(&Tarball::new().executable("example", &program).finish(), LayerCompression::Gzip)
        .config(serde_json::json!({"Entrypoint": ["/example"]}));
    let digest = registry.push("private", "1", &image);
    let name = registry.name("private:1");
    let mut fixture = Fixture::start_with("private", Options { on_host_network: true, ..Options::default() });
    let login = serde_json::json!({"auths": {registry.host(): {"username": "robot", "password": "hunter2"}}});
    for secret in ["key", "copy"] {
        let text = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": login.to_string()}});
        fixture.put(&format!("secret-{secret}.json"), &text.to_string());
    }
    fixture.put("owner.yaml", &private("owner", &name, "IfNotPresent", Some("key")));
    fixture.wait_pod("owner", "it has the Secret", is_running);
    let waits_for = |fixture: &mut Fixture, pod: &str, reasons: &[&str]| {
        fixture.wait_pod(pod, "the image is not for it", |pod| {
            let reason = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
            reason.is_some_and(|reason| reasons.contains(&reason))
        });
    };
    fixture.put("stranger.yaml", &private("stranger", &name, "IfNotPresent", None));
    waits_for(&mut fixture, "stranger", &["ErrImagePull", "ImagePullBackOff"]);
    fixture.put("never.yaml", &private("never", &name, "Never", None));
    waits_for(&mut fixture, "never", &["ErrImageNeverPull"]);
    // Nor does it help to name what is present by its digest.
    let by_digest = format!("{}@{digest}", registry.name("private"));
    fixture.put("digest.yaml", &private("digest", &by_digest, "IfNotPresent", None));
    waits_for(&mut fixture, "digest", &["ErrImagePull", "ImagePullBackOff"]);

    drop(registry);
    fixture.node.terminate_agent().unwrap();
    ["owner", "stranger", "never", "digest"].iter().for_each(|pod| fixture.remove(&format!("{pod}.yaml")));
    fixture.node.start_agent().unwrap();
    fixture.wait_gone();
    fixture.put("again.yaml", &private("again", &name, "IfNotPresent", Some("key")));
    fixture.put("alike.yaml", &private("alike", &name, "Never", Some("copy")));
    fixture.put("stranger.yaml", &private("stranger", &name, "IfNotPresent", None));
    fixture.wait_pod("again", "what is recorded outlives the run", is_running);
    fixture.wait_pod("alike", "another Secret of the same login serves", is_running);
    waits_for(&mut fixture, "stranger", &["ErrImagePull", "ImagePullBackOff"]);
    fixture.finish();
}

#[test]
fn what_came_from_the_folder_stays_until_the_archive_is_taken_away() {
    let mut fixture = Fixture::start("airgap-pinned");
    assert!(has_image(&fixture.node));
    fixture.node.ask(&["images", "prune"]).unwrap();
    assert!(has_image(&fixture.node), "what nobody uses but cannot be fetched again stays");
    fixture.node.kill_agent().unwrap();
    let data = fixture.node.disk.join("data").display().to_string();
    let listed = fixture.node.command(&["images", "--data-dir", &data, "ls"]).output().unwrap();
    let (name, _) = example_image::NAME.rsplit_once(':').unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains(name), "{listed:?}");
    assert!(String::from_utf8_lossy(&listed.stderr).contains("no agent runs"), "{listed:?}");

    fixture.node.start_agent().unwrap();
    fixture.node.ask(&["images", "prune"]).unwrap();
    assert!(has_image(&fixture.node), "it stays pinned over a restart");
    fixture.node.ask(&["images", "prune", "--all"]).unwrap();
    assert!(!has_image(&fixture.node));

    fixture.node.terminate_agent().unwrap();
    fixture.node.start_agent().unwrap();
    fixture.node.wait("the archive is loaded again", LIMIT, |node| Ok(has_image(node))).unwrap();
    std::fs::remove_file(fixture.node.disk.join("data/agent/images/example.tar")).unwrap();
    fixture.node.terminate_agent().unwrap();
    fixture.node.start_agent().unwrap();
    fixture.node.ask(&["images", "prune"]).unwrap();
    assert!(!has_image(&fixture.node), "nothing holds it any more");
    fixture.finish();
}
