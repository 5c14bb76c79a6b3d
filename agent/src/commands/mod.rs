//! The commands that ask a running agent, one module each, and those that need none.

pub(crate) mod cri;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod images;
pub(crate) mod join;
pub(crate) mod logs;
pub(crate) mod pods;
pub(crate) mod port_forward;
pub(crate) mod stop_pods;
mod terminal;

use std::path::Path;

use anyhow::{Result, bail};
use coracle_kubelet_core::api::Pod;

use crate::pod_files;
use crate::socket::{Agent, Answer, PodRecord, Request};

/// The word on standard error when there is no agent to ask.
fn tell_records(state_dir: &Path) {
    eprintln!(
        "coracle: no agent runs with state folder {}; this is what its records say",
        state_dir.display()
    );
}

/// The pods of a running agent, or those of its records, with a word about it.
fn pod_records(state_dir: &Path) -> Result<Vec<PodRecord>> {
    pod_records_again(state_dir, &mut false)
}

/// The same for who looks more than once: the word is said unless it was.
fn pod_records_again(state_dir: &Path, told: &mut bool) -> Result<Vec<PodRecord>> {
    let Some(agent) = Agent::connect(state_dir)? else {
        if !std::mem::replace(told, true) {
            tell_records(state_dir);
        }
        return pod_files::read(state_dir);
    };
    let mut records = Vec::new();
    agent.ask(Request::Pods, |answer| {
        if let Answer::Pod(record) = answer {
            records.push(*record);
        }
        Ok(())
    })?;
    Ok(records)
}

/// Whether a person who wrote `wanted` (NAME or NAMESPACE/NAME) means this pod. The name in a manifest, to
/// which the node's name was added, will do too.
fn is_meant(pod: &Pod, wanted: &str) -> bool {
    let (namespace, name) = match wanted.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, wanted),
    };
    let full = &pod.metadata.name;
    let node = &pod.spec.node_name;
    let short = full.strip_suffix(node.as_str()).and_then(|name| name.strip_suffix('-'));
    namespace.is_none_or(|namespace| namespace == pod.metadata.namespace)
        && (full == name || short == Some(name))
}

/// The one pod that `wanted` names.
fn find_pod<'a>(records: &'a [PodRecord], wanted: &str) -> Result<&'a PodRecord> {
    let found: Vec<&PodRecord> = records.iter().filter(|record| is_meant(&record.pod, wanted)).collect();
    match found.as_slice() {
        [record] => Ok(record),
        [] => bail!("no pod {wanted:?} here; `coracle pods` lists them"),
        several => {
            let names: Vec<String> = several.iter().map(|record| record.pod.full_name()).collect();
            bail!("{wanted:?} may mean {}; say NAMESPACE/NAME", names.join(" or "))
        }
    }
}

/// The container that is meant, which must be named where there are several.
fn container_name(pod: &Pod, wanted: Option<&str>) -> Result<String> {
    let names: Vec<&str> = pod.all_containers().map(|container| container.name.as_str()).collect();
    match wanted {
        Some(wanted) if names.contains(&wanted) => Ok(wanted.to_owned()),
        Some(wanted) => {
            bail!("pod {} has no container {wanted:?}, only {}", pod.full_name(), names.join(", "))
        }
        None => match pod.spec.containers.as_slice() {
            [container] => Ok(container.name.clone()),
            _ => bail!(
                "pod {} has several containers, say which with -c: {}",
                pod.full_name(),
                names.join(", ")
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_meant_by_its_full_or_manifest_name() {
        let mut pod = Pod::default();
        pod.metadata.name = "web-gateway-7".into();
        pod.metadata.namespace = "default".into();
        pod.spec.node_name = "gateway-7".into();
        for wanted in ["web", "web-gateway-7", "default/web"] {
            assert!(is_meant(&pod, wanted), "{wanted}");
        }
        for wanted in ["we", "other/web", "web-gateway"] {
            assert!(!is_meant(&pod, wanted), "{wanted}");
        }
    }
}
