//! The files that a pod gets without asking: its folders, /etc/hosts and the termination log.
//!
//! Blocking; called under the pod's gate.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use coracle_cri::v1::Mount;

use super::ConfigError;
use crate::api::{Container, Pod};
use crate::{hosts, sandbox_config};

pub(super) const ETC_HOSTS: &str = "/etc/hosts";
/// Termination logs of this many runs are kept: the present one, and the last for `lastState`.
const KEPT_TERMINATION_LOGS: u32 = 2;

/// Makes a folder and those above it; its mode is set only if it is new.
pub(super) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// The folders of a pod, as the kubelet lays them out; the error names the one that failed.
pub(super) fn make_pod_dirs(pod_dir: &Path, log_dir: &Path) -> Result<(), (PathBuf, io::Error)> {
    let volumes = pod_dir.join("volumes");
    let plugins = pod_dir.join("plugins");
    for (dir, mode) in [(pod_dir, 0o750), (&volumes, 0o750), (&plugins, 0o750), (log_dir, 0o755)] {
        make_dir(dir, mode).map_err(|error| (dir.to_owned(), error))?;
    }
    Ok(())
}

/// Writes the pod's hosts file and mounts it; nothing for a pod whose address is not known.
pub(super) fn etc_hosts(
    pod: &Pod,
    pod_dir: &Path,
    ips: &[IpAddr],
    cluster_domain: &str,
    hosts_of_node: &Path,
) -> Result<Option<Mount>, ConfigError> {
    let aliases = &pod.spec.host_aliases;
    let text = if pod.spec.host_network {
        let own = std::fs::read(hosts_of_node).map_err(ConfigError::io("read", hosts_of_node))?;
        hosts::host_network(&own, aliases)
    } else if ips.is_empty() {
        return Ok(None);
    } else {
        let name = sandbox_config::pod_hostname(pod, cluster_domain)?;
        hosts::pod_network(ips, &name.hostname, &name.domain, aliases).into_bytes()
    };
    let path = pod_dir.join("etc-hosts");
    // Containers that run already have this very file mounted, so it is rewritten and not replaced, and left
    // alone if it is right: a container may have added lines of its own only until the next one starts.
    if std::fs::read(&path).ok().as_deref() != Some(&text) {
        std::fs::write(&path, &text).map_err(ConfigError::io("write", &path))?;
        set_mode(&path, 0o644)?;
    }
    Ok(Some(mount(&path, ETC_HOSTS)))
}

/// Makes an empty file for the container's last words and mounts it where the container writes them.
pub(super) fn termination_log(
    container: &Container,
    pod_dir: &Path,
    attempt: u32,
) -> Result<Option<Mount>, ConfigError> {
    if container.termination_message_path.is_empty() {
        return Ok(None);
    }
    let dir = pod_dir.join("containers").join(&container.name);
    make_dir(&dir, 0o750).map_err(ConfigError::io("create folder", &dir))?;
    remove_old_logs(&dir, attempt);
    let path = dir.join(format!("{attempt:08x}"));
    // A new file, since a run that failed to start may have left words in the old one.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ConfigError::io("remove", &path)(error));
        }
        _ => {}
    }
    std::fs::File::create_new(&path).map_err(ConfigError::io("create", &path))?;
    set_mode(&path, 0o666)?;
    let inside = Path::new("/").join(&container.termination_message_path);
    Ok(Some(mount(&path, &inside.to_string_lossy())))
}

/// A container that restarts for years must not fill the disk; what cannot be removed is left to teardown.
fn remove_old_logs(dir: &Path, attempt: u32) {
    let Some(newest_unwanted) = attempt.checked_sub(KEPT_TERMINATION_LOGS) else {
        return;
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let run = entry.file_name().to_str().and_then(|name| u32::from_str_radix(name, 16).ok());
        if run.is_some_and(|run| run <= newest_unwanted) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ConfigError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(ConfigError::io("chmod", path))
}

fn mount(host: &Path, inside: &str) -> Mount {
    Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: inside.to_owned(),
        selinux_relabel: true,
        ..Mount::default()
    }
}
