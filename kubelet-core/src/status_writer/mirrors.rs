//! Mirror pods: static pods as the API shows them.
//!
//! Owned by the writer's task; pure. The rules are the kubelet's (`pod/mirror_client.go`, `tryReconcileMirrorPods`): a
//! mirror carries the hash of its static pod and belongs to the node's object; one with another hash, or that somebody
//! deletes, is deleted and made again; one whose static pod is gone goes after that has ended.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::Pod;
use crate::source::{HASH_ANNOTATION, MIRROR_ANNOTATION, PodSet};

/// What the API has as a mirror.
#[derive(Clone, Debug)]
struct Mirror {
    namespace: String,
    name: String,
    uid: Arc<str>,
    /// Of the static pod that it shows.
    hash: String,
    deleting: bool,
}

/// What to ask for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum MirrorStep {
    Create { full_name: String, namespace: String, body: Value },
    Delete { full_name: String, namespace: String, name: String, uid: Arc<str> },
}

impl MirrorStep {
    /// `namespace/name`.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Create { full_name, .. } | Self::Delete { full_name, .. } => full_name,
        }
    }
}

/// All mirrors of this node, by `namespace/name`.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    seen: HashMap<String, Mirror>,
    /// Requests under way.
    busy: HashSet<String>,
    /// Static pods that a worker still has.
    known: BTreeSet<String>,
}

impl Mirrors {
    pub(super) fn seen(&mut self, pod: &Pod) {
        let mirror = Mirror {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            hash: pod.metadata.annotations.get(MIRROR_ANNOTATION).cloned().unwrap_or_default(),
            deleting: pod.metadata.deletion_timestamp.is_some(),
        };
        self.seen.insert(pod.full_name(), mirror);
    }

    pub(super) fn gone(&mut self, uid: &str) {
        self.seen.retain(|_, mirror| &*mirror.uid != uid);
    }

    /// The UID of the mirror that shows a static pod.
    pub(super) fn of(&self, pod: &Pod) -> Option<Arc<str>> {
        let mirror = self.seen.get(&pod.full_name())?;
        shows(mirror, pod).then(|| mirror.uid.clone())
    }

    pub(super) fn set_known(&mut self, names: impl Iterator<Item = String>) {
        self.known = names.collect();
    }

    pub(super) fn begin(&mut self, name: &str) {
        self.busy.insert(name.to_owned());
    }

    pub(super) fn end(&mut self, name: &str) {
        self.busy.remove(name);
    }

    /// What is to be made and deleted; `node` is name and UID of the node's object.
    pub(super) fn plan(&self, statics: &PodSet, node: Option<(&str, &str)>) -> Vec<MirrorStep> {
        let mut steps = Vec::new();
        let mut wanted = BTreeSet::new();
        for pod in statics.values() {
            let full_name = pod.full_name();
            match self.seen.get(&full_name) {
                Some(mirror) if mirror.deleting || !shows(mirror, pod) => {
                    steps.push(delete(&full_name, mirror));
                }
                Some(_) => {}
                None => {
                    if let Some(node) = node.filter(|(_, uid)| !uid.is_empty()) {
                        let namespace = pod.metadata.namespace.clone();
                        let (full_name, body) = (full_name.clone(), body(pod, node));
                        steps.push(MirrorStep::Create { full_name, namespace, body });
                    }
                }
            }
            wanted.insert(full_name);
        }
        let orphans =
            self.seen.iter().filter(|(name, _)| !wanted.contains(*name) && !self.known.contains(*name));
        steps.extend(orphans.map(|(name, mirror)| delete(name, mirror)));
        steps.retain(|step| !self.busy.contains(step.name()));
        steps
    }
}

fn delete(full_name: &str, mirror: &Mirror) -> MirrorStep {
    MirrorStep::Delete {
        full_name: full_name.to_owned(),
        namespace: mirror.namespace.clone(),
        name: mirror.name.clone(),
        uid: mirror.uid.clone(),
    }
}

fn hash(pod: &Pod) -> &str {
    pod.metadata.annotations.get(HASH_ANNOTATION).map_or("", String::as_str)
}

fn shows(mirror: &Mirror, pod: &Pod) -> bool {
    mirror.hash == hash(pod)
}

/// A static pod as it is shown.
fn body(pod: &Pod, (node, node_uid): (&str, &str)) -> Value {
    let mut shown = pod.clone();
    shown.api_version = "v1".to_owned();
    shown.kind = "Pod".to_owned();
    let mark = hash(pod).to_owned();
    shown.metadata.annotations.insert(MIRROR_ANNOTATION.to_owned(), mark);
    shown.metadata.uid = Arc::default();
    // Plain data with text keys.
    let mut value = serde_json::to_value(&shown).expect("invariant: a pod can be written as JSON");
    without_nulls(&mut value);
    if let Some(map) = value.as_object_mut() {
        map.shift_remove("status");
    }
    value["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": true
    }]);
    value
}

/// Fields that no code of ours reads are written as nulls, which a list may not hold.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => {
            items.retain(|item| !item.is_null());
            items.iter_mut().for_each(without_nulls);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn static_pod(hash: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-n", "namespace": "default", "uid": hash, "annotations": {
                HASH_ANNOTATION: hash, "kubernetes.io/config.source": "file"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i", "resizePolicy": [{"a": 1}]}]},
            "status": {"phase": "Pending"}
        }))
        .unwrap()
    }

    fn served(hash: &str, uid: &str) -> Pod {
        let mut pod = static_pod(hash);
        pod.metadata.uid = uid.into();
        pod.metadata.annotations.insert(MIRROR_ANNOTATION.into(), hash.into());
        pod
    }

    fn set(pods: &[Pod]) -> PodSet {
        Arc::new(
            pods.iter().map(|p| (p.metadata.uid.clone(), Arc::new(p.clone()))).collect::<BTreeMap<_, _>>(),
        )
    }

    fn names(steps: &[MirrorStep]) -> Vec<String> {
        let name = |step: &MirrorStep| match step {
            MirrorStep::Create { full_name, .. } => format!("create {full_name}"),
            MirrorStep::Delete { full_name, uid, .. } => format!("delete {full_name} {uid}"),
        };
        steps.iter().map(name).collect()
    }

    #[test]
    fn a_mirror_is_made_remade_and_taken_away() {
        let node = Some(("n", "node-uid"));
        let mut mirrors = Mirrors::default();
        let statics = set(&[static_pod("h1")]);
        assert!(mirrors.plan(&statics, Some(("n", ""))).is_empty(), "a mirror needs the node's object");
        let steps = mirrors.plan(&statics, node);
        assert_eq!(names(&steps), ["create default/web-n"]);
        let MirrorStep::Create { body, .. } = &steps[0] else { unreachable!() };
        assert_eq!(body["metadata"]["annotations"][MIRROR_ANNOTATION], "h1");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "node-uid");
        assert!(body.get("status").is_none() && body["metadata"].get("uid").is_none());
        assert!(!body.to_string().contains("null"));
        mirrors.begin("default/web-n");
        assert!(mirrors.plan(&statics, node).is_empty());
        mirrors.end("default/web-n");
        mirrors.seen(&served("h1", "m1"));
        assert!(mirrors.plan(&statics, node).is_empty());
        assert_eq!(mirrors.of(&static_pod("h1")).as_deref(), Some("m1"));

        let changed = set(&[static_pod("h2")]);
        assert_eq!(names(&mirrors.plan(&changed, node)), ["delete default/web-n m1"]);
        assert_eq!(mirrors.of(&static_pod("h2")), None);
        mirrors.gone("m1");
        assert_eq!(names(&mirrors.plan(&changed, node)), ["create default/web-n"]);
        mirrors.seen(&served("h2", "m2"));
        mirrors.set_known(["default/web-n".to_owned()].into_iter());
        assert!(mirrors.plan(&PodSet::default(), node).is_empty(), "its pod still ends");
        mirrors.set_known(std::iter::empty());
        assert_eq!(names(&mirrors.plan(&PodSet::default(), node)), ["delete default/web-n m2"]);
    }
}
