//! The kubelet's rule that a static pod refers to no object of the API.
//!
//! Called by `validate_pod` once a control plane is joined; pure. The words are those of `HasAPIObjectReference`
//! in Kubernetes' `pkg/api/pod/util.go`.

use crate::api::{Pod, Volume, VolumeProjection};

/// The first kind of object that a pod refers to, or `None`.
pub(super) fn object_reference(pod: &Pod) -> Option<String> {
    if !pod.spec.service_account_name.is_empty() {
        return Some("serviceaccounts".into());
    }
    let variables = || pod.all_containers().flat_map(|c| &c.env).filter_map(|v| v.value_from.as_ref());
    let sources = || pod.all_containers().flat_map(|c| &c.env_from);
    let is_named = |name: &str| !name.is_empty();
    let by_secret = pod.spec.image_pull_secrets.iter().any(|secret| is_named(&secret.name))
        || sources().filter_map(|s| s.secret_ref.as_ref()).any(|s| is_named(&s.name))
        || variables().filter_map(|v| v.secret_key_ref.as_ref()).any(|s| is_named(&s.name))
        || pod.spec.volumes.iter().any(|v| v.secret.as_ref().is_some_and(|s| is_named(&s.secret_name)))
        || projections(pod).any(|p| p.secret.as_ref().is_some_and(|s| is_named(&s.name)));
    if by_secret {
        return Some("secrets".into());
    }
    let by_config_map = sources().filter_map(|s| s.config_map_ref.as_ref()).any(|s| is_named(&s.name))
        || variables().filter_map(|v| v.config_map_key_ref.as_ref()).any(|s| is_named(&s.name))
        || pod.spec.volumes.iter().any(|v| v.config_map.as_ref().is_some_and(|s| is_named(&s.name)))
        || projections(pod).any(|p| p.config_map.as_ref().is_some_and(|s| is_named(&s.name)));
    if by_config_map {
        return Some("configmaps".into());
    }
    if !pod.spec.resource_claims.is_empty() {
        return Some("resourceclaims".into());
    }
    pod.spec.volumes.iter().find_map(volume_reference).map(ToOwned::to_owned)
}

fn projections(pod: &Pod) -> impl Iterator<Item = &VolumeProjection> {
    pod.spec.volumes.iter().filter_map(|volume| volume.projected.as_ref()).flat_map(|source| &source.sources)
}

fn volume_reference(volume: &Volume) -> Option<&'static str> {
    if volume.persistent_volume_claim.is_some() {
        return Some("persistentvolumeclaims");
    }
    for (is_set, reference) in [
        (volume.csi.is_set, "csidrivers (via CSI volumes)"),
        (volume.glusterfs.is_set, "endpoints (via glusterFS volumes)"),
        (volume.ephemeral.is_set, "persistentvolumeclaims (via ephemeral volumes)"),
        (volume.azure_file.is_set, "secrets (via azureFile volumes)"),
    ] {
        if is_set {
            return Some(reference);
        }
    }
    volume.projected.iter().flat_map(|source| &source.sources).find_map(|source| {
        if source.service_account_token.is_some() {
            Some("serviceaccounts (via projected volumes)")
        } else if source.cluster_trust_bundle.is_set {
            Some("clustertrustbundles")
        } else if source.pod_certificate.is_set {
            Some("podcertificates")
        } else {
            None
        }
    })
}
