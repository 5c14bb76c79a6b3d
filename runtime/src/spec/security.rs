//! Which seccomp, AppArmor and SELinux confinement a container gets. Pure over what was observed.

use std::path::PathBuf;

use coracle_cri::v1;
use oci_spec::runtime::{LinuxCapabilities, LinuxSeccomp};

use super::host::HostFacts;
use super::observe::Observed;
use super::seccomp_default;
use v1::security_profile::ProfileType;

/// The AppArmor profile of ours that stands for `RuntimeDefault`, and containerd's, taken where it is loaded.
pub const APPARMOR_DEFAULTS: [&str; 2] = ["cri-coracle.apparmor.d", "cri-containerd.apparmor.d"];

/// A confinement that cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// A kernel without seccomp.
    #[error(
        "seccomp is not supported by this kernel (CONFIG_SECCOMP_FILTER), but the pod asks for a profile"
    )]
    NoSeccomp,
    /// A kernel without AppArmor.
    #[error("apparmor is not supported by this node, but the pod asks for a profile")]
    NoAppArmor,
    /// The named profile is not loaded.
    #[error("apparmor profile not found {0}")]
    AppArmorNotLoaded(String),
    /// `RuntimeDefault` without a default.
    #[error("apparmor profile RuntimeDefault is asked for, but no default profile is loaded ({})", APPARMOR_DEFAULTS.join(" or "))]
    NoAppArmorDefault,
    /// A reference beside another type.
    #[error("{0} config invalid: LocalhostRef must only be set if ProfileType is Localhost")]
    StrayReference(&'static str),
    /// A type of a newer CRI.
    #[error("{kind} profile type {value} is not known")]
    UnknownType {
        /// seccomp or apparmor.
        kind: &'static str,
        /// The number.
        value: i32,
    },
    /// The deprecated path in a form that nobody knows.
    #[error("invalid {kind} profile {value:?}")]
    InvalidPath {
        /// seccomp or apparmor.
        kind: &'static str,
        /// What was given.
        value: String,
    },
}

/// What the spec gets.
#[derive(Debug, Default)]
pub(super) struct Confinement {
    pub seccomp: Option<LinuxSeccomp>,
    pub apparmor: Option<String>,
    pub process_label: Option<String>,
    pub mount_label: Option<String>,
}

/// Decides all of it.
pub(super) fn choose(
    sc: &v1::LinuxContainerSecurityContext,
    caps: &LinuxCapabilities,
    observed: &Observed,
    host: &HostFacts,
) -> Result<Confinement, SecurityError> {
    let (process_label, mount_label) = selinux(sc, host);
    Ok(Confinement {
        seccomp: seccomp(sc, caps, observed, host)?,
        apparmor: apparmor(sc, observed, host)?,
        process_label,
        mount_label,
    })
}

/// A profile as one of three.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Default,
    Unconfined,
    Localhost(String),
}

/// The profile of the field, else of the deprecated path, else none.
fn wanted(
    kind: &'static str,
    profile: Option<&v1::SecurityProfile>,
    path: &str,
) -> Result<Option<Wanted>, SecurityError> {
    if let Some(profile) = profile {
        let local = profile.localhost_ref.trim_start_matches("localhost/").to_owned();
        return match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::Localhost) => Ok(Some(Wanted::Localhost(local))),
            Ok(_) if !local.is_empty() => Err(SecurityError::StrayReference(kind)),
            Ok(ProfileType::RuntimeDefault) => Ok(Some(Wanted::Default)),
            Ok(ProfileType::Unconfined) => Ok(Some(Wanted::Unconfined)),
            Err(_) => Err(SecurityError::UnknownType { kind, value: profile.profile_type }),
        };
    }
    match path {
        "" => Ok(None),
        "runtime/default" | "docker/default" => Ok(Some(Wanted::Default)),
        "unconfined" => Ok(Some(Wanted::Unconfined)),
        path => match path.strip_prefix("localhost/") {
            Some(local) => Ok(Some(Wanted::Localhost(local.to_owned()))),
            None => Err(SecurityError::InvalidPath { kind, value: path.to_owned() }),
        },
    }
}

#[allow(deprecated, reason = "kubelets before 1.19 speak through these fields")]
fn wanted_seccomp(sc: &v1::LinuxContainerSecurityContext) -> Result<Option<Wanted>, SecurityError> {
    wanted("seccomp", sc.seccomp.as_ref(), &sc.seccomp_profile_path)
}

#[allow(deprecated, reason = "kubelets before 1.30 speak through these fields")]
fn wanted_apparmor(sc: &v1::LinuxContainerSecurityContext) -> Result<Option<Wanted>, SecurityError> {
    wanted("apparmor", sc.apparmor.as_ref(), &sc.apparmor_profile)
}

/// The file of a seccomp profile that must be read for this container.
pub(super) fn seccomp_file(sc: &v1::LinuxContainerSecurityContext) -> Option<PathBuf> {
    match wanted_seccomp(sc) {
        Ok(Some(Wanted::Localhost(path))) if !sc.privileged => Some(PathBuf::from(path)),
        _ => None,
    }
}

/// The AppArmor profile that must be loaded for this container.
pub(super) fn apparmor_name(sc: &v1::LinuxContainerSecurityContext) -> Option<String> {
    match wanted_apparmor(sc) {
        Ok(Some(Wanted::Localhost(name))) => Some(name),
        _ => None,
    }
}

/// Whether a profile is in the kernel's list (`name (mode)` a line).
pub(super) fn is_loaded(profiles: &str, name: &str) -> bool {
    profiles.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(" (")))
}

/// The first default profile that is loaded.
pub(super) fn loaded_default(profiles: &str) -> Option<String> {
    APPARMOR_DEFAULTS.iter().find(|name| is_loaded(profiles, name)).map(|name| (*name).to_owned())
}

fn seccomp(
    sc: &v1::LinuxContainerSecurityContext,
    caps: &LinuxCapabilities,
    observed: &Observed,
    host: &HostFacts,
) -> Result<Option<LinuxSeccomp>, SecurityError> {
    if sc.privileged {
        return Ok(None);
    }
    match wanted_seccomp(sc)? {
        None | Some(Wanted::Unconfined) => Ok(None),
        Some(_) if !host.seccomp => Err(SecurityError::NoSeccomp),
        Some(Wanted::Default) => Ok(Some(seccomp_default::profile(caps, std::env::consts::ARCH))),
        Some(Wanted::Localhost(_)) => Ok(observed.seccomp_file.clone()),
    }
}

fn apparmor(
    sc: &v1::LinuxContainerSecurityContext,
    observed: &Observed,
    host: &HostFacts,
) -> Result<Option<String>, SecurityError> {
    let wanted = wanted_apparmor(sc)?;
    if !host.apparmor {
        return match wanted {
            None | Some(Wanted::Unconfined) => Ok(None),
            Some(_) => Err(SecurityError::NoAppArmor),
        };
    }
    match wanted {
        Some(Wanted::Unconfined) => Ok(None),
        Some(Wanted::Localhost(name)) if observed.apparmor_loaded => Ok(Some(name)),
        Some(Wanted::Localhost(name)) => Err(SecurityError::AppArmorNotLoaded(name)),
        None | Some(Wanted::Default) if sc.privileged => Ok(None),
        Some(Wanted::Default) if host.apparmor_default.is_none() => Err(SecurityError::NoAppArmorDefault),
        None | Some(Wanted::Default) => Ok(host.apparmor_default.clone()),
    }
}

/// The label of a container's files, if it has one.
pub(super) fn file_label(sc: &v1::LinuxContainerSecurityContext, host: &HostFacts) -> Option<String> {
    selinux(sc, host).1
}

/// Labels for processes and files, from the pod's options and the usual rest. Without SELinux in the kernel, or
/// without options, there are none; a privileged process keeps the runtime's own.
fn selinux(sc: &v1::LinuxContainerSecurityContext, host: &HostFacts) -> (Option<String>, Option<String>) {
    let Some(options) = sc.selinux_options.as_ref().filter(|_| host.selinux) else { return (None, None) };
    let or =
        |value: &String, default: &str| if value.is_empty() { default.to_owned() } else { value.clone() };
    let (user, level) = (or(&options.user, "system_u"), or(&options.level, "s0"));
    let process =
        format!("{user}:{}:{}:{level}", or(&options.role, "system_r"), or(&options.r#type, "container_t"));
    let mount = format!("system_u:object_r:container_file_t:{level}");
    ((!sc.privileged).then_some(process), Some(mount))
}
