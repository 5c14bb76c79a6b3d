//! Security settings of pods and containers.
//!
//! Called by `pod` and `containers`; pure.

use std::collections::BTreeSet;

use super::field::{Errors, Path};
use super::names;
use super::volumes::descending_path;
use crate::api::{AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};

const PROFILE_TYPES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn id(id: Option<i64>, path: &Path<'_>, errors: &mut Errors) {
    let Some(id) = id else { return };
    for message in names::user_id(id) {
        errors.invalid(path, id, message);
    }
}

/// What holds for every container of a pod.
pub(super) fn validate_pod_security(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let Some(context) = &spec.security_context else { return };
    let path = path.child("securityContext");
    id(context.fs_group, &path.child("fsGroup"), errors);
    id(context.run_as_user, &path.child("runAsUser"), errors);
    id(context.run_as_group, &path.child("runAsGroup"), errors);
    let groups = path.child("supplementalGroups");
    for (n, group) in context.supplemental_groups.iter().enumerate() {
        id(Some(*group), &groups.index(n), errors);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid {
        let reason = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, reason);
    }
    sysctls(context, spec, &path.child("sysctls"), errors);
    for (name, value, supported) in [
        ("fsGroupChangePolicy", &context.fs_group_change_policy, ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", &context.supplemental_groups_policy, ["Merge", "Strict"]),
        ("seLinuxChangePolicy", &context.se_linux_change_policy, ["MountOption", "Recursive"]),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !supported.contains(value)) {
            errors.not_supported(&path.child(name), value, &supported);
        }
    }
    seccomp(context.seccomp_profile.as_deref(), &path.child("seccompProfile"), errors);
    app_armor(context.app_armor_profile.as_deref(), &path.child("appArmorProfile"), errors);
}

fn sysctls(context: &PodSecurityContext, spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (n, sysctl) in context.sysctls.iter().enumerate() {
        let item = path.index(n);
        let path = item.child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl_name(name) {
            let segment = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            let regex = format!("^({segment}[\\./])*{segment}$");
            errors.invalid(&path, name, format!("must have at most 253 characters and match regex {regex}"));
        } else if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
        let dotted = name.replace('/', ".");
        let is_ipc = dotted.starts_with("fs.mqueue.")
            || ["kernel.shm", "kernel.msg"].iter().any(|prefix| dotted.starts_with(prefix))
            || dotted == "kernel.sem";
        if spec.host_network && dotted.starts_with("net.") {
            errors.invalid(&path, name, "may not be specified when 'hostNetwork' is true");
        } else if spec.host_ipc && is_ipc {
            errors.invalid(&path, name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_segment = |segment: &str| {
        segment.bytes().next().is_some_and(edge)
            && segment.bytes().last().is_some_and(edge)
            && segment.bytes().all(|b| edge(b) || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split(['.', '/']).all(is_segment)
}

/// Settings of one container.
pub(super) fn validate_container_security(
    context: Option<&SecurityContext>,
    spec: &PodSpec,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(context) = context else { return };
    let path = path.child("securityContext");
    id(context.run_as_user, &path.child("runAsUser"), errors);
    id(context.run_as_group, &path.child("runAsGroup"), errors);
    match context.proc_mount.as_deref() {
        None | Some("Default") => {}
        Some("Unmasked") => {
            if spec.host_users != Some(false) {
                let reason = "`hostUsers` must be false to use `Unmasked`";
                errors.invalid(&path.child("procMount"), "Unmasked", reason);
            }
        }
        Some(other) => errors.not_supported(&path.child("procMount"), other, &["Default", "Unmasked"]),
    }
    seccomp(context.seccomp_profile.as_deref(), &path.child("seccompProfile"), errors);
    if context.allow_privilege_escalation == Some(false) {
        let shown = Json(serde_json::to_string(context).unwrap_or_default());
        if context.privileged == Some(true) {
            let reason = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(&path, shown.clone(), reason);
        }
        let added = context.capabilities.iter().flat_map(|capabilities| &capabilities.add);
        if added.into_iter().any(|capability| capability == "CAP_SYS_ADMIN") {
            let reason =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(&path, shown, reason);
        }
    }
    app_armor(context.app_armor_profile.as_deref(), &path.child("appArmorProfile"), errors);
}

/// A whole object as the bad value.
#[derive(Clone)]
struct Json(String);

impl super::field::Shown for Json {
    fn shown(self) -> String {
        self.0
    }
}

fn seccomp(profile: Option<&SeccompProfile>, path: &Path<'_>, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    match profile.r#type.as_str() {
        "" => errors.required(&path.child("type"), "type is required when seccompProfile is set"),
        kind if !PROFILE_TYPES.contains(&kind) => {
            errors.not_supported(&path.child("type"), kind, &PROFILE_TYPES);
        }
        _ => {}
    }
    let file_path = path.child("localhostProfile");
    match (profile.r#type == "Localhost", &profile.localhost_profile) {
        (true, None) => errors.required(&file_path, "must be set when seccomp type is Localhost"),
        (true, Some(file)) => descending_path(file, &file_path, errors),
        (false, Some(_)) => {
            let shown = Json(serde_json::to_string(profile).unwrap_or_default());
            errors.invalid(&file_path, shown, "can only be set when seccomp type is Localhost");
        }
        (false, None) => {}
    }
}

fn app_armor(profile: Option<&AppArmorProfile>, path: &Path<'_>, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let name_path = path.child("localhostProfile");
    match profile.r#type.as_str() {
        "Localhost" => match profile.localhost_profile.as_deref() {
            Some(name) if name.trim() != name => {
                errors.invalid(&name_path, name, "must not be padded with whitespace");
            }
            Some(name) if !name.is_empty() => {
                if name.len() > 4095 {
                    errors.too_long(&name_path, 4095);
                }
            }
            _ => errors.required(&name_path, "must be set when AppArmor type is Localhost"),
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(name) = &profile.localhost_profile {
                errors.invalid(&name_path, name, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errors.required(&path.child("type"), "type is required when appArmorProfile is set"),
        kind => errors.not_supported(&path.child("type"), kind, &PROFILE_TYPES),
    }
}
