//! The namespaces of a sandbox: made by a thread of their own, pinned by bind mounts, entered the same way.
//!
//! A namespace is a property of a thread, so every act here runs on a fresh thread that ends with the act
//! and never serves the async runtime.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tokio::sync::oneshot;

use crate::sys;

/// Making, entering or removing namespaces failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamespaceError {
    /// The kernel refused fresh namespaces.
    #[error("create the namespaces of {dir}")]
    Unshare {
        /// Where they were to be pinned.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host name was refused.
    #[error("set host name {name:?}")]
    Hostname {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The loopback interface could not be set up.
    #[error("set the loopback interface of {dir} up")]
    Loopback {
        /// Where the namespace is pinned.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A sysctl was refused.
    #[error("set sysctl {name}")]
    Sysctl {
        /// Its name with dots.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pin could not be mounted or unmounted.
    #[error("pin namespace {path}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pinned namespace could not be entered.
    #[error("enter namespace {path}")]
    Enter {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread could be started.
    #[error("start a thread for namespaces")]
    Thread(#[source] io::Error),
}

/// What namespaces a sandbox gets. A kind that the pod shares with the node is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) network: bool,
    pub(crate) ipc: bool,
    /// A user namespace that owns all the others.
    pub(crate) user: Option<UserMapping>,
    /// A UTS namespace, and the host name in it.
    pub(crate) hostname: Option<String>,
    /// Namespaced sysctls that the pod asks for, by name with dots.
    pub(crate) sysctls: Vec<(String, String)>,
    /// Those that a pod gets unless it asks for other values. A kernel that lacks one leaves it out.
    pub(crate) default_sysctls: &'static [(&'static str, &'static str)],
}

/// Which ids of the host the ids of a user namespace are, from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserMapping {
    /// The host's user that is root there, and how many follow.
    pub(crate) uids: (u32, u32),
    /// The same of groups.
    pub(crate) gids: (u32, u32),
}

impl Plan {
    fn is_empty(&self) -> bool {
        !self.network && !self.ipc && self.hostname.is_none() && self.user.is_none()
    }
}

/// Makes the namespaces and pins them as `dir/{net,ipc,uts}`.
///
/// On an error pins may remain; [`remove`] takes them away.
pub(crate) async fn create(plan: Plan, dir: PathBuf) -> Result<(), NamespaceError> {
    if plan.is_empty() && plan.sysctls.is_empty() {
        return Ok(());
    }
    on_thread(move || create_here(&plan, &dir)).await
}

fn create_here(plan: &Plan, dir: &Path) -> Result<(), NamespaceError> {
    let mut flags = 0;
    let mut kinds = Vec::with_capacity(3);
    for (wanted, flag, kind) in [
        (plan.network, sys::ns::NET, "net"),
        (plan.ipc, sys::ns::IPC, "ipc"),
        (plan.hostname.is_some(), sys::ns::UTS, "uts"),
    ] {
        if wanted {
            flags |= flag;
            kinds.push(kind);
        }
    }
    let unshare = |source| NamespaceError::Unshare { dir: dir.into(), source };
    // Alive until the pins hold the namespaces.
    let anchor = match plan.user {
        Some(mapping) => {
            kinds.push("user");
            Some(enter_with_user(flags, &kinds, mapping).map_err(unshare)?)
        }
        None => {
            sys::unshare(flags).map_err(unshare)?;
            None
        }
    };
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|error| NamespaceError::Hostname { name: name.clone(), source: error.into() })?;
    }
    if plan.network {
        sys::loopback_up().map_err(|source| NamespaceError::Loopback { dir: dir.into(), source })?;
    }
    set_sysctls(plan)?;
    fs::create_dir_all(dir).map_err(|source| NamespaceError::Pin { path: dir.into(), source })?;
    for kind in kinds {
        let path = dir.join(kind);
        let source = match &anchor {
            Some(anchor) => anchor.file(&format!("ns/{kind}")),
            None => format!("/proc/thread-self/ns/{kind}").into(),
        };
        let pinned = File::create(&path).and_then(|_| Ok(mount_bind(source, &path)?));
        pinned.map_err(|source| NamespaceError::Pin { path, source })?;
    }
    Ok(())
}

fn set_sysctls(plan: &Plan) -> Result<(), NamespaceError> {
    for (name, value) in plan.default_sysctls {
        match fs::write(sysctl_path(name), value) {
            // A kernel before 4.11.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(name, %error, "a pod has the kernel's own value of a sysctl"),
            Ok(()) => {}
        }
    }
    for (name, value) in &plan.sysctls {
        fs::write(sysctl_path(name), value)
            .map_err(|source| NamespaceError::Sysctl { name: name.clone(), source })?;
    }
    Ok(())
}

/// Makes namespaces that a fresh user namespace owns, and moves this thread into all but that one.
fn enter_with_user(flags: i32, kinds: &[&str], mapping: UserMapping) -> io::Result<sys::Anchor> {
    let anchor = sys::Anchor::start(flags | sys::ns::USER)?;
    for (file, (first, count)) in [("uid_map", mapping.uids), ("gid_map", mapping.gids)] {
        fs::write(anchor.file(file), format!("0 {first} {count}\n"))?;
    }
    for (kind, flag) in [("net", sys::ns::NET), ("ipc", sys::ns::IPC), ("uts", sys::ns::UTS)] {
        if kinds.contains(&kind) {
            sys::setns(File::open(anchor.file(&format!("ns/{kind}")))?.as_fd(), flag)?;
        }
    }
    Ok(anchor)
}

/// The file of a sysctl. Interface names may hold dots, so a name that is written with slashes keeps its dots.
fn sysctl_path(name: &str) -> PathBuf {
    let first_separator = name.find(['.', '/']).map(|at| &name[at..=at]);
    let relative = match first_separator {
        Some("/") => name.to_owned(),
        _ => name.replace('.', "/"),
    };
    Path::new("/proc/sys").join(relative)
}

/// Unpins all namespaces of `dir` and removes it. Idempotent; goes on after an error and returns all.
pub(crate) fn remove(dir: &Path) -> Vec<NamespaceError> {
    let mut errors = Vec::new();
    for kind in ["net", "ipc", "uts", "pid", "user"] {
        let path = dir.join(kind);
        if let Err(source) = unpin(&path) {
            errors.push(NamespaceError::Pin { path, source });
        }
    }
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound && errors.is_empty() => {
            errors.push(NamespaceError::Pin { path: dir.into(), source });
        }
        _ => {}
    }
    errors
}

fn unpin(path: &Path) -> io::Result<()> {
    // A pin may be mounted more than once when a kill fell between mount and record: unmount until none is left.
    loop {
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) => continue,
            // Not a mount point, or gone.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs `act` on a thread inside the network namespace pinned at `path`.
pub(crate) async fn within_network<T, F>(path: PathBuf, act: F) -> Result<T, NamespaceError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    on_thread(move || {
        let enter = |source| NamespaceError::Enter { path: path.clone(), source };
        let pin = File::open(&path).map_err(enter)?;
        sys::setns(pin.as_fd(), sys::ns::NET).map_err(enter)?;
        Ok(act())
    })
    .await
}

/// Runs `act` on a thread of its own that ends with it.
pub(crate) async fn on_thread<T, F>(act: F) -> Result<T, NamespaceError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, NamespaceError> + Send + 'static,
{
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("namespaces".into())
        .stack_size(128 << 10)
        .spawn(move || {
            // The caller may have gone; what was made is found by its pins.
            let _ = done.send(act());
        })
        .map_err(NamespaceError::Thread)?;
    result.await.unwrap_or_else(|_| Err(NamespaceError::Thread(io::Error::other("the thread panicked"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_names_keep_dots_of_interfaces_when_written_with_slashes() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), Path::new("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.100/forwarding"),
            Path::new("/proc/sys/net/ipv4/conf/eth0.100/forwarding")
        );
    }

    #[tokio::test]
    async fn namespaces_are_made_pinned_entered_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pins = dir.path().join("ns");
        let plan = Plan {
            network: true,
            ipc: true,
            user: None,
            hostname: Some("pod-a".into()),
            sysctls: vec![("net/ipv4/ip_unprivileged_port_start".into(), "81".into())],
            default_sysctls: &[
                ("net.ipv4.ip_unprivileged_port_start", "0"),
                ("net.ipv4.ping_group_range", "0 2147483647"),
                ("net.ipv4.no_kernel_has_this", "1"),
            ],
        };
        let host = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
        create(plan, pins.clone()).await.unwrap();
        let (port, groups, links) = within_network(pins.join("net"), || {
            (
                fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(),
                fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap(),
                fs::read_to_string("/proc/thread-self/net/dev").unwrap(),
            )
        })
        .await
        .unwrap();
        // What the pod asks for wins, whichever way it writes the name.
        assert_eq!(port.trim(), "81");
        assert_eq!(groups.split_whitespace().collect::<Vec<_>>(), ["0", "2147483647"]);
        assert!(links.contains("lo:"));
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(), host);
        assert!(remove(&pins).is_empty());
        assert!(remove(&pins).is_empty());
        assert!(!pins.exists());
    }
}
