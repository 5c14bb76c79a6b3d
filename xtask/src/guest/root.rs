//! The guest's root file system, kernel and first disk: Debian's, made by mmdebstrap once and kept in `target/guest`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process;

/// Debian's release. Its kernel has what the built-in maker needs (Linux 5.12) and nothing newer than most devices.
const SUITE: &str = "bookworm";

/// What the node and its tests use, besides a Debian that boots. runc and crun are makers where a test asks for them.
const PACKAGES: &[&str] = &[
    "apparmor",
    "busybox-static",
    "containernetworking-plugins",
    "crun",
    "dbus",
    "iproute2",
    "iptables",
    "kmod",
    "linux-image-cloud-amd64",
    "procps",
    "runc",
    "systemd-sysv",
];

/// Begins the guest: finds the disk with the payload and goes on with its script.
const INIT: &str = "#!/bin/sh
mkdir -p /coracle
mount /dev/vdb /coracle || exec busybox poweroff -f
exec /coracle/init \"$@\"
";

/// What a machine boots from.
pub(super) struct Root {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) disk: PathBuf,
}

/// Makes it, or finds the one made before.
pub(super) fn make() -> Result<Root> {
    let folder = process::target_dir().join("guest");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let root = Root {
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd.img"),
        disk: folder.join("root.img"),
    };
    let stamp = folder.join("root.recipe");
    let recipe = format!("{SUITE}\n{PACKAGES:?}\n{INIT}");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == recipe) {
        return Ok(root);
    }
    let tree = folder.join("root");
    remove(&tree)?;
    debootstrap(&tree)?;
    write_script(&tree.join("coracle-init"), INIT)?;
    take(&tree, "vmlinuz-", &root.kernel)?;
    take(&tree, "initrd.img-", &root.initrd)?;
    make_disk(&tree, &root.disk, "3G")?;
    remove(&tree)?;
    std::fs::write(&stamp, recipe).context("cannot note how the root was made")?;
    Ok(root)
}

fn debootstrap(tree: &Path) -> Result<()> {
    let mut command = process::command("mmdebstrap", ["--variant=minbase", "--quiet"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    // Only what the disk needs goes into the initial file system, or unpacking it is most of the boot.
    command.arg(
        "--setup-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\" && \
         printf 'MODULES=list\\nCOMPRESS=lz4\\n' > \"$1/etc/initramfs-tools/conf.d/guest\" && \
         printf 'virtio_pci\\nvirtio_blk\\n' > \"$1/etc/initramfs-tools/modules\"",
    );
    command.arg("--dpkgopt=path-exclude=/usr/share/doc/*").arg("--dpkgopt=path-exclude=/usr/share/man/*");
    process::run(command.arg(SUITE).arg(tree))
}

/// Copies the one file of `/boot` whose name begins with `prefix`.
fn take(tree: &Path, prefix: &str, to: &Path) -> Result<()> {
    let boot = tree.join("boot");
    let entries = std::fs::read_dir(&boot).with_context(|| format!("cannot list {}", boot.display()))?;
    let is_meant =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    let found = entries.filter_map(|entry| Some(entry.ok()?.path())).find(is_meant);
    let found = found.with_context(|| format!("no {prefix}* in {}", boot.display()))?;
    std::fs::copy(&found, to).with_context(|| format!("cannot copy {}", found.display())).map(drop)
}

/// Writes the tree into an ext4 file system in a file.
pub(super) fn make_disk(tree: &Path, disk: &Path, size: &str) -> Result<()> {
    remove(disk)?;
    let mut command = process::command("mke2fs", ["-q", "-t", "ext4", "-d"]);
    process::run(command.arg(tree).arg(disk).arg(size))
}

/// Writes an executable file.
pub(super) fn write_script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

/// Removes a file or a tree; one that is not there is success.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
