//! The AppArmor profile behind `RuntimeDefault`: its text (pure), and loading it with `apparmor_parser`. Called once
//! when the runtime starts, before [`super::host::HostFacts::gather`], which then finds it loaded.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::security::{APPARMOR_DEFAULTS, is_loaded};

/// Rules that many profiles share; a host may lack the file.
const BASE: &str = "/etc/apparmor.d/abstractions/base";

/// What the kernel has loaded.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";

/// Why the default profile is not there.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// No parser to load it with.
    #[error("AppArmor is enabled but apparmor_parser cannot be run, install the package apparmor")]
    Parser(#[source] io::Error),
    /// The parser refused it.
    #[error("apparmor_parser refused the default profile: {0}")]
    Refused(String),
}

/// Loads the default profile unless it, or containerd's, is loaded. Does nothing on a node without AppArmor.
///
/// Runs a short-lived process; call it from a thread that may block.
pub fn load_default() -> Result<(), AppArmorError> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let loaded = std::fs::read_to_string(PROFILES).unwrap_or_default();
    if !enabled.starts_with('Y') || APPARMOR_DEFAULTS.iter().any(|name| is_loaded(&loaded, name)) {
        return Ok(());
    }
    let text = default_profile(Path::new(BASE).exists());
    // Replacing is what makes a second start harmless; the cache would be a write to flash.
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(AppArmorError::Parser)?;
    if let Some(mut stdin) = parser.stdin.take() {
        stdin.write_all(text.as_bytes()).map_err(AppArmorError::Parser)?;
    }
    let output = parser.wait_with_output().map_err(AppArmorError::Parser)?;
    if output.status.success() {
        return Ok(());
    }
    Err(AppArmorError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The profile: everything that the container's capabilities allow, but no writing to the kernel's knobs in /proc and
/// /sys, no mounting, and signals and tracing only among containers and from the host.
fn default_profile(has_base: bool) -> String {
    let name = APPARMOR_DEFAULTS[0];
    let base = if has_base { "  #include <abstractions/base>\n" } else { "" };
    format!(
        "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
         {base}\
         \x20 network,\n\
         \x20 capability,\n\
         \x20 file,\n\
         \x20 umount,\n\
         \x20 signal (receive) peer=unconfined,\n\
         \x20 signal (send,receive) peer={name},\n\
         \x20 ptrace (trace,read,tracedby,readby) peer={name},\n\
         \x20 deny mount,\n\
         \x20 deny /proc/* w,\n\
         \x20 deny /proc/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}}/** w,\n\
         \x20 deny /proc/sys/[^k]** w,\n\
         \x20 deny /proc/sys/kernel/{{?,??,[^s][^h][^m]**}} w,\n\
         \x20 deny /proc/sysrq-trigger rwklx,\n\
         \x20 deny /proc/mem rwklx,\n\
         \x20 deny /proc/kmem rwklx,\n\
         \x20 deny /proc/kcore rwklx,\n\
         \x20 deny /sys/[^f]*/** wklx,\n\
         \x20 deny /sys/f[^s]*/** wklx,\n\
         \x20 deny /sys/fs/[^c]*/** wklx,\n\
         \x20 deny /sys/fs/c[^g]*/** wklx,\n\
         \x20 deny /sys/fs/cg[^r]*/** wklx,\n\
         \x20 deny /sys/firmware/** rwklx,\n\
         \x20 deny /sys/devices/virtual/powercap/** rwklx,\n\
         \x20 deny /sys/kernel/security/** rwklx,\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_whole_and_a_node_without_apparmor_is_left_alone() {
        let text = default_profile(true);
        assert!(text.starts_with("profile cri-coracle.apparmor.d flags=") && text.ends_with("}\n"), "{text}");
        assert!(
            text.contains("#include <abstractions/base>") && !default_profile(false).contains("#include")
        );
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        if !Path::new(PROFILES).exists() {
            load_default().unwrap();
        }
    }
}
