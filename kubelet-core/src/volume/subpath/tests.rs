//! Parts of volumes, with someone at work on the other side.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::volume::tear_down;

struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(tempfile::Builder::new().prefix("coracle-subpath-").tempdir().unwrap());
        std::fs::create_dir_all(fixture.volume()).unwrap();
        std::fs::create_dir_all(fixture.secret()).unwrap();
        std::fs::write(fixture.secret().join("key"), "host").unwrap();
        fixture
    }

    fn pod_dir(&self) -> PathBuf {
        self.0.path().join("pod")
    }

    fn volume(&self) -> PathBuf {
        self.pod_dir().join("volumes/v")
    }

    fn secret(&self) -> PathBuf {
        self.0.path().join("secret")
    }

    fn bind(&self, sub_path: &str) -> Result<PathBuf, SubPathError> {
        let pod_dir = self.pod_dir();
        let bind = Bind { pod_dir: &pod_dir, volume_name: "v", container: "c", index: 0 };
        bind_sub_path(&self.volume(), sub_path, &bind)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        assert!(tear_down(&self.pod_dir()).is_empty() || std::thread::panicking());
    }
}

#[test]
fn folders_files_and_links_inside_are_bound() {
    let fixture = Fixture::new();
    let volume = fixture.volume();
    std::fs::create_dir_all(volume.join("real/deep")).unwrap();
    std::fs::write(volume.join("real/deep/file"), "in").unwrap();
    symlink("real", volume.join("alias")).unwrap();
    symlink("../alias/deep", volume.join("real/up")).unwrap();
    symlink(volume.join("real"), volume.join("absolute")).unwrap();
    for path in ["real/deep", "alias/deep", "real/up", "absolute/deep", "./real//deep/"] {
        let bound = fixture.bind(path).unwrap();
        assert_eq!(bound, fixture.pod_dir().join("volume-subpaths/v/c/0"));
        assert_eq!(std::fs::read_to_string(bound.join("file")).unwrap(), "in", "{path}");
        assert_eq!(sys::mounts_below(&bound).unwrap().len(), 1, "{path}");
    }
    let bound = fixture.bind("alias/deep/file").unwrap();
    assert_eq!(std::fs::read_to_string(&bound).unwrap(), "in");
    assert_eq!(sys::mounts_below(&bound).unwrap().len(), 1);
    fixture.bind("real/deep").unwrap();
    assert!(bound.is_dir());
}

#[test]
fn missing_folders_are_made_with_the_volumes_mode() {
    let fixture = Fixture::new();
    std::fs::set_permissions(fixture.volume(), std::fs::Permissions::from_mode(0o2775)).unwrap();
    std::os::unix::fs::chown(fixture.volume(), None, Some(4321)).unwrap();
    std::fs::set_permissions(fixture.volume(), std::fs::Permissions::from_mode(0o2775)).unwrap();
    fixture.bind("new/deep").unwrap();
    for path in ["new", "new/deep"] {
        let made = std::fs::metadata(fixture.volume().join(path)).unwrap();
        assert_eq!((made.mode() & 0o7777, made.gid()), (0o2775, 4321), "{path}");
    }
}

#[test]
fn what_leads_out_is_refused() {
    let fixture = Fixture::new();
    let volume = fixture.volume();
    symlink(fixture.secret(), volume.join("absolute")).unwrap();
    symlink("../../../secret", volume.join("relative")).unwrap();
    symlink("loop", volume.join("loop")).unwrap();
    symlink("/", volume.join("root")).unwrap();
    std::fs::write(volume.join("file"), "").unwrap();
    for path in ["absolute", "relative", "relative/key", "root/etc", "absolute/new"] {
        assert!(matches!(fixture.bind(path), Err(SubPathError::Escapes)), "{path}");
    }
    assert!(matches!(fixture.bind("loop"), Err(SubPathError::TooManyLinks)));
    assert!(matches!(fixture.bind("/etc"), Err(SubPathError::Absolute(_))));
    assert!(matches!(fixture.bind("a/../../b"), Err(SubPathError::Climbs(_))));
    assert!(matches!(fixture.bind("file/below"), Err(SubPathError::Io { .. })));
    assert!(!fixture.secret().join("new").exists());
}

/// The attack: while the agent binds `swap/dir`, its owner swaps `swap` between a folder and a link to the host.
#[test]
fn a_link_swapped_in_at_any_moment_never_shows_the_host() {
    let fixture = Fixture::new();
    let volume = fixture.volume();
    std::fs::create_dir_all(volume.join("swap/dir")).unwrap();
    std::fs::write(volume.join("swap/dir/mark"), "volume").unwrap();
    // The same names on the host's side, so that a path walked there would be found.
    std::fs::create_dir_all(fixture.secret().join("dir")).unwrap();
    std::fs::write(fixture.secret().join("dir/mark"), "host").unwrap();
    symlink(fixture.secret(), volume.join("link")).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let attacker = std::thread::spawn({
        let (stop, volume) = (stop.clone(), volume.clone());
        move || {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, volume.join("swap"), CWD, volume.join("link"), flags).unwrap();
            }
        }
    });
    let (mut bound, mut refused) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while (bound < 200 || refused < 200) && Instant::now() < deadline {
        match fixture.bind("swap/dir") {
            Ok(target) => {
                assert_eq!(std::fs::read_to_string(target.join("mark")).unwrap(), "volume");
                bound += 1;
                // Bound anew each time, so that each time is a race.
                while sys::unmount(&target).unwrap() {}
            }
            Err(SubPathError::Escapes) => refused += 1,
            Err(other) => panic!("neither bound nor refused: {other:?}"),
        }
    }
    stop.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    assert!(bound >= 200 && refused >= 200, "the race was not run: {bound} bound, {refused} refused");
    assert!(!fixture.secret().join("dir/new").exists());
}

/// The same against making folders: none may appear on the host's side.
#[test]
fn a_link_swapped_in_never_makes_a_folder_on_the_host() {
    let fixture = Fixture::new();
    let volume = fixture.volume();
    std::fs::create_dir_all(volume.join("swap")).unwrap();
    symlink(fixture.secret(), volume.join("link")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let attacker = std::thread::spawn({
        let (stop, volume) = (stop.clone(), volume.clone());
        move || {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, volume.join("swap"), CWD, volume.join("link"), flags).unwrap();
            }
        }
    });
    for n in 0..500 {
        let _ = open_within(&volume, &format!("swap/made{n}/deep"), true);
    }
    stop.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    let on_host: Vec<_> =
        std::fs::read_dir(fixture.secret()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(on_host, ["key"]);
}

#[test]
fn reading_takes_files_alone() {
    let fixture = Fixture::new();
    let volume = fixture.volume();
    std::fs::write(volume.join("file"), "12345").unwrap();
    rustix::fs::mknodat(CWD, volume.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    symlink(fixture.secret().join("key"), volume.join("out")).unwrap();
    assert_eq!(read_within(&volume, "file", 10).unwrap(), b"12345");
    for path in ["fifo", "out", "none", "."] {
        assert!(read_within(&volume, path, 10).is_err(), "{path}");
    }
    assert!(read_within(&volume, "file", 3).is_err());
}
