//! Pods that ask for an AppArmor profile on a host that cannot enforce one (the kubelet's `pkg/security/apparmor`, 1.36).

use super::Rejection;
use crate::api::{AppArmorProfile, Pod};

/// Why a host without AppArmor does not take the pod.
pub(super) fn reject(pod: &Pod) -> Option<Rejection> {
    let of_pod =
        pod.spec.security_context.as_deref().and_then(|context| context.app_armor_profile.as_deref());
    let of_containers = pod.all_containers().filter_map(|container| {
        container.security_context.as_deref().and_then(|context| context.app_armor_profile.as_deref())
    });
    let confines = |profile: &AppArmorProfile| profile.r#type != "Unconfined";
    of_pod.into_iter().chain(of_containers).any(confines).then(|| Rejection {
        reason: "AppArmor".to_owned(),
        message: "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_unconfined_needs_no_apparmor() {
        let rejected = |spec: Value| reject(&serde_json::from_value(json!({"spec": spec})).unwrap());
        let context = |kind: &str| json!({"appArmorProfile": {"type": kind}});
        assert_eq!(rejected(json!({})), None);
        assert_eq!(rejected(json!({"securityContext": context("Unconfined")})), None);
        let rejection = rejected(json!({"securityContext": context("RuntimeDefault")})).unwrap();
        assert_eq!(rejection.reason, "AppArmor");
        assert_eq!(rejection.message, "Cannot enforce AppArmor: AppArmor is not enabled on the host");
        for list in ["initContainers", "containers", "ephemeralContainers"] {
            let pod = json!({list: [{"name": "a", "securityContext": context("Localhost")}]});
            assert!(rejected(pod).is_some(), "{list}");
        }
    }
}
