//! The images that critest pulls: stand-ins that behave the same for its specs.
//!
//! The suite names most by tag, one by a digest; since nobody can make an image of a given digest, the caller is told
//! that of ours (see `xtask`'s `critest`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::rootfs::Rootfs;
use super::storage::Storage;
use super::{PATH, applets, tools};
use crate::peers::Peers;

/// Programs of Debian's that its busybox lacks.
const PROGRAMS: [(&str, &str); 2] = [("usr/bin/ipcs", "/usr/bin/ipcs"), ("usr/bin/pgrep", "/usr/bin/pgrep")];

/// A program that root owns and everybody runs as root, unless they may gain no privileges.
const WHO_AM_I: &str = r#"
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\n", geteuid()); return 0; }
"#;

/// What a web server is started with; its names are what specs look for.
const SERVER: &str = "mkdir -p /var/run; echo $$ > /var/run/nginx.pid; echo httpd; \
    exec -a 'nginx: master process /usr/sbin/httpd' /usr/sbin/nginx -f -h /srv -p";

/// The shell, and what every image with commands holds.
struct Tools {
    busybox: PathBuf,
    bash: PathBuf,
    applets: Vec<String>,
}

impl Tools {
    fn rootfs(&self) -> Result<Rootfs> {
        let mut rootfs = Rootfs::new();
        tools(&mut rootfs, &self.busybox, &self.bash, &self.applets)?;
        for (name, path) in PROGRAMS {
            rootfs.linked_program(name, Path::new(path))?;
        }
        rootfs.users(&[("www-data", 33), ("nobody", 65534)])?;
        Ok(rootfs)
    }

    /// The same with the shell whose words a spec expects, and with commands that can be masked one by one: each is a
    /// file, where links would all lead to one.
    fn with_busybox_shell(&self) -> Result<Rootfs> {
        let mut rootfs = self.rootfs()?;
        let bytes = std::fs::read(&self.busybox)
            .with_context(|| format!("cannot read {}", self.busybox.display()))?;
        rootfs.file("bin/sh", &without_own_ls(bytes)?, 0o755)?;
        for applet in
            self.applets.iter().filter(|applet| !matches!(applet.as_str(), "sh" | "bash" | "busybox"))
        {
            rootfs.hard_link(&format!("bin/{applet}"), "bin/busybox")?;
        }
        Ok(rootfs)
    }

    fn inputs(&self) -> [&Path; 4] {
        [&self.busybox, &self.bash, Path::new(PROGRAMS[0].1), Path::new(PROGRAMS[1].1)]
    }
}

/// Writes what is missing, and returns the digest of the image that stands in for the one that is pinned.
pub(super) fn write(storage: &Storage, peers: &Peers, folder: &Path) -> Result<String> {
    let (busybox, bash) = (PathBuf::from("/bin/busybox"), PathBuf::from("/bin/bash-static"));
    let tools = Tools { applets: applets(&busybox)?, busybox, bash };
    let pause = peers.program("pause")?;
    storage.add(&["pause:3.9"], &[&pause], || {
        let mut rootfs = Rootfs::new();
        rootfs.program("pause", &pause)?;
        Ok((rootfs, config("pause:3.9", json!({"Entrypoint": ["/pause"], "User": "65535:65535"}))))
    })?;
    storage.add(&["e2e-test-images/busybox:1.29-2"], &tools.inputs(), || {
        Ok((tools.with_busybox_shell()?, config("busybox", json!({"Cmd": ["sh"]}))))
    })?;
    servers(storage, &tools)?;
    users(storage, &tools)?;
    no_new_privileges(storage, folder)?;
    bare(storage, &pause)
}

/// Debian's busybox, whose shell runs commands itself, with its own `ls` under a name that sorts where the old one did:
/// so its shell looks for the file.
fn without_own_ls(mut busybox: Vec<u8>) -> Result<Vec<u8>> {
    let names = b"\0ls\0lsmod\0";
    let at = busybox.windows(names.len()).position(|bytes| bytes == names);
    let at = at.context("this busybox lists its commands otherwise")?;
    busybox[at + 2] = b'r';
    Ok(busybox)
}

/// A configuration that no other image has, so that each has an ID of its own.
fn config(name: &str, mut config: Value) -> Value {
    config["Labels"] = json!({"name": name});
    config["Env"] = json!([PATH]);
    config
}

fn servers(storage: &Storage, tools: &Tools) -> Result<()> {
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let host = format!("k8s-staging-cri-tools/hostnet-nginx-{architecture}:latest");
    for (name, port) in
        [("e2e-test-images/nginx:1.14-2", 80), ("e2e-test-images/httpd:2.4.39-4", 80), (&host, 12003)]
    {
        storage.add(&[name], &tools.inputs(), || {
            let mut rootfs = tools.rootfs()?;
            // A process is named by the file that it runs.
            rootfs.program("usr/sbin/nginx", &tools.busybox)?;
            rootfs.file("srv/index.html", format!("{name}\n").as_bytes(), 0o644)?;
            let command = json!(["bash", "-c", format!("{SERVER} {port}")]);
            Ok((rootfs, config(name, json!({"Cmd": command}))))
        })?;
    }
    Ok(())
}

fn users(storage: &Storage, tools: &Tools) -> Result<()> {
    for (name, user) in [
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:users"),
        ("user-username-group", "www-data:www-data"),
    ] {
        let name = format!("k8s-staging-cri-tools/test-image-{name}:latest");
        storage.add(&[&name], &tools.inputs(), || {
            Ok((tools.rootfs()?, config(&name, json!({"User": user, "Cmd": ["sh"]}))))
        })?;
    }
    let name = "k8s-staging-cri-tools/test-image-predefined-group:latest";
    storage.add(&[name], &tools.inputs(), || {
        let mut rootfs = tools.rootfs()?;
        rootfs.users(&[("default-user", 1000)])?;
        let groups = "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n";
        rootfs.file("etc/group", groups.as_bytes(), 0o644)?;
        Ok((rootfs, config(name, json!({"User": "1000", "Cmd": ["sh"]}))))
    })
}

fn no_new_privileges(storage: &Storage, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (source, program) = (folder.join("nnp.c"), folder.join("nnp"));
    if !program.exists() {
        std::fs::write(&source, WHO_AM_I).with_context(|| format!("cannot write {}", source.display()))?;
        let status =
            Command::new("cc").args(["-Os", "-static", "-s", "-o"]).arg(&program).arg(&source).status();
        let status = status.context("cannot start cc; run `cargo xtask setup`")?;
        ensure!(status.success(), "cc ended with {status}");
    }
    let name = "e2e-test-images/nonewprivs:1.3";
    storage.add(&[name], &[&program], || {
        let mut rootfs = Rootfs::new();
        let bytes = std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        rootfs.file("nnp", &bytes, 0o4755)?;
        rootfs.users(&[("default-user", 1000)])?;
        Ok((rootfs, config(name, json!({"Entrypoint": ["/nnp"]}))))
    })
}

/// Images that are pulled, listed and removed; what they run does nothing.
fn bare(storage: &Storage, pause: &Path) -> Result<String> {
    let make = |name: &str| {
        let mut rootfs = Rootfs::new();
        rootfs.file("name", name.as_bytes(), 0o644)?;
        rootfs.program("pause", pause)?;
        Ok((rootfs, config(name, json!({"Cmd": ["/pause"]}))))
    };
    for name in ["latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest", "digest:latest"]
    {
        let name = format!("k8s-staging-cri-tools/test-image-{name}");
        storage.add(&[&name], &[pause], || make(&name))?;
    }
    let tags = [1, 2, 3].map(|tag| format!("k8s-staging-cri-tools/test-image-tags:{tag}"));
    storage.add(&[&tags[0], &tags[1], &tags[2]], &[pause], || make(&tags[0]))?;
    storage.digest("k8s-staging-cri-tools/test-image-digest:latest")
}
