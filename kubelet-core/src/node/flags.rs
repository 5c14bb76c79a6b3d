//! What the kubelet's flags say of a node: taints, labels and reserved resources.
//!
//! Pure; the agent calls it while it reads its settings.

use std::collections::BTreeMap;

use crate::api::{Quantity, ResourceList, Taint};

/// Labels of the kubernetes.io domains that a node may give itself; the API server refuses others
/// (`--node-labels` of a kubelet).
const OWN_LABELS: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

/// Why a text is no taint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no taint; it looks like key=value:NoSchedule, with NoSchedule, PreferNoSchedule or NoExecute"
)]
pub struct TaintError(pub String);

/// Reads taints that are separated by commas.
pub fn parse_taints(text: &str) -> Result<Vec<Taint>, TaintError> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse).collect()
}

/// Why a text says no labels.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Not of the form key=value.
    #[error("{0:?} is no label; it looks like key=value")]
    Form(String),
    /// A label that the cluster keeps to itself.
    #[error(
        "label {0:?} is not one that a node may give itself; of the kubernetes.io domains it may use \
         node.kubernetes.io/ and kubelet.kubernetes.io/, or label the node with kubectl"
    )]
    Foreign(String),
}

/// Reads labels that are separated by commas: `key=value,key=`.
pub fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, LabelError> {
    let mut labels = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if key.is_empty() || value.contains('=') {
            return Err(LabelError::Form(part.to_owned()));
        }
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let is_clusters = ["kubernetes.io", "k8s.io"]
            .iter()
            .any(|own| domain == *own || domain.strip_suffix(own).is_some_and(|rest| rest.ends_with('.')));
        let is_own = super::desired::DEFAULT_LABELS.contains(&key)
            || OWN_LABELS.iter().any(|prefix| format!("{domain}/").ends_with(prefix));
        if is_clusters && !is_own {
            return Err(LabelError::Foreign(key.to_owned()));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// Why a text says no reserved resources.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no reserved resource; it looks like cpu=100m, memory=128Mi, ephemeral-storage=1Gi or pid=1000"
)]
pub struct ReservedError(pub String);

/// Reads what is reserved: `cpu=100m,memory=128Mi`.
pub fn parse_reserved(text: &str) -> Result<ResourceList, ReservedError> {
    let mut reserved = ResourceList::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = || ReservedError(part.to_owned());
        let (name, amount) = part.split_once('=').ok_or_else(wrong)?;
        let amount: Quantity = amount.parse().map_err(|_| wrong())?;
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage" | "pid") || amount.milli_value() < 0 {
            return Err(wrong());
        }
        reserved.insert(name.to_owned(), amount);
    }
    Ok(reserved)
}

fn parse(text: &str) -> Result<Taint, TaintError> {
    let wrong = || TaintError(text.to_owned());
    let (left, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(wrong());
    }
    let (key, value) = left.split_once('=').unwrap_or((left, ""));
    if key.is_empty() || value.contains(['=', ':']) {
        return Err(wrong());
    }
    Ok(Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned(), time_added: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read_as_kubectl_writes_them() {
        let taints = parse_taints("dedicated=edge:NoSchedule,example.com/arm:NoExecute").unwrap();
        assert_eq!((taints[0].key.as_str(), taints[0].value.as_str()), ("dedicated", "edge"));
        assert_eq!((taints[1].key.as_str(), taints[1].effect.as_str()), ("example.com/arm", "NoExecute"));
        for wrong in ["a", "a=b", ":NoSchedule", "a=b:Never"] {
            assert!(parse_taints(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn labels_of_the_cluster_are_refused() {
        let labels =
            parse_labels("site=roof,node.kubernetes.io/kind=pi,topology.kubernetes.io/zone=a,flag=").unwrap();
        assert_eq!(labels.len(), 4);
        assert_eq!(labels["flag"], "");
        assert_eq!(parse_labels("a=b=c"), Err(LabelError::Form("a=b=c".into())));
        let foreign = "node-role.kubernetes.io/worker";
        assert_eq!(parse_labels(&format!("{foreign}=")), Err(LabelError::Foreign(foreign.into())));
        assert!(parse_labels("kubernetes.io/mine=1").is_err());
        assert!(parse_labels("x.node.kubernetes.io/mine=1").is_ok());
        assert!(parse_labels("notkubernetes.io/mine=1").is_ok());
    }

    #[test]
    fn reservations_are_quantities() {
        let reserved = parse_reserved("cpu=100m,memory=128Mi").unwrap();
        assert_eq!(reserved["memory"].value(), 128 << 20);
        for wrong in ["cpu", "cpu=x", "gpu=1", "memory=-1"] {
            assert!(parse_reserved(wrong).is_err(), "{wrong}");
        }
    }
}
