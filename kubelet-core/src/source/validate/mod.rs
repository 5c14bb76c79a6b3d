//! Validation of pods, ConfigMaps and Secrets as an API server does it, in its words.
//!
//! Called by the manifest folder; pure. All errors of an object come back together, each naming its field,
//! so that a file is mended once. The rules are those of Kubernetes' `pkg/apis/core/validation`, with the
//! feature gates that 1.36 turns on by itself. What only a scheduler or Windows reads is not looked into.

mod containers;
mod env;
mod field;
mod handlers;
mod mounts;
mod names;
mod objects;
mod pod;
mod references;
mod resources;
mod security;
mod volumes;

use crate::api::Pod;
use field::{Errors, Path};

pub use field::{FieldError, FieldErrorKind};
pub use objects::{validate_config_map, validate_secret};

/// What holds beyond the rules for every pod.
#[derive(Clone, Copy, Debug)]
pub struct PodRules {
    /// Whether a static pod may name ConfigMaps, Secrets and the like. True without a cluster, where they are
    /// files too; false once a control plane is joined, as for a kubelet.
    pub allow_object_references: bool,
}

/// Everything that is wrong with a pod that has been defaulted; nothing for one that may run.
///
/// ```
/// use coracle_kubelet_core::api::Pod;
/// use coracle_kubelet_core::source::{default_pod, validate::{PodRules, validate_pod}};
///
/// let mut pod: Pod = serde_json::from_str(r#"{"metadata": {"name": "web", "namespace": "default"}}"#)?;
/// default_pod(&mut pod);
/// let errors = validate_pod(&pod, PodRules { allow_object_references: true });
/// assert_eq!(errors[0].to_string(), "spec.containers: Required value");
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn validate_pod(pod: &Pod, rules: PodRules) -> Vec<FieldError> {
    let mut errors = Errors::default();
    names::validate_metadata(&pod.metadata, names::dns1123_subdomain, &mut errors);
    pod::validate_spec(&pod.spec, &mut errors);
    if !rules.allow_object_references
        && let Some(reference) = references::object_reference(pod)
    {
        errors.forbidden(&Path::Root("spec"), format!("static pods may not reference {reference}"));
    }
    errors.0
}

#[cfg(test)]
mod tests;
