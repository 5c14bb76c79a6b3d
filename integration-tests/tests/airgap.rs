//! Images without a network: archives of a folder are loaded beside the node's run, and what they brought stays.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use std::path::Path;
use std::process::Command;

use coracle_integration_tests::example_image;
use coracle_integration_tests::node::{Node, Options};
use coracle_integration_tests::target_dir;
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
