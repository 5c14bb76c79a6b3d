//! Layers applied to plain folders, looked at through real overlay mounts.

use std::fs::{self, File};
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;
use crate::testing::{Member, Tarball};

/// Attributes of special files are set relative to the working directory, of which a process has one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Stack {
    dir: tempfile::TempDir,
    layers: usize,
    limits: Limits,
}

/// An overlay mount that ends with its value.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

impl Stack {
    fn new() -> Self {
        let limits = Limits { keep_free: 0, ..Limits::default() };
        Self { dir: tempfile::tempdir().unwrap(), layers: 0, limits }
    }

    fn layer(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("l{number}"))
    }

    fn try_apply(&mut self, tar: Vec<u8>) -> Result<PathBuf, LayerError> {
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let upper = self.layer(self.layers);
        fs::create_dir(&upper).unwrap();
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).unwrap();
        let open = |path: &Path| open_dir(rustix::fs::CWD, path).unwrap();
        let lowers = (0..self.layers).rev().map(|number| open(&self.layer(number))).collect();
        let applier = Applier::new(open(&upper), lowers, self.limits);
        applier.run(Archive::new(Cursor::new(tar)), |_| {})?;
        self.layers += 1;
        Ok(upper)
    }

    fn apply(mut self, tar: Tarball) -> Self {
        self.try_apply(tar.finish()).unwrap();
        self
    }

    fn mount(&self) -> Mounted {
        let target = self.dir.path().join("mnt");
        fs::create_dir_all(&target).unwrap();
        // One lower layer alone is refused by the kernel, so there is always an empty one below.
        let bottom = self.dir.path().join("bottom");
        fs::create_dir_all(&bottom).unwrap();
        let mut lowers: Vec<String> =
            (0..self.layers).rev().map(|number| self.layer(number).display().to_string()).collect();
        lowers.push(bottom.display().to_string());
        let options = std::ffi::CString::new(format!("lowerdir={}", lowers.join(":"))).unwrap();
        mount("overlay", &target, "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
        Mounted(target)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn whiteouts_remove_what_is_below_only() {
    let stack = Stack::new()
        .apply(Tarball::new().dir("a").file("a/x", b"").file("a/y", b"").dir("gone").file("gone/z", b""))
        .apply(
            Tarball::new()
                .file("a/.wh.x", b"")
                .file(".wh.gone", b"")
                .file(".wh.never-was", b"")
                .file("a/y", b"new")
                .file("a/.wh.y", b"after its own entry, so it speaks of the lower one"),
        );
    let mounted = stack.mount();
    assert_eq!(names(&mounted.0), ["a"]);
    assert_eq!(names(&mounted.0.join("a")), ["y"]);
    assert_eq!(fs::read(mounted.0.join("a/y")).unwrap(), b"new");
    assert!(!stack.layer(1).join("never-was").exists(), "a whiteout of nothing would show in a plain folder");
}

#[test]
fn opaque_folders_hide_the_lower_ones_wherever_the_mark_stands() {
    let base = || {
        let tar = Tarball::new().dir("d").file("d/old", b"").dir("d/sub").file("d/sub/deep", b"");
        Stack::new().apply(tar)
    };
    for tar in [
        Tarball::new().dir("d").file("d/.wh..wh..opq", b"").dir("d/sub").file("d/sub/new", b""),
        Tarball::new().dir("d").dir("d/sub").file("d/sub/new", b"").file("d/.wh..wh..opq", b""),
        Tarball::new().file("d/.wh..wh..opq", b"").file("d/sub/new", b""),
        Tarball::new().file(".wh.d", b"").dir("d").dir("d/sub").file("d/sub/new", b""),
        Tarball::new().dir("d").dir("d/sub").file("d/sub/new", b"").file(".wh.d", b""),
        Tarball::new()
            .file("d", b"a file for a moment")
            .file(".wh.d", b"")
            .file("d/../d/.wh..wh..opq", b"")
            .dir("d"),
    ]
    .into_iter()
    .enumerate()
    {
        let (number, tar) = tar;
        let mut stack = base();
        let applied = stack.try_apply(tar.finish());
        if number == 5 {
            // A file where a folder is named is damage, told with the path.
            assert!(matches!(applied, Err(LayerError::File { .. })), "{applied:?}");
            continue;
        }
        applied.unwrap();
        let mounted = stack.mount();
        assert_eq!(names(&mounted.0.join("d")), ["sub"], "case {number}");
        assert_eq!(names(&mounted.0.join("d/sub")), ["new"], "case {number}");
    }
}

#[test]
fn files_and_folders_replace_each_other() {
    let stack = Stack::new()
        .apply(Tarball::new().dir("dir").file("dir/x", b"").file("file", b"").symlink("link", "dir"))
        .apply(
            Tarball::new()
                .file("dir", b"now a file")
                .dir("file")
                .file("file/y", b"")
                .dir("link")
                .file("link/z", b""),
        )
        .apply(Tarball::new().file("twice", b"1").dir("twice").file("twice/a", b"").file("twice", b"2"));
    let mounted = stack.mount();
    assert_eq!(fs::read(mounted.0.join("dir")).unwrap(), b"now a file");
    assert_eq!(names(&mounted.0.join("file")), ["y"]);
    assert_eq!(names(&mounted.0.join("link")), ["z"]);
    assert_eq!(fs::read(mounted.0.join("twice")).unwrap(), b"2");
}

#[test]
fn parents_that_the_layer_does_not_name_are_as_below() {
    let special = Member {
        flag: b'5',
        name: "opt",
        mode: 0o1770,
        uid: 7,
        gid: 8,
        mtime: 1_000_000,
        ..Member::default()
    };
    let stack = Stack::new()
        .apply(
            Tarball::new()
                .member(&special)
                .dir("usr")
                .dir("usr/lib")
                .symlink("lib", "usr/lib")
                .symlink("abs", "/opt"),
        )
        .apply(
            Tarball::new()
                .file("opt/a/b", b"")
                .file("lib/new.so", b"")
                .file("abs/c", b"")
                .file("none/x", b""),
        )
        .apply(Tarball::new().file("lib/../lib/../opt/d", b""));
    let mounted = stack.mount();
    let opt = fs::metadata(mounted.0.join("opt")).unwrap();
    assert_eq!((opt.mode() & 0o7777, opt.uid(), opt.gid()), (0o1770, 7, 8));
    assert_eq!(names(&mounted.0.join("opt")), ["a", "c", "d"]);
    assert_eq!(names(&mounted.0.join("usr/lib")), ["new.so"]);
    assert!(
        mounted.0.join("lib").symlink_metadata().unwrap().is_symlink(),
        "the symlink of the base stays one"
    );
    assert_eq!(fs::metadata(mounted.0.join("none")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn metadata_of_every_kind() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(200));
    let stack = Stack::new().apply(
        Tarball::new()
            .member(&Member {
                name: "suid",
                mode: 0o6755,
                uid: 1000,
                gid: 2000,
                mtime: 123,
                ..Member::default()
            })
            .pax(&[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.note", b"hello\nworld"),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("mtime", b"99.5"),
                ("uid", b"3000000"),
            ])
            .file("caps", b"x")
            .member(&Member { flag: b'3', name: "null", device: (1, 3), mode: 0o666, ..Member::default() })
            .member(&Member { flag: b'4', name: "loop", device: (7, 0), ..Member::default() })
            .member(&Member { flag: b'6', name: "pipe", mode: 0o600, ..Member::default() })
            .pax(&[("SCHILY.xattr.user.ignored", b"x")])
            .symlink("link", "/nowhere/../at all")
            .gnu_long(b'L', &long)
            .file("cut", b"long")
            .gnu_long(b'K', &"t".repeat(300))
            .symlink("long-link", "cut")
            .dir("dir")
            .file("dir/inside", b""),
    );
    let root = stack.layer(0);
    let suid = fs::metadata(root.join("suid")).unwrap();
    assert_eq!((suid.mode() & 0o7777, suid.uid(), suid.gid(), suid.mtime()), (0o6755, 1000, 2000, 123));
    let caps = fs::metadata(root.join("caps")).unwrap();
    assert_eq!((caps.uid(), caps.mtime(), caps.mtime_nsec()), (3_000_000, 99, 500_000_000));
    let file = File::open(root.join("caps")).unwrap();
    let mut value = [0; 64];
    let read = rustix::fs::fgetxattr(&file, "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..read], capability);
    let read = rustix::fs::fgetxattr(&file, "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..read], b"hello\nworld");
    assert!(rustix::fs::fgetxattr(&file, "trusted.overlay.opaque", &mut value[..]).is_err());
    let null = fs::metadata(root.join("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777), (makedev(1, 3), 0o666));
    assert!(fs::metadata(root.join("loop")).unwrap().file_type().is_block_device());
    assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("/nowhere/../at all"));
    assert_eq!(fs::read(root.join(&long)).unwrap(), b"long");
    assert_eq!(fs::read_link(root.join("long-link")).unwrap().as_os_str().len(), 300);
    assert_eq!(
        fs::metadata(root.join("dir")).unwrap().mtime(),
        1_700_000_000,
        "despite what went into it later"
    );
}

#[test]
fn hard_links_within_and_across_layers() {
    let stack = Stack::new()
        .apply(Tarball::new().dir("bin").executable("bin/a", b"shared").hard_link("b", "/bin/a"))
        .apply(Tarball::new().hard_link("c", "bin/a"));
    let ino = |layer: usize, name: &str| fs::metadata(stack.layer(layer).join(name)).unwrap().ino();
    assert_eq!(ino(0, "bin/a"), ino(0, "b"));
    assert_eq!(ino(1, "bin/a"), ino(1, "c"), "the target came up with the link");
    let mounted = stack.mount();
    assert_eq!(fs::read(mounted.0.join("c")).unwrap(), b"shared");
    assert_eq!(fs::metadata(mounted.0.join("c")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn nothing_climbs_out() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"untouched").unwrap();
    let target = outside.path().display().to_string();
    let secret = format!("{target}/secret");
    let up = "../".repeat(20);
    let climbing_link = format!("{}{}", up, &target[1..]);
    let cases: Vec<(&str, Tarball)> = vec![
        ("a name", Tarball::new().file(&format!("{up}tmp/x"), b"")),
        ("a name through a folder", Tarball::new().dir("a").file("a/../../x", b"")),
        ("a symlink", Tarball::new().symlink("l", &climbing_link).file("l/secret", b"overwritten")),
        ("a symlink to a symlink", Tarball::new().symlink("a", "..").symlink("l", "a/..").file("l/x", b"")),
        ("a hard link", Tarball::new().hard_link("h", &format!("{up}{}", &secret[1..]))),
        (
            "a hard link through a symlink",
            Tarball::new().symlink("l", &climbing_link).hard_link("h", "l/secret"),
        ),
        ("a whiteout", Tarball::new().file(&format!("{up}.wh.etc"), b"")),
        ("a loop of symlinks", Tarball::new().symlink("a", "b").symlink("b", "a").file("a/x", b"")),
    ];
    for (what, tar) in cases {
        let mut stack = Stack::new();
        match stack.try_apply(tar.finish()) {
            Err(LayerError::Climbs { .. }) => {}
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(names(outside.path()), ["secret"], "{what}");
        assert_eq!(fs::read(&secret).unwrap(), b"untouched", "{what}");
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1, "{what}");
    }
    for bad in [".wh.", ".wh...", ".wh.."] {
        let refused = Stack::new().try_apply(Tarball::new().file(bad, b"").finish());
        assert!(matches!(refused, Err(LayerError::Whiteout { .. })), "{bad}: {refused:?}");
    }
}

#[test]
fn absolute_names_and_links_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().display().to_string();
    let tar = Tarball::new()
        .file("/etc/absolute", b"")
        .symlink("abs", &target)
        .file("abs/inside", b"")
        .symlink("over", "/etc/absolute")
        .file("over", b"replaces the link, not what it points to");
    let mut stack = Stack::new();
    let root = stack.try_apply(tar.finish()).unwrap();
    assert!(root.join("etc/absolute").exists());
    assert!(root.join(&target[1..]).join("inside").exists());
    assert_eq!(names(outside.path()), Vec::<String>::new());
    assert!(root.join("over").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(root.join("etc/absolute")).unwrap(), b"");
}

#[test]
fn a_link_swapped_in_later_is_not_followed() {
    // The folder is resolved and cached, then replaced by a link out, then used again, and its time set at the end.
    let outside = tempfile::tempdir().unwrap();
    let before = fs::metadata(outside.path()).unwrap().mtime();
    let link = format!("{}{}", "../".repeat(20), &outside.path().display().to_string()[1..]);
    let tar = Tarball::new().dir("d").dir("d/e").file("d/e/x", b"").symlink("d", &link).file("d/e/y", b"");
    let refused = Stack::new().try_apply(tar.finish());
    assert!(matches!(refused, Err(LayerError::Climbs { .. })), "{refused:?}");
    let tar = Tarball::new().dir("d").dir("d/e").symlink("d", &link);
    Stack::new().try_apply(tar.finish()).unwrap();
    assert_eq!(fs::metadata(outside.path()).unwrap().mtime(), before);
    assert_eq!(names(outside.path()), Vec::<String>::new());
}

#[test]
fn limits_hold() {
    let mut stack = Stack::new();
    stack.limits.bytes = 1000;
    let refused = stack.try_apply(Tarball::new().file("a", &[0; 600]).file("b", &[0; 600]).finish());
    assert!(matches!(refused, Err(LayerError::Limit { what: "bytes", .. })), "{refused:?}");
    let mut stack = Stack::new();
    stack.limits.inodes = 10;
    let many = (0..20).fold(Tarball::new(), |tar, n| tar.file(&format!("f{n}"), b""));
    let refused = stack.try_apply(many.finish());
    assert!(matches!(refused, Err(LayerError::Limit { what: "files", .. })), "{refused:?}");
    let deep = "d/".repeat(300);
    let refused = Stack::new().try_apply(Tarball::new().gnu_long(b'L', &deep).dir("x").finish());
    assert!(matches!(refused, Err(LayerError::TooDeep { .. })), "{refused:?}");
    let mut stack = Stack::new();
    stack.limits.keep_free = u64::MAX;
    let refused = stack.try_apply(Tarball::new().file("a", b"x").finish());
    assert!(matches!(refused, Err(LayerError::NoSpace { .. })), "{refused:?}");
}

#[test]
fn sparse_files_in_every_form() {
    let data = [b'x'; 1024];
    let wanted = |name: &str, root: &Path| {
        let read = fs::read(root.join(name)).unwrap();
        assert_eq!(read.len(), 10_000, "{name}");
        assert_eq!(&read[4096..4096 + 1024], &data[..], "{name}");
        assert!(read[..4096].iter().chain(&read[5120..]).all(|&b| b == 0), "{name}");
    };
    let map = [&b"1\n4096\n1024\n"[..], &[0; 500]].concat();
    let content = [&map[..512], &data[..]].concat();
    let form_1_0: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"one"),
        ("GNU.sparse.realsize", b"10000"),
    ];
    let form_0_1: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"4096,1024"),
        ("GNU.sparse.name", b"zero-one"),
    ];
    let form_0_0: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"10000"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"1024"),
    ];
    let mut stack = Stack::new();
    let tar = Tarball::new()
        .pax(form_1_0)
        .file("GNUSparseFile.0/one", &content)
        .pax(form_0_1)
        .file("GNUSparseFile.0/x", &data)
        .pax(form_0_0)
        .file("zero-zero", &data)
        .file("after", b"the next entry is found");
    let root = stack.try_apply(tar.finish()).unwrap();
    for name in ["one", "zero-one", "zero-zero"] {
        wanted(name, &root);
    }
    assert!(root.join("after").exists());
    // What GNU tar itself makes, in its own old form and in PAX.
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("hole")).unwrap();
    file.set_len(10_000_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 5_000_000).unwrap();
    symlink("hole", dir.path().join("link")).unwrap();
    for format in ["gnu", "posix"] {
        let made = std::process::Command::new("tar")
            .args(["--sparse", "--format", format, "-C"])
            .arg(dir.path())
            .args(["-cf", "-", "hole", "link"])
            .output()
            .unwrap();
        assert!(made.status.success());
        let mut stack = Stack::new();
        let root = stack.try_apply(made.stdout).unwrap();
        assert!(
            fs::read(root.join("hole")).unwrap() == fs::read(dir.path().join("hole")).unwrap(),
            "{format}"
        );
        assert!(fs::metadata(root.join("hole")).unwrap().blocks() < 1000, "{format}: the hole stays one");
        assert!(root.join("link").is_symlink());
    }
}
