//! The sweep at the start of a runtime: what lies in our folders, or runs, and no record names.
//!
//! Runs once, after the adoption, so that whatever is known by then is in use.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};

use super::{Engine, StartError};
use crate::container::{image_volumes, overlay};
use crate::netns;
use crate::service_error::chain;
use crate::shim_client::ShimClient;

impl Engine {
    /// Removes everything of ours that no record names. Goes on after errors and logs them.
    pub(crate) async fn sweep(self: &Arc<Self>, torn_sandboxes: Vec<String>, torn_containers: Vec<String>) {
        for id in torn_sandboxes {
            self.sweep_sandbox_folder(&id).await;
        }
        for id in torn_containers {
            self.sweep_container_folder(&id).await;
        }
        let (sandboxes, containers): (HashSet<String>, HashSet<String>) = {
            let index = self.index();
            (index.sandboxes.keys().cloned().collect(), index.containers.keys().cloned().collect())
        };
        for id in names(&self.layout.layers()).into_iter().filter(|id| !containers.contains(id)) {
            self.sweep_container_folder(&id).await;
        }
        for name in names(&self.layout.maker_root()) {
            let id = name.strip_prefix(".prepared-").unwrap_or(&name);
            // Other hidden files are the maker's own, for all containers.
            if !id.starts_with('.') && !containers.contains(id) && !sandboxes.contains(id) {
                report(id, remove(self.layout.maker_root().join(&name)).await);
            }
        }
        self.cni.sweep_drafts();
        self.cni.remove_half_written();
        for id in self.cni.attached().into_iter().filter(|id| !sandboxes.contains(id)) {
            for error in self.cni.detach(&id).await {
                tracing::warn!(sandbox = %id, error = %chain(&error), "a swept sandbox keeps its network");
            }
        }
        let sockets: HashSet<PathBuf> = sandboxes.iter().map(|id| self.layout.shim_socket(id)).collect();
        for name in names(&self.layout.shims()) {
            let socket = self.layout.shims().join(&name);
            if !sockets.contains(&socket) {
                if let Ok(client) = ShimClient::connect(&socket).await
                    && let Err(error) = self.end_shim(&name, &client).await
                {
                    tracing::warn!(%name, error = %chain(&error), "a shim without a sandbox stays");
                }
                report(&name, fs::remove_file(&socket));
            }
        }
    }

    async fn sweep_sandbox_folder(&self, id: &str) {
        for error in self.cni.detach(id).await {
            tracing::warn!(sandbox = %id, error = %chain(&error), "a swept sandbox keeps its network");
        }
        for error in netns::remove(&self.layout.pins(id)) {
            tracing::warn!(sandbox = %id, error = %chain(&error), "a swept sandbox keeps a namespace");
        }
        report(id, overlay::unmount_all(&self.layout.shm(id)));
        report(id, remove(self.layout.sandbox(id)).await);
    }

    async fn sweep_container_folder(&self, id: &str) {
        let links = self.layout.bundle(id).join("lower");
        let unmounted = overlay::unmount_all(&self.layout.rootfs(id))
            .and_then(|()| overlay::unmount_links(&links))
            .and_then(|()| image_volumes::unmount(&self.layout, id));
        match unmounted {
            Ok(()) => {
                report(id, remove(self.layout.layer(id)).await);
                report(id, remove(self.layout.bundle(id)).await);
            }
            // Removing now would reach through the mount.
            error => report(id, error),
        }
    }

    /// Ends processes that a killed runtime left in the middle of an act: network plugins that still work for one
    /// of our sandboxes, and shims that were starting for a sandbox that is not in `keep`. Their work is undone
    /// afterwards, so it must have stopped.
    pub(crate) fn end_strays(&self, keep: &HashSet<&str>) {
        let (pins, shims) = (self.layout.sandboxes(), self.layout.shims());
        for pid in processes() {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let plugin = || is_plugin_of(&read("environ"), &pins);
            let shim = || shim_of(&read("cmdline"), &shims).is_some_and(|id| !keep.contains(id.as_str()));
            if (shim() || plugin())
                && let Some(pid) = Pid::from_raw(pid)
            {
                tracing::warn!(
                    pid = pid.as_raw_nonzero(),
                    "a process that the last run left in the middle is ended"
                );
                // One that ended meanwhile is what we want.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Notes that the records are of this boot, once none of an earlier one is left.
    pub(crate) fn note_boot(&self) -> Result<(), StartError> {
        let path = self.layout.state.join("boot_id");
        fs::read("/proc/sys/kernel/random/boot_id")
            .and_then(|boot| fs::write(&path, boot))
            .map_err(|source| StartError::Folder { path, source })
    }
}

/// Whether an environment is that of a network plugin for a sandbox below `pins`.
fn is_plugin_of(environment: &[u8], pins: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    environment
        .split(|byte| *byte == 0)
        .filter_map(|variable| variable.strip_prefix(b"CNI_NETNS="))
        .any(|netns| netns.starts_with(pins.as_os_str().as_bytes()))
}

/// The sandbox for which a command line runs a shim of ours, whose sockets lie in `shims`.
fn shim_of(command_line: &[u8], shims: &Path) -> Option<String> {
    let words: Vec<&str> = command_line
        .split(|byte| *byte == 0)
        .map(|word| std::str::from_utf8(word).unwrap_or_default())
        .collect();
    let value = |option: &str| words.iter().position(|word| *word == option).and_then(|at| words.get(at + 1));
    let ours = words.get(1) == Some(&"serve") && Path::new(value("--socket")?).parent() == Some(shims);
    ours.then(|| value("--id").map(|id| (*id).to_owned()))?
}

fn processes() -> Vec<i32> {
    names(Path::new("/proc")).iter().filter_map(|name| name.parse().ok()).collect()
}

/// Names in a folder; none when it is not there.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

async fn remove(path: PathBuf) -> std::io::Result<()> {
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
    removed.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

fn report(id: &str, result: std::io::Result<()>) {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%id, %error, "swept, but something stays");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_known_by_the_namespace_it_works_on() {
        let environment = b"PATH=/bin\0CNI_NETNS=/run/coracle/sandboxes/abc/ns/net\0";
        assert!(is_plugin_of(environment, Path::new("/run/coracle/sandboxes")));
        assert!(!is_plugin_of(environment, Path::new("/run/other")));
    }

    #[test]
    fn a_shim_is_known_by_where_its_socket_lies() {
        let line = b"/usr/bin/coracle-shim\0serve\0--socket\0/run/coracle/shims/abc\0--id\0abcdef\0";
        assert_eq!(shim_of(line, Path::new("/run/coracle/shims")).as_deref(), Some("abcdef"));
        assert_eq!(shim_of(line, Path::new("/run/other/shims")), None);
    }
}
