//! The security settings of a container: its own over its pod's over the image's.
//!
//! Pure; rules and error texts are the kubelet's.

use coracle_cri::v1::security_profile::ProfileType;
use coracle_cri::v1::{Capability, Int64Value, LinuxContainerSecurityContext, SecurityProfile};

use super::{ContainerConfigError, ContainerInputs};
use crate::api::{AppArmorProfile, Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext};
use crate::sandbox_config;

const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Security settings that cannot be met.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// runAsNonRoot with runAsUser 0.
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    RunAsRoot {
        /// The pod, as `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// runAsNonRoot with an image whose user is a name, which may be root.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root \
         (pod: \"{pod}\", container: {container})"
    )]
    NonNumericUser {
        /// The image's user.
        user: String,
        /// The pod, as `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// runAsNonRoot with an image that runs as root.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageRunsAsRoot {
        /// The pod, as `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// runAsNonRoot with an image whose user is no valid one.
    #[error(
        "container has runAsNonRoot and image has an invalid user id ({uid}). (Must be 1-({})): must be \
         between 0 and {}, inclusive (pod: \"{pod}\", container: {container})",
        i32::MAX,
        i32::MAX
    )]
    InvalidUserId {
        /// The image's user.
        uid: i64,
        /// The pod, as `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// A seccomp profile of type Localhost without a name.
    #[error("localhostProfile must be set if seccompProfile type is Localhost.")]
    NoSeccompProfile,
    /// An AppArmor profile of type Localhost without a name.
    #[error("missing localhost apparmor profile name")]
    NoAppArmorProfile,
    /// An AppArmor profile type that there is not.
    #[error("unknown apparmor profile type: {0:?}")]
    AppArmorType(String),
}

/// `name_namespace(uid)`, as the kubelet's messages name a pod.
fn pod_name(pod: &Pod) -> String {
    format!("{}_{}({})", pod.metadata.name, pod.metadata.namespace, pod.metadata.uid)
}

pub(super) fn verify_non_root(
    pod: &Pod,
    container: &Container,
    uid: Option<i64>,
    username: &str,
) -> Result<(), SecurityError> {
    let own = container.security_context.as_deref();
    let of_pod = pod.spec.security_context.as_deref();
    let required = own.and_then(|c| c.run_as_non_root).or_else(|| of_pod.and_then(|c| c.run_as_non_root));
    if required != Some(true) {
        return Ok(());
    }
    let (pod_name, container_name) = (pod_name(pod), container.name.clone());
    match (run_as_user(own, of_pod), uid) {
        (Some(0), _) => Err(SecurityError::RunAsRoot { pod: pod_name, container: container_name }),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(SecurityError::ImageRunsAsRoot { pod: pod_name, container: container_name }),
        (None, Some(uid)) if i32::try_from(uid).map_or(true, |uid| uid < 0) => {
            Err(SecurityError::InvalidUserId { uid, pod: pod_name, container: container_name })
        }
        (None, None) if !username.is_empty() => {
            let user = username.to_owned();
            Err(SecurityError::NonNumericUser { user, pod: pod_name, container: container_name })
        }
        _ => Ok(()),
    }
}

fn run_as_user(own: Option<&SecurityContext>, of_pod: Option<&PodSecurityContext>) -> Option<i64> {
    own.and_then(|c| c.run_as_user).or_else(|| of_pod.and_then(|c| c.run_as_user))
}

pub(super) fn security_context(
    pod: &Pod,
    container: &Container,
    (image_uid, image_user): (Option<i64>, &str),
    inputs: &ContainerInputs<'_>,
) -> Result<LinuxContainerSecurityContext, ContainerConfigError> {
    let own = container.security_context.as_deref();
    let of_pod = pod.spec.security_context.as_deref();
    let asked_user = run_as_user(own, of_pod);
    let group = own.and_then(|c| c.run_as_group).or_else(|| of_pod.and_then(|c| c.run_as_group));
    let selinux = own
        .and_then(|c| c.se_linux_options.as_deref())
        .or_else(|| of_pod.and_then(|c| c.se_linux_options.as_deref()));
    let is_unmasked = own.is_some_and(|c| c.proc_mount.as_deref() == Some("Unmasked"));
    let (apparmor, apparmor_profile) = apparmor(own, of_pod)?;
    let capabilities = own.and_then(|c| c.capabilities.as_deref()).map(|capabilities| Capability {
        add_capabilities: capabilities.add.clone(),
        drop_capabilities: capabilities.drop.clone(),
        add_ambient_capabilities: Vec::new(),
    });
    #[allow(deprecated)] // Older runtimes read the AppArmor profile from the old field.
    Ok(LinuxContainerSecurityContext {
        capabilities,
        privileged: own.and_then(|c| c.privileged) == Some(true),
        namespace_options: Some(sandbox_config::namespace_options(pod, inputs.user_namespace.clone())),
        selinux_options: selinux.map(sandbox_config::selinux),
        run_as_user: asked_user.or(image_uid).map(|value| Int64Value { value }),
        run_as_group: group.map(|value| Int64Value { value }),
        run_as_username: if asked_user.is_none() { image_user.to_owned() } else { String::new() },
        readonly_rootfs: own.and_then(|c| c.read_only_root_filesystem) == Some(true),
        supplemental_groups: sandbox_config::supplemental_groups(pod),
        supplemental_groups_policy: sandbox_config::supplemental_groups_policy(pod)?.into(),
        no_new_privs: own.and_then(|c| c.allow_privilege_escalation) == Some(false),
        masked_paths: if is_unmasked { Vec::new() } else { masked_paths(&inputs.facts.thermal_paths) },
        readonly_paths: if is_unmasked { Vec::new() } else { READONLY_PATHS.map(str::to_owned).to_vec() },
        seccomp: Some(seccomp(own, of_pod, inputs)?),
        apparmor,
        apparmor_profile,
        ..LinuxContainerSecurityContext::default()
    })
}

fn masked_paths(thermal: &[String]) -> Vec<String> {
    MASKED_PATHS.iter().map(|path| (*path).to_owned()).chain(thermal.iter().cloned()).collect()
}

fn profile(kind: ProfileType, localhost_ref: String) -> SecurityProfile {
    SecurityProfile { profile_type: kind.into(), localhost_ref }
}

fn seccomp(
    own: Option<&SecurityContext>,
    of_pod: Option<&PodSecurityContext>,
    inputs: &ContainerInputs<'_>,
) -> Result<SecurityProfile, SecurityError> {
    let asked: Option<&SeccompProfile> = own
        .and_then(|c| c.seccomp_profile.as_deref())
        .or_else(|| of_pod.and_then(|c| c.seccomp_profile.as_deref()));
    let plain = |kind| Ok(profile(kind, String::new()));
    match asked.map(|asked| (asked.r#type.as_str(), asked.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => plain(ProfileType::RuntimeDefault),
        Some(("Localhost", Some(name))) if !name.is_empty() => {
            Ok(profile(ProfileType::Localhost, format!("{}/{name}", inputs.seccomp_root)))
        }
        Some(("Localhost", _)) => Err(SecurityError::NoSeccompProfile),
        None if inputs.seccomp_default => plain(ProfileType::RuntimeDefault),
        _ => plain(ProfileType::Unconfined),
    }
}

/// The profile in CRI's present form and in its old one.
fn apparmor(
    own: Option<&SecurityContext>,
    of_pod: Option<&PodSecurityContext>,
) -> Result<(Option<SecurityProfile>, String), SecurityError> {
    let asked: Option<&AppArmorProfile> = own
        .and_then(|c| c.app_armor_profile.as_deref())
        .or_else(|| of_pod.and_then(|c| c.app_armor_profile.as_deref()));
    let Some(asked) = asked else {
        return Ok((None, String::new()));
    };
    let plain = |kind, old: &str| Ok((Some(profile(kind, String::new())), old.to_owned()));
    match (asked.r#type.as_str(), &asked.localhost_profile) {
        ("RuntimeDefault", _) => plain(ProfileType::RuntimeDefault, "runtime/default"),
        ("Unconfined", _) => plain(ProfileType::Unconfined, "unconfined"),
        ("Localhost", Some(name)) => {
            Ok((Some(profile(ProfileType::Localhost, name.clone())), format!("localhost/{name}")))
        }
        ("Localhost", None) => Err(SecurityError::NoAppArmorProfile),
        (other, _) => Err(SecurityError::AppArmorType(other.to_owned())),
    }
}
