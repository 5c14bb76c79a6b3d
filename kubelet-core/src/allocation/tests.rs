//! What a pod was given, by what it had before and by what its status says.

use serde_json::{Value, json};

use super::*;

fn amounts(cpu: &str, memory: &str) -> Value {
    json!({"cpu": cpu, "memory": memory})
}

fn pod(requests: &Value, limits: &Value) -> Pod {
    let resources = json!({"requests": requests, "limits": limits});
    serde_json::from_value(json!({
        "metadata": {"name": "web", "generation": 2},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}
    }))
    .unwrap()
}

fn first(pod: &Pod) -> (Option<&str>, Option<&str>) {
    let limits = &pod.spec.containers[0].resources.limits;
    (limits.get("cpu").map(Quantity::as_str), limits.get("memory").map(Quantity::as_str))
}

#[test]
fn what_is_asked_for_anew_waits_and_all_else_is_taken_over() {
    let given = pod(&amounts("100m", "32Mi"), &amounts("200m", "64Mi"));
    let mut served = pod(&amounts("100m", "32Mi"), &amounts("300m", "64Mi"));
    served.metadata.labels.insert("a".to_owned(), "b".to_owned());
    let served = Arc::new(served);
    let own = held(&served, &given);
    assert_eq!(first(&own), (Some("200m"), Some("64Mi")));
    assert_eq!(own.metadata.labels["a"], "b");
    let pending = own.pending_resize.as_deref().unwrap();
    assert_eq!((first(&pending.wanted), &pending.deferred), ((Some("300m"), Some("64Mi")), &None));

    let waits = deferred(&own, "no room".to_owned(), 3).unwrap();
    assert!(deferred(&waits, "no room".to_owned(), 4).is_none(), "it was said");
    let again = held(&served, &waits);
    let pending = again.pending_resize.as_deref().unwrap();
    assert_eq!((pending.deferred.as_deref(), pending.since), (Some("no room"), 3));

    // The same amount in other words, or none, is nothing to wait for.
    let same = Arc::new(pod(&amounts("0.1", "32Mi"), &amounts("200m", "65536Ki")));
    assert!(Arc::ptr_eq(&held(&same, &again), &same));
}

#[test]
fn a_new_agent_takes_what_was_given_from_the_status() {
    let mut served = pod(&amounts("200m", "32Mi"), &amounts("300m", "128Mi"));
    served.status = serde_json::from_value(json!({
        "observedGeneration": 2,
        "containerStatuses": [{"name": "c", "restartCount": 0, "image": "i",
            "allocatedResources": {"cpu": "100m", "memory": "32Mi"},
            "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}}}],
    }))
    .unwrap();
    assert!(given_by_status(&served).is_none(), "all of it was taken over");
    served.metadata.generation = Some(3);
    let given = given_by_status(&served).unwrap();
    assert_eq!(first(&given), (None, Some("64Mi")), "a limit on CPU was added since");
    assert_eq!(given.spec.containers[0].resources.requests["cpu"].as_str(), "100m");
    served.metadata.generation = Some(2);
    served.status.conditions =
        vec![serde_json::from_value(json!({"type": "PodResizePending", "status": "True"})).unwrap()];
    assert!(given_by_status(&served).is_some());
    // One of which nothing was made yet is given what it asks for.
    served.status.container_statuses.clear();
    assert!(given_by_status(&served).is_none());
}

#[test]
fn those_that_ask_for_no_more_come_first_then_priority_class_and_age_count() {
    let small = amounts("100m", "32Mi");
    let wants = |limits: &Value, to: &Value, priority: i32, since: u64| {
        let mut given = pod(&small, limits);
        given.spec.priority = Some(priority);
        let mut wanted = pod(to, limits);
        wanted.spec.priority = Some(priority);
        let mut own = Pod::clone(&held(&Arc::new(wanted), &given));
        own.pending_resize.as_mut().unwrap().since = since;
        order(&own).unwrap()
    };
    let large = amounts("300m", "32Mi");
    let burstable = amounts("1", "64Mi");
    let ordered = [
        wants(&burstable, &amounts("50m", "32Mi"), 0, 9),
        wants(&burstable, &large, 5, 9),
        wants(&small, &large, 0, 9),
        wants(&burstable, &large, 0, 1),
        wants(&burstable, &large, 0, 2),
    ];
    assert!(ordered.is_sorted(), "{ordered:?}");
    assert!(order(&pod(&small, &small)).is_none());
}
