//! The AppArmor profile behind `RuntimeDefault`: its text (pure), and loading it with `apparmor_parser`. Called once
//! when the runtime starts, before [`super::host::HostFacts::gather`], which then finds it loaded.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::security::{APPARMOR_DEFAULTS, is_loaded};

/// Where files that profiles include lie; a host may lack any of them.
const INCLUDES: &str = "/etc/apparmor.d";

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

/// Whether the kernel enforces AppArmor profiles.
pub fn is_enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Loads the default profile unless it, or containerd's, is loaded. Does nothing on a node without AppArmor.
///
/// Runs a short-lived process; call it from a thread that may block.
pub fn load_default() -> Result<(), AppArmorError> {
    let loaded = std::fs::read_to_string(PROFILES).unwrap_or_default();
    if !is_enabled() || APPARMOR_DEFAULTS.iter().any(|name| is_loaded(&loaded, name)) {
        return Ok(());
    }
    let own = std::fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let text = default_profile(|file| Path::new(INCLUDES).join(file).exists(), label(&own));
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

/// The name of a process's own profile, without its mode.
fn label(current: &str) -> &str {
    current.split_whitespace().next().unwrap_or("unconfined")
}

/// The profile: everything that the container's capabilities allow, but no writing to the kernel's knobs in /proc and
/// /sys, no mounting, and signals and tracing only among containers and from the host's side: what is unconfined, the
/// agent, and the makers that some distributions confine.
fn default_profile(has: impl Fn(&str) -> bool, own: &str) -> String {
    let name = APPARMOR_DEFAULTS[0];
    // Without a version of the rules, those that a newer parser knows in addition would deny what is not named here.
    let abi = if has("abi/3.0") { "abi <abi/3.0>,\n" } else { "" };
    // The shared rules use variables of the shared settings, so these come with those or not at all.
    let (settings, base) = if has("tunables/global") && has("abstractions/base") {
        ("#include <tunables/global>\n", "  #include <abstractions/base>\n")
    } else {
        ("@{PROC}=/proc/\n", "")
    };
    format!(
        "{abi}{settings}\
         profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
         {base}\
         \x20 network,\n\
         \x20 capability,\n\
         \x20 file,\n\
         \x20 umount,\n\
         \x20 signal (receive) peer=unconfined,\n\
         \x20 signal (receive) peer=runc,\n\
         \x20 signal (receive) peer=crun,\n\
         \x20 signal (receive) peer={own},\n\
         \x20 signal (send,receive) peer={name},\n\
         \x20 ptrace (trace,read,tracedby,readby) peer={name},\n\
         \x20 deny mount,\n\
         \x20 deny @{{PROC}}/* w,\n\
         \x20 deny @{{PROC}}/{{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}}/** w,\n\
         \x20 deny @{{PROC}}/sys/[^k]** w,\n\
         \x20 deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,\n\
         \x20 deny @{{PROC}}/sysrq-trigger rwklx,\n\
         \x20 deny @{{PROC}}/mem rwklx,\n\
         \x20 deny @{{PROC}}/kmem rwklx,\n\
         \x20 deny @{{PROC}}/kcore rwklx,\n\
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
    fn what_the_profile_uses_is_declared_whatever_files_the_host_has() {
        let whole = default_profile(|_| true, "unconfined");
        let settings = whole.find("#include <tunables/global>").unwrap();
        assert!(
            whole.starts_with("abi <abi/3.0>,\n")
                && settings < whole.find("profile cri-coracle.apparmor.d").unwrap()
        );
        assert!(whole.contains("#include <abstractions/base>") && !whole.contains("@{PROC}="), "{whole}");
        for lacking in ["tunables/global", "abstractions/base"] {
            let text = default_profile(|file| file != lacking, "unconfined");
            assert!(text.contains("@{PROC}=/proc/\n") && !text.contains("#include"), "{lacking}: {text}");
        }
        let text = default_profile(|_| false, "an-agents-own");
        assert!(text.starts_with("@{PROC}=") && text.contains("peer=an-agents-own,"), "{text}");
        assert!(text.ends_with("}\n") && text.contains("deny @{PROC}/{[^1-9/],"), "{text}");
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn the_label_of_a_process_has_no_mode() {
        assert_eq!(label("unconfined\n"), "unconfined");
        assert_eq!(label("mine (enforce)\n"), "mine");
        assert_eq!(label(""), "unconfined");
    }

    #[test]
    fn a_node_without_apparmor_is_left_alone() {
        if !Path::new(PROFILES).exists() {
            load_default().unwrap();
        }
    }
}
