//! Which pods make room for a critical one: as few as can be, and of those the ones that ask for least; best-effort
//! ones before burstable ones before guaranteed ones.
//!
//! Called by admission; pure. Rules and words are those of the kubelet's `preemption` package (1.36).

use std::cmp::Ordering;
use std::fmt;

use crate::api::Pod;
use crate::eviction::plan::is_critical;
use crate::qos::{QosClass, pod_requests, qos_class};

/// How much of a resource a pod lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) resource: String,
    pub(super) amount: i64,
}

/// Even all pods that may go would not make room for this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: {0}"
)]
pub(super) struct Unmet(Needs);

/// What is lacking of several resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Needs(pub(super) Vec<Need>);

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for Need { resource, amount } in &self.0 {
            write!(f, "(res: {resource}, q: {amount}), ")?;
        }
        f.write_str("]")
    }
}

/// The pods that have to end so that `preemptor` gets what it needs.
pub(super) fn victims<'p>(preemptor: &Pod, pods: &[&'p Pod], needs: &Needs) -> Result<Vec<&'p Pod>, Unmet> {
    let of_class = |class: QosClass| -> Vec<&'p Pod> {
        let pods = pods.iter().copied();
        pods.filter(|pod| may_go(preemptor, pod) && qos_class(pod) == class).collect()
    };
    let best_effort = of_class(QosClass::BestEffort);
    let burstable = of_class(QosClass::Burstable);
    let guaranteed = of_class(QosClass::Guaranteed);
    needs.less(&best_effort).less(&burstable).less(&guaranteed).met()?;

    // Of each class only what all of the lesser ones, and what was chosen of the others, do not give.
    let guaranteed = nearest(guaranteed, needs.less(&best_effort).less(&burstable))?;
    let burstable = nearest(burstable, needs.less(&best_effort).less(&guaranteed))?;
    let best_effort = nearest(best_effort, needs.less(&burstable).less(&guaranteed))?;
    Ok([best_effort, burstable, guaranteed].concat())
}

fn may_go(preemptor: &Pod, pod: &Pod) -> bool {
    let outranks = || preemptor.spec.priority.zip(pod.spec.priority).is_some_and(|(own, other)| own > other);
    (is_critical(preemptor) && !is_critical(pod)) || outranks()
}

/// Takes the pod that comes nearest to what is needed, until nothing is.
fn nearest(mut pods: Vec<&Pod>, mut needs: Needs) -> Result<Vec<&Pod>, Unmet> {
    let mut chosen = Vec::new();
    while !needs.0.is_empty() {
        let mut best: Option<(usize, f64)> = None;
        for (at, pod) in pods.iter().enumerate() {
            let distance = needs.distance(pod);
            let is_better = best.is_none_or(|(best, nearest)| match distance.total_cmp(&nearest) {
                Ordering::Less => true,
                Ordering::Equal => asks_no_more(pod, pods[best]),
                Ordering::Greater => false,
            });
            if is_better {
                best = Some((at, distance));
            }
        }
        let Some((at, _)) = best else { return Err(Unmet(needs)) };
        let pod = pods.swap_remove(at);
        needs = needs.less(&[pod]);
        chosen.push(pod);
    }
    Ok(chosen)
}

fn asks_no_more(pod: &Pod, other: &Pod) -> bool {
    let order = |resource| request(pod, resource).cmp(&request(other, resource));
    order("memory").then_with(|| order("cpu")).is_le()
}

fn request(pod: &Pod, resource: &str) -> i64 {
    match resource {
        "pods" => 1,
        name => pod_requests(pod, true).get(name).copied().unwrap_or(0),
    }
}

impl Needs {
    /// What is still needed once these pods have ended.
    fn less(&self, pods: &[&Pod]) -> Self {
        let left = self.0.iter().filter_map(|need| {
            let given = pods.iter().map(|pod| request(pod, &need.resource)).fold(0, i64::saturating_add);
            let amount = need.amount.saturating_sub(given);
            (amount > 0).then(|| Need { resource: need.resource.clone(), amount })
        });
        Self(left.collect())
    }

    fn met(self) -> Result<(), Unmet> {
        if self.0.is_empty() { Ok(()) } else { Err(Unmet(self)) }
    }

    /// How far the end of a pod is from giving what is needed, each resource counting the same.
    #[allow(clippy::cast_precision_loss, reason = "a measure to compare by, in the kubelet's precision")]
    fn distance(&self, pod: &Pod) -> f64 {
        let parts = self.0.iter().map(|need| {
            let left = need.amount.saturating_sub(request(pod, &need.resource)).max(0);
            (left as f64 / need.amount as f64).powi(2)
        });
        parts.sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, requests: Value, more: Value) -> Pod {
        let mut spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn guaranteed(name: &str, cpu: &str) -> Pod {
        let amounts = json!({"cpu": cpu, "memory": "10Mi"});
        let container = json!({"name": "c", "resources": {"requests": amounts, "limits": amounts}});
        pod(name, json!({}), json!({"containers": [container]}))
    }

    fn needs(all: &[(&str, i64)]) -> Needs {
        Needs(
            all.iter().map(|(name, amount)| Need { resource: (*name).to_owned(), amount: *amount }).collect(),
        )
    }

    fn chosen(pods: &[Pod], wanted: &[(&str, i64)]) -> Result<Vec<String>, String> {
        let critical = pod("critical", json!({}), json!({"priority": 2_000_000_000}));
        let pods: Vec<&Pod> = pods.iter().collect();
        let found = victims(&critical, &pods, &needs(wanted)).map_err(|error| error.to_string())?;
        Ok(found.iter().map(|pod| pod.metadata.name.clone()).collect())
    }

    #[test]
    fn as_few_as_can_be_and_of_those_the_least() {
        let pods = [
            pod("small", json!({"cpu": "200m"}), json!({})),
            pod("fits", json!({"cpu": "500m", "memory": "20Mi"}), json!({})),
            pod("leaner", json!({"cpu": "600m"}), json!({})),
            pod("large", json!({"cpu": "2"}), json!({})),
        ];
        // Of those that give all, the one that asks for least memory, then for least CPU.
        assert_eq!(chosen(&pods, &[("cpu", 500)]).unwrap(), ["leaner"]);
        assert_eq!(chosen(&pods, &[("cpu", 2500)]).unwrap(), ["large", "leaner"]);
        assert_eq!(chosen(&pods, &[("cpu", 500), ("memory", 1 << 20)]).unwrap(), ["fits"]);
    }

    #[test]
    fn best_effort_goes_before_burstable_before_guaranteed() {
        let pods = [
            guaranteed("guaranteed", "1"),
            pod("burstable", json!({"cpu": "300m"}), json!({})),
            pod("effort", json!({}), json!({})),
        ];
        assert_eq!(chosen(&pods, &[("pods", 1)]).unwrap(), ["effort"]);
        assert_eq!(chosen(&pods, &[("pods", 2)]).unwrap(), ["effort", "burstable"]);
        assert_eq!(chosen(&pods, &[("cpu", 300)]).unwrap(), ["burstable"]);
        // The guaranteed one has to go, and gives all that is needed alone.
        assert_eq!(chosen(&pods, &[("cpu", 400)]).unwrap(), ["guaranteed"]);
        assert_eq!(chosen(&pods, &[("cpu", 1200)]).unwrap(), ["burstable", "guaranteed"]);
    }

    #[test]
    fn critical_pods_stay_unless_outranked_and_what_cannot_be_had_is_told() {
        let node_critical = pod("node-critical", json!({"cpu": "1"}), json!({"priority": 2_000_001_000}));
        assert_eq!(
            chosen(std::slice::from_ref(&node_critical), &[("cpu", 10), ("memory", 5)]).unwrap_err(),
            "preemption: error finding a set of pods to preempt: no set of running pods found to reclaim \
             resources: [(res: cpu, q: 10), (res: memory, q: 5), ]"
        );
        let cluster_critical =
            pod("cluster-critical", json!({"cpu": "1"}), json!({"priority": 2_000_000_000}));
        let found = victims(&node_critical, &[&cluster_critical], &needs(&[("cpu", 10)])).unwrap();
        assert_eq!(found[0].metadata.name, "cluster-critical");
    }
}
