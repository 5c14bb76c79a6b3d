//! The files and the shared memory that all containers of a sandbox see, made as containerd makes them.
//!
//! Called while a sandbox is made or given back; synchronous, on a tmpfs.

use std::fs;
use std::io;
use std::path::Path;

use coracle_cri::v1;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::hostname;
use crate::config::Layout;
use crate::netns::UserMapping;
use crate::service_error::ServiceError;

/// Writes hostname, hosts and resolv.conf of a sandbox, which belong to the pod's root.
pub(super) fn write(
    layout: &Layout,
    id: &str,
    config: &v1::PodSandboxConfig,
    user: Option<UserMapping>,
) -> Result<(), ServiceError> {
    let dir = layout.sandbox(id);
    let put = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        let written = fs::write(&path, content).and_then(|()| match user {
            Some(mapping) => std::os::unix::fs::chown(&path, Some(mapping.uids.0), Some(mapping.gids.0)),
            None => Ok(()),
        });
        written.map_err(ServiceError::file("write", path))
    };
    put("hostname", format!("{}\n", hostname(config)).as_bytes())?;
    put("hosts", &of_host("/etc/hosts")?)?;
    match &config.dns_config {
        Some(dns) if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) => {
            put("resolv.conf", resolv_conf(dns).as_bytes())
        }
        _ => put("resolv.conf", &of_host("/etc/resolv.conf")?),
    }
}

/// A file of the host; a host without it gives its pods an empty one.
fn of_host(path: &str) -> Result<Vec<u8>, ServiceError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(ServiceError::file("read", path)),
    }
}

fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Mounts the sandbox's shared memory.
pub(super) fn mount_shm(path: &Path, size: u64) -> Result<(), ServiceError> {
    fs::create_dir(path).map_err(ServiceError::file("create", path))?;
    let options =
        std::ffi::CString::new(format!("mode=1777,size={size}")).expect("a number holds no zero byte");
    let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    mount("shm", path, "tmpfs", flags, options.as_c_str()).map_err(|error| ServiceError::File {
        act: "mount",
        path: path.into(),
        source: error.into(),
    })
}

/// Unmounts the shared memory. Idempotent.
pub(super) fn unmount_shm(path: &Path) -> Result<(), ServiceError> {
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(ServiceError::File { act: "unmount", path: path.into(), source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_search_servers_and_options_in_this_order() {
        let dns = v1::DnsConfig {
            servers: vec!["10.0.0.10".into(), "1.1.1.1".into()],
            searches: vec!["default.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search default.svc svc\nnameserver 10.0.0.10\nnameserver 1.1.1.1\noptions ndots:5\n"
        );
    }
}
