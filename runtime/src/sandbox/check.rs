//! What a sandbox is asked for, held against what can be: before anything is made of it. Pure.
//!
//! What comes from here goes on to plugins, to the kernel and into paths. A value that none of them takes would fail
//! their teardown just as it fails their setup, so that what was made before it could never be given back.

use std::net::IpAddr;
use std::path::{Component, Path};

use coracle_cri::v1::{self, NamespaceMode};

/// Sysctls of an IPC namespace; below `fs.mqueue.` all are.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Why a sandbox cannot be as it is asked for.
pub(super) fn check(config: &v1::PodSandboxConfig) -> Result<(), String> {
    let metadata = config.metadata.clone().unwrap_or_default();
    for (field, text) in [
        ("metadata.name", &metadata.name),
        ("metadata.namespace", &metadata.namespace),
        ("metadata.uid", &metadata.uid),
        ("hostname", &config.hostname),
        ("log_directory", &config.log_directory),
    ] {
        if text.contains('\0') {
            return Err(format!("{field} {text:?} has a zero byte"));
        }
    }
    let logs = Path::new(&config.log_directory);
    let is_fit = config.log_directory.is_empty() || logs.is_absolute() && stays_below(logs);
    if !is_fit {
        return Err(format!(
            "log_directory {:?} is not an absolute path without \"..\"",
            config.log_directory
        ));
    }
    config.port_mappings.iter().try_for_each(check_port)?;
    let options = super::namespaces(config);
    let sysctls = config.linux.iter().flat_map(|linux| &linux.sysctls);
    sysctls.into_iter().try_for_each(|(name, _)| check_sysctl(name, &options))
}

/// Why a container may not have its log there.
pub(crate) fn check_log_path(path: &str) -> Result<(), String> {
    if path.contains('\0') || !stays_below(Path::new(path)) {
        return Err(format!("log_path {path:?} does not stay below the pod's log_directory"));
    }
    Ok(())
}

fn stays_below(path: &Path) -> bool {
    path.components().all(|part| part != Component::ParentDir)
}

fn check_port(mapping: &v1::PortMapping) -> Result<(), String> {
    for (field, port) in [("host_port", mapping.host_port), ("container_port", mapping.container_port)] {
        if !(0..=65_535).contains(&port) {
            return Err(format!("port_mappings: {field} {port} is not between 0 and 65535"));
        }
    }
    if mapping.host_ip.is_empty() || mapping.host_ip.parse::<IpAddr>().is_ok() {
        Ok(())
    } else {
        Err(format!("port_mappings: host_ip {:?} is not an address", mapping.host_ip))
    }
}

/// A sysctl must be one of a namespace that is the pod's own, or it would be changed for the whole machine.
fn check_sysctl(name: &str, options: &v1::NamespaceOption) -> Result<(), String> {
    let is_word = |word: &str| {
        !matches!(word, "" | "." | "..")
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    // Either separator; with slashes, names of interfaces keep their dots.
    if !name.split('/').all(is_word) || name.split('.').any(str::is_empty) {
        return Err(format!("sysctl {name:?} is not a name"));
    }
    let dotted = name.replace('/', ".");
    let own = |mode: NamespaceMode| mode != NamespaceMode::Node;
    let (kind, is_own) = match dotted.as_str() {
        name if name.starts_with("net.") => ("network", own(options.network())),
        name if name.starts_with("fs.mqueue.") || IPC.contains(&name) => ("IPC", own(options.ipc())),
        "kernel.domainname" => ("UTS", own(options.network())),
        _ => return Err(format!("sysctl {name:?} is not in a separate kernel namespace")),
    };
    if is_own {
        Ok(())
    } else {
        Err(format!("sysctl {name:?} is not allowed in the host's {kind} namespace"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(mode: NamespaceMode) -> v1::NamespaceOption {
        v1::NamespaceOption { network: mode.into(), ipc: mode.into(), ..Default::default() }
    }

    #[test]
    fn sysctls_of_the_pods_own_namespaces_are_taken() {
        let own = options(NamespaceMode::Pod);
        for name in
            ["net.ipv4.ip_forward", "net/ipv4/conf/eth0.100/forwarding", "kernel.sem", "fs.mqueue.msg_max"]
        {
            assert_eq!(check_sysctl(name, &own), Ok(()), "{name}");
            assert!(check_sysctl(name, &options(NamespaceMode::Node)).is_err(), "{name}");
        }
        for name in [
            "",
            "/tmp/x",
            "net/../../x",
            "net/./x",
            "net..x",
            "kernel.panic",
            "vm.swappiness",
            "net.a\0b",
            "a b",
        ] {
            assert!(check_sysctl(name, &own).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_no_plugin_could_take_back_is_refused() {
        let port = |host_port, host_ip: &str| v1::PodSandboxConfig {
            port_mappings: vec![v1::PortMapping { host_port, host_ip: host_ip.into(), ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(check(&port(80, "::1")), Ok(()));
        for config in [port(-1, ""), port(65_536, ""), port(80, "here")] {
            assert!(check(&config).is_err(), "{config:?}");
        }
        for logs in ["logs", "/var/../etc", "/a\0b"] {
            let config = v1::PodSandboxConfig { log_directory: logs.into(), ..Default::default() };
            assert!(check(&config).unwrap_err().contains("log_directory"), "{logs}");
        }
        assert_eq!(check_log_path("main/0.log"), Ok(()));
        assert!(check_log_path("../../etc/passwd").is_err());
        let metadata = v1::PodSandboxMetadata { name: "a\0b".into(), ..Default::default() };
        let config = v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        assert!(check(&config).unwrap_err().contains("metadata.name"));
    }
}
