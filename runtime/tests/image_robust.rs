//! Images and everything that goes wrong around them: hostile layers, full disks, dying processes, power cuts.
// Also outside of test functions, where clippy does not see that it is a test.
#![allow(clippy::unwrap_used)]

mod image_support;

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_cri::v1::{AuthConfig, ImageFilter, RemoveImageRequest};
use coracle_cri::v1::{
    ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest,
};
use coracle_cri::{Code, ImageService};
use coracle_runtime::image::{FailureKind, ImageError, ImageStore, Limits};
use coracle_runtime::testing::{Fault, LayerCompression, Registry, RegistryOptions, Tarball, TestImage};
use image_support::{base, open, options, upper};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;

fn registry() -> Registry {
    Registry::start(RegistryOptions::default()).unwrap()
}

fn image() -> TestImage {
    TestImage::new().layer(&base(), LayerCompression::Gzip).layer(&upper(), LayerCompression::Gzip)
}

/// Files of bytes that do not compress, below the size where one write says it all.
fn random_files(count: usize, size: usize) -> Tarball {
    let mut seed = 0x1234_5678_u32;
    let mut content = move || -> Vec<u8> {
        let words = (0..size / 4).flat_map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            seed.to_le_bytes()
        });
        words.collect()
    };
    (0..count).fold(Tarball::new(), |tar, number| tar.file(&format!("file{number}"), &content()))
}

fn count(dir: &Path, folder: &str) -> usize {
    fs::read_dir(dir.join("images").join(folder)).unwrap().count()
}

fn nothing_left(dir: &Path) {
    for folder in ["tmp", "layers", "records", "configs"] {
        assert_eq!(count(dir, folder), 0, "{folder}");
    }
}

fn cause(error: &ImageError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// A small file system of its own that ends with its value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(path: &Path, options: &str, flags: MountFlags) -> Self {
        fs::create_dir_all(path).unwrap();
        mount("tmpfs", path, "tmpfs", flags, CString::new(options).unwrap().as_c_str()).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn hostile_layers_are_refused_by_name() {
    let registry = registry();
    let outside = tempfile::tempdir().unwrap();
    let up = format!("{}{}", "../".repeat(20), &outside.path().display().to_string()[1..]);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for (number, tar) in [
        Tarball::new().file(&format!("{up}/x"), b""),
        Tarball::new().symlink("link", &up).file("link/x", b""),
        Tarball::new().hard_link("x", &format!("{up}/x")),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("hostile{number}");
        let image = TestImage::new().layer(&tar.finish(), LayerCompression::Gzip);
        registry.push(&name, "1", &image);
        let error = store.pull(&registry.name(&format!("{name}:1")), None, |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), Some(FailureKind::Refused), "{}", cause(&error));
        assert!(cause(&error).contains("climbs out of its root"), "{}", cause(&error));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        nothing_left(dir.path());
    }
}

#[tokio::test]
async fn a_layer_without_end_is_cut_off() {
    let registry = registry();
    let bomb = Tarball::new().file("zeros", &vec![0; 20 << 20]).finish();
    let tail = [Tarball::new().file("a", b"").finish(), vec![0; 20 << 20]].concat();
    let many = (0..2000).fold(Tarball::new(), |tar, n| tar.file(&format!("f{n}"), b"")).finish();
    for (name, tar, what) in [("bomb", &bomb, "bytes"), ("tail", &tail, "limit"), ("many", &many, "files")] {
        registry.push(name, "1", &TestImage::new().layer(tar, LayerCompression::Zstd));
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path());
        options.limits = Limits { bytes: 4 << 20, inodes: 1000, keep_free: 0 };
        let store = ImageStore::open(options).unwrap();
        let error = store.pull(&registry.name(&format!("{name}:1")), None, |_| {}).await.unwrap_err();
        assert_eq!(error.kind(), Some(FailureKind::Refused), "{}", cause(&error));
        assert!(cause(&error).contains(what), "{}", cause(&error));
        nothing_left(dir.path());
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_left_as_it_was() {
    let registry = registry();
    registry.push(
        "large",
        "1",
        &TestImage::new().layer(&random_files(12, 1 << 20).finish(), LayerCompression::Plain),
    );
    let packed = Tarball::new().file("zeros", &vec![7; 20 << 20]).finish();
    registry.push("packed", "1", &TestImage::new().layer(&packed, LayerCompression::Zstd));
    registry.push("small", "1", &image());
    let dir = tempfile::tempdir().unwrap();
    let _disk = Tmpfs::new(&dir.path().join("images"), "size=8m", MountFlags::empty());
    for keep_free in [0, 1 << 20] {
        let mut options = options(dir.path());
        options.limits.keep_free = keep_free;
        let store = ImageStore::open(options).unwrap();
        for name in ["large:1", "packed:1"] {
            let error = store.pull(&registry.name(name), None, |_| {}).await.unwrap_err();
            assert_eq!(error.kind(), Some(FailureKind::NoSpace), "{name}: {}", cause(&error));
            nothing_left(dir.path());
            assert_eq!(count(dir.path(), "ingest"), 0, "{name}: the disk must not stay full");
        }
        store.pull(&registry.name("small:1"), None, |_| {}).await.unwrap();
        store.remove(&registry.name("small:1")).await.unwrap();
    }
}

#[tokio::test]
async fn a_read_only_folder_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let _disk = Tmpfs::new(&dir.path().join("images"), "size=1m", MountFlags::RDONLY);
    let Err(error) = ImageStore::open(options(dir.path())) else { panic!("opened") };
    assert!(
        matches!(&error, ImageError::Store { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
    );
    assert!(error.to_string().contains("images"), "{error}");
}

/// Processes of the store in `dir`: the unpacker, by its argument, and the worker, its parent.
fn processes(dir: &Path) -> Option<(i32, i32)> {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let arguments: Vec<&str> = line.split('\0').collect();
        let store = dir.join("images").display().to_string();
        if arguments.get(1..3) != Some(&["image-worker", "unpack"][..])
            || arguments.get(3) != Some(&store.as_str())
        {
            continue;
        }
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        if let Some(parent) = parent.filter(|&parent: &i32| parent > 1) {
            return Some((parent, pid));
        }
    }
    None
}

async fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < until, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn killed_workers_and_unpackers_leave_nothing_and_are_made_up_for() {
    let registry = registry();
    let image = TestImage::new()
        .layer(&random_files(100, 20_000).finish(), LayerCompression::Gzip)
        .layer(&random_files(150, 20_000).finish(), LayerCompression::Zstd);
    registry.push("app", "1", &image);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = registry.name("app:1");
    let mut died = 0;
    for round in 0..20_u64 {
        let pull = store.pull(&name, None, |_| {});
        let killer = async {
            let (worker, unpacker) = wait_for("the worker", || processes(dir.path())).await;
            // A different moment in every round.
            tokio::time::sleep(Duration::from_millis(round * 3)).await;
            kill(if round % 2 == 0 { worker } else { unpacker });
        };
        let (pulled, ()) = tokio::join!(pull, killer);
        assert_eq!(count(dir.path(), "tmp"), 0, "round {round}");
        match pulled {
            Ok(image) => store.remove(&image.id).await.unwrap(),
            Err(error) => {
                assert_eq!(error.kind(), Some(FailureKind::Died), "{}", cause(&error));
                assert!(store.list().is_empty());
                died += 1;
            }
        }
    }
    assert!(died >= 5, "only {died} of 20 kills came in time");
    let pulled = store.pull(&name, None, |_| {}).await.unwrap();
    assert_eq!(fs::read_dir(&pulled.lower_dirs[0]).unwrap().count(), 150);
    assert_eq!((count(dir.path(), "ingest"), count(dir.path(), "tmp")), (0, 0));
}

#[tokio::test]
async fn the_unpacker_is_confined_to_the_store() {
    let registry = registry();
    let image = image();
    registry.push("app", "1", &image);
    registry.fault(&format!("/blobs/{}", image.layer_digests()[0]), Fault::Stall(100));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = registry.name("app:1");
    let pull = store.pull(&name, None, |_| {});
    let look = async {
        let root = dir.path().join("images");
        let (worker, unpacker) = wait_for("the confined unpacker", || {
            processes(dir.path()).filter(|(_, unpacker)| {
                fs::read_link(format!("/proc/{unpacker}/root")).is_ok_and(|seen| seen == root)
                    && fs::read_to_string(format!("/proc/{unpacker}/status"))
                        .is_ok_and(|status| status.contains("CapEff:\t000000008800001b"))
            })
        })
        .await;
        let status = |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status(unpacker).contains("NoNewPrivs:\t1"));
        // chown, dac_override, fowner, fsetid, mknod, setfcap and nothing else.
        assert!(status(unpacker).contains("CapEff:\t000000008800001b"), "{}", status(unpacker));
        assert!(status(unpacker).contains("CapBnd:\t000000008800001b"), "{}", status(unpacker));
        for namespace in ["mnt", "net"] {
            let own = fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
            assert_ne!(fs::read_link(format!("/proc/{unpacker}/ns/{namespace}")).unwrap(), own);
        }
        let mounts = fs::read_to_string(format!("/proc/{unpacker}/mountinfo")).unwrap();
        let options = mounts.lines().last().unwrap();
        assert!(["nosuid", "nodev", "noexec"].iter().all(|option| options.contains(option)), "{options}");
        wait_for("the confined worker", || {
            status(worker).contains("CapEff:\t0000000000000002").then_some(())
        })
        .await;
        assert!(status(worker).contains("NoNewPrivs:\t1"));
    };
    tokio::select! {
        pulled = pull => panic!("ended: {pulled:?}"),
        () = look => {}
    }
    tokio::time::timeout(Duration::from_secs(20), store.close()).await.unwrap().unwrap();
    wait_for("the end of both", || processes(dir.path()).is_none().then_some(())).await;
}

#[tokio::test]
async fn layers_are_checked_after_an_unclean_boot() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("app.tar");
    fs::write(&archive, image().docker_archive(&["app:1"])).unwrap();
    let boot = dir.path().join("images/boot.json");
    let reboot = |closed: bool| {
        fs::write(&boot, json!({"version": 1, "boot_id": "another", "closed": closed}).to_string()).unwrap();
    };
    let store = open(dir.path());
    let loaded = store.load(&archive, |_| {}).await.unwrap();
    let passwd = loaded[0].lower_dirs[1].join("etc/passwd");
    drop(store);

    reboot(false);
    let store = open(dir.path());
    assert!(store.resolve("app:1").is_some(), "what is whole stays");
    drop(store);

    fs::write(&passwd, b"").unwrap();
    let store = open(dir.path());
    assert!(store.resolve("app:1").is_some(), "in the same boot nothing is torn");
    store.close().await.unwrap();
    assert!(fs::read_to_string(&boot).unwrap().contains("\"closed\":true"));
    drop(store);
    reboot(true);
    let store = open(dir.path());
    assert!(store.resolve("app:1").is_some(), "closed well, so nothing is read");
    drop(store);

    reboot(false);
    let store = open(dir.path());
    assert!(store.resolve("app:1").is_none(), "torn, never served");
    assert!(!passwd.exists());
    store.load(&archive, |_| {}).await.unwrap();
    assert!(fs::metadata(&passwd).unwrap().len() > 0, "fetched again");
}

#[tokio::test]
async fn opening_sweeps_what_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let images = dir.path().join("images");
    fs::create_dir_all(images.join("tmp/w1-1-abc/fs/deep")).unwrap();
    fs::write(images.join("tmp/w1-1-load"), b"x").unwrap();
    fs::write(images.join("records/abc.new"), b"{").unwrap();
    fs::write(images.join("records/torn.json"), b"{\"version\":1").unwrap();
    let store = open(dir.path());
    assert!(store.list().is_empty());
    assert_eq!((count(dir.path(), "tmp"), count(dir.path(), "records")), (0, 0));
}

#[tokio::test]
async fn what_is_held_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let other = TestImage::new()
        .layer(&base(), LayerCompression::Gzip)
        .layer(&Tarball::new().finish(), LayerCompression::Gzip);
    for (name, image) in [("held:1", image()), ("other:1", other)] {
        let archive = dir.path().join("archive.tar");
        fs::write(&archive, image.docker_archive(&[name])).unwrap();
        store.load(&archive, |_| {}).await.unwrap();
    }
    let held = store.hold("container-1", "held:1").unwrap();
    assert!(matches!(store.hold("x", "none:1"), Err(ImageError::NotFound { .. })));
    fs::write(dir.path().join("images/ingest/0000"), b"a broken download").unwrap();
    let removed = store.prune_above(0, 0).await.unwrap();
    assert_eq!(
        removed.iter().map(|image| &image.repo_tags[0][..]).collect::<Vec<_>>(),
        ["docker.io/library/other:1"]
    );
    assert_eq!((count(dir.path(), "layers"), count(dir.path(), "ingest")), (2, 0));

    store.remove("held:1").await.unwrap();
    assert!(store.resolve("held:1").is_none());
    assert!(held.lower_dirs.iter().all(|dir| dir.exists()), "a running container keeps its layers");
    drop(store);
    let store = open(dir.path());
    assert!(store.list().is_empty());
    assert!(held.lower_dirs[0].exists(), "also over a restart, until the container is adopted");
    store.hold("container-1", &held.id).unwrap();
    store.release("container-1").await.unwrap();
    nothing_left(dir.path());
    assert!(store.prune_above(100, 90).await.unwrap().is_empty());
}

#[tokio::test]
async fn answers_as_a_kubelet_expects() {
    let settings = RegistryOptions { user: Some(("u".into(), "p".into())), ..RegistryOptions::default() };
    let registry = Registry::start(settings).unwrap();
    registry.push("app", "1", &image().config(json!({"User": "1000:5"})));
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let service: &dyn ImageService = store.as_ref();
    let spec = || Some(ImageSpec { image: registry.name("app:1"), ..ImageSpec::default() });
    let missing = service.image_status(ImageStatusRequest { image: spec(), verbose: false }).await.unwrap();
    assert!(missing.image.is_none());
    let denied = service.pull_image(PullImageRequest { image: spec(), ..PullImageRequest::default() }).await;
    let denied = denied.unwrap_err();
    assert_eq!(denied.code(), Code::Unauthenticated);
    assert!(
        denied.message().starts_with("failed to pull and unpack image \"127.0.0.1"),
        "{}",
        denied.message()
    );
    let auth = AuthConfig { username: "u".into(), password: "p".into(), ..AuthConfig::default() };
    let request = PullImageRequest { image: spec(), auth: Some(auth.clone()), ..PullImageRequest::default() };
    let pulled = service.pull_image(request).await.unwrap();
    let unknown = Some(ImageSpec { image: registry.name("none:1"), ..ImageSpec::default() });
    let request = PullImageRequest { image: unknown, auth: Some(auth), ..PullImageRequest::default() };
    assert_eq!(service.pull_image(request).await.unwrap_err().code(), Code::NotFound);

    let status = service.image_status(ImageStatusRequest { image: spec(), verbose: true }).await.unwrap();
    let found = status.image.unwrap();
    assert_eq!((&found.id, found.uid.map(|uid| uid.value)), (&pulled.image_ref, Some(1000)));
    assert!(status.info["info"].contains("\"imageSpec\"") && status.info["info"].contains("diff_ids"));
    let filter = ImageFilter { image: Some(ImageSpec { image: "none".into(), ..ImageSpec::default() }) };
    let none = service.list_images(ListImagesRequest { filter: Some(filter) }).await.unwrap();
    assert!(none.images.is_empty());
    assert_eq!(service.list_images(ListImagesRequest::default()).await.unwrap().images.len(), 1);
    let info = service.image_fs_info(ImageFsInfoRequest::default()).await.unwrap();
    assert!(info.image_filesystems[0].inodes_used.unwrap().value > 10);
    for _ in 0..2 {
        service.remove_image(RemoveImageRequest { image: spec() }).await.unwrap();
    }
    assert!(store.list().is_empty());
}

#[tokio::test]
async fn workers_end_with_their_agent() {
    let registry = registry();
    let image = image();
    registry.push("app", "1", &image);
    registry.fault(&format!("/blobs/{}", image.layer_digests()[0]), Fault::Stall(100));
    let dir = tempfile::tempdir().unwrap();
    let settings = options(dir.path());
    drop(open(dir.path()));
    let request = json!({
        "store": settings.root, "worker": "w1-1", "platform": settings.platform, "limits": settings.limits,
        "task": {"Pull": {"reference": registry.name("app:1"), "credentials": null,
                          "registries": settings.registries, "stall": 30.0}},
    });
    let mut worker = std::process::Command::new(&settings.helper)
        .arg("image-worker")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut input = worker.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, format!("{request}\n").as_bytes()).unwrap();
    wait_for("both processes", || processes(dir.path())).await;
    // What the kernel does with the pipe of an agent that is killed.
    drop(input);
    wait_for("the end of the worker", || worker.try_wait().unwrap()).await;
    wait_for("the end of the unpacker", || processes(dir.path()).is_none().then_some(())).await;
}
