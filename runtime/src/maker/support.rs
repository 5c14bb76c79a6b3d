//! Whether this kernel can run our own maker, and what it offers. Asked once when the runtime starts.

use std::io;

use super::sys;

/// System calls without which our maker cannot mount: libcontainer 0.7 uses nothing else (Linux 5.12).
const NEEDED: [(libc::c_long, &str); 6] = [
    (libc::SYS_open_tree, "open_tree"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_fsopen, "fsopen"),
    (libc::SYS_fsconfig, "fsconfig"),
    (libc::SYS_fsmount, "fsmount"),
    (libc::SYS_mount_setattr, "mount_setattr"),
];

/// The system calls that are missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this kernel lacks {}, which containers made by Coracle itself need (Linux 5.12); install runc or crun",
    calls.join(", ")
)]
pub struct Missing {
    /// Their names.
    pub calls: Vec<&'static str>,
}

/// Probes the system calls that our maker needs, without effect on anything.
///
/// The error names what is missing; the runtime then takes `runc` or `crun` from the path.
pub fn kernel_supports_own_maker() -> Result<(), Missing> {
    let calls: Vec<_> =
        NEEDED.iter().filter(|(number, _)| !sys::has_call(*number)).map(|(_, name)| *name).collect();
    if calls.is_empty() { Ok(()) } else { Err(Missing { calls }) }
}

/// The OCI features document, as far as callers ask for it.
pub(super) fn features() -> String {
    let recursive = sys::has_call(libc::SYS_mount_setattr);
    let mut options = vec![
        "async",
        "atime",
        "bind",
        "defaults",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "private",
        "rbind",
        "relatime",
        "remount",
        "ro",
        "rprivate",
        "rshared",
        "rslave",
        "runbindable",
        "rw",
        "shared",
        "slave",
        "strictatime",
        "suid",
        "sync",
        "unbindable",
    ];
    if recursive {
        options.extend(["rro", "rrw", "rnosuid", "rnodev", "rnoexec"]);
    }
    let document = serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": oci_spec::runtime::VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": options,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": crate::spec::capabilities::NAMES.as_slice(),
            "cgroup": { "v1": true, "v2": true, "systemd": true },
            "seccomp": { "enabled": true },
        },
    });
    format!("{document:#}")
}

/// Whether the kernel takes programs that decide which devices a cgroup may use, as cgroup v2 needs them.
pub fn kernel_filters_devices() -> io::Result<()> {
    // r0 = 1; exit: everything is allowed.
    sys::load_device_program(&[0x0000_0001_0000_00b7, 0x95]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_the_mount_api() {
        assert_eq!(kernel_supports_own_maker(), Ok(()));
    }

    #[test]
    fn what_is_missing_is_named_with_its_cure() {
        let missing = Missing { calls: vec!["open_tree", "fsopen"] };
        assert!(missing.to_string().contains("lacks open_tree, fsopen"));
        assert!(missing.to_string().contains("install runc or crun"));
    }
}
