//! Registries that lie, cut, climb, swell or stall: each is told by one event of its pod and harms no other.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use coracle_integration_tests::node::Options;
use coracle_integration_tests::{Executables, example_image, target_dir};
use coracle_runtime::testing::{Fault, LayerCompression, Registry, RegistryOptions, Tarball, TestImage};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use support::{Fixture, LIMIT, is_running, pod};

/// An image whose one layer is this tar.
fn image(tar: Tarball) -> TestImage {
    TestImage::new().layer(&tar.finish(), LayerCompression::Zstd)
}

/// Pushes what is broken and says what a pod of it must be told.
fn push_broken(registry: &Registry) -> Vec<(&'static str, &'static str)> {
    // Content of its own for each, or one would be served from what another brought.
    let small = |content: u8| Tarball::new().file("file", &[content; 4096]);
    registry.push("wrong-digest", "1", &image(small(1)).damage(0, |blob| blob[20] ^= 1));
    registry.push("truncated", "1", &image(small(2)).damage(0, |blob| blob.truncate(blob.len() / 2)));
    registry.push("wrong-diff-id", "1", &image(small(3)).wrong_diff_id(0));
    let up = "../".repeat(20);
    registry.push("climbs", "1", &image(Tarball::new().file(&format!("{up}tmp/coracle-climbed"), b"")));
    let link = Tarball::new().symlink("link", &format!("{up}tmp")).file("link/coracle-climbed", b"");
    registry.push("links-out", "1", &image(link));
    // A few kilobytes that unpack to more than the disk holds.
    let swells = (0..64).fold(Tarball::new(), |tar, n| tar.file(&format!("zeros{n}"), &vec![0; 4 << 20]));
    registry.push("swells", "1", &image(swells));
    registry.push("stalls", "1", &image(small(4)));
    // One for each try.
    (0..500).for_each(|_| registry.fault("/v2/stalls/", Fault::Stall(0)));
    vec![
        ("wrong-digest", "digest"),
        ("truncated", "digest"),
        ("wrong-diff-id", "unpacks to"),
        ("climbs", "climbs out of its root"),
        ("links-out", "climbs out of its root"),
        ("swells", "no space left for images"),
        ("stalls", "the registry stalls"),
    ]
}

#[test]
fn images_that_are_broken_are_told_and_harm_no_other() {
    // Small, so that an image that swells would fill it.
    let disk = target_dir().join("bad-images");
    std::fs::create_dir_all(&disk).unwrap();
    mount("tmpfs", &disk, "tmpfs", MountFlags::empty(), c"size=128m").unwrap();
    let registry = Registry::start(RegistryOptions::default()).unwrap();
    let flags =
        vec!["--image-pull-progress-deadline=1s".to_owned(), "--max-parallel-image-pulls=8".to_owned()];
    let options = Options { flags, on_host_network: true, ..Options::default() };
    let mut fixture = Fixture::start_with("bad-images", options);
    fixture.put("steady.yaml", &pod("steady", &["sleep"], ""));
    fixture.wait_pod("steady", "a good pod runs", is_running);
    let broken = push_broken(&registry);
    for (name, _) in &broken {
        let text =
            pod(name, &["sleep"], "").replace(example_image::NAME, &registry.name(&format!("{name}:1")));
        fixture.put(&format!("{name}.yaml"), &text);
    }
    for (name, words) in &broken {
        let is_told = |events: &str| {
            let mut lines = events.lines().filter(|line| line.contains(&format!("{name}-")));
            lines.any(|line| line.contains("Failed to pull image") && line.contains(words))
        };
        let what = format!("{name} is told of with {words:?}");
        let told = fixture.node.wait(&what, LIMIT, |node| Ok(is_told(&node.ask(&["events"])?)));
        told.unwrap_or_else(|error| panic!("{error}\n{}", fixture.node.ask(&["events"]).unwrap()));
        fixture.wait_pod(name, "its container waits", |pod| {
            let reason = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
            reason.is_some_and(|reason| ["ErrImagePull", "ImagePullBackOff"].contains(&reason))
        });
    }
    assert!(!std::path::Path::new("/tmp/coracle-climbed").exists());
    // A good image of the same registry is pulled and runs beside them.
    let program = std::fs::read(Executables::of_this_build().example).unwrap();
    let good = TestImage::new()
        .layer(&Tarball::new().executable("example", &program).finish(), LayerCompression::Gzip)
        .config(serde_json::json!({"Entrypoint": ["/example"]}));
    registry.push("good", "1", &good);
    let text = pod("good", &["sleep"], "").replace(example_image::NAME, &registry.name("good:1"));
    fixture.put("good.yaml", &text);
    fixture.wait_pod("good", "a good image runs", is_running);
    fixture.wait_pod("steady", "the first pod still runs", is_running);
    fixture.finish();
    let _ = unmount(&disk, UnmountFlags::DETACH);
}
