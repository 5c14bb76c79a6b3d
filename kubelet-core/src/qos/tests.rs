//! Totals, classes and scores against the kubelet's own tables.

use serde_json::{Value, json};

use super::*;

const GIB: i64 = 1 << 30;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec})).unwrap()
}

fn resources(cpu_request: &str, memory_request: &str, cpu_limit: &str, memory_limit: &str) -> Value {
    let list = |cpu: &str, memory: &str| {
        let mut list = serde_json::Map::new();
        for (name, value) in [("cpu", cpu), ("memory", memory)] {
            if !value.is_empty() {
                list.insert(name.to_owned(), json!(value));
            }
        }
        list
    };
    json!({"requests": list(cpu_request, memory_request), "limits": list(cpu_limit, memory_limit)})
}

#[test]
fn classes_follow_requests_and_limits() {
    let one = |r: Value| qos_class(&pod(json!({"containers": [{"name": "a", "resources": r}]})));
    assert_eq!(one(json!({})), QosClass::BestEffort);
    assert_eq!(one(resources("0", "0", "0", "")), QosClass::BestEffort);
    assert_eq!(one(resources("100m", "1Gi", "0.1", "1024Mi")), QosClass::Guaranteed);
    assert_eq!(one(resources("", "", "100m", "1Gi")), QosClass::Burstable);
    assert_eq!(one(resources("100m", "1Gi", "100m", "")), QosClass::Burstable);
    assert_eq!(one(resources("50m", "1Gi", "100m", "1Gi")), QosClass::Burstable);
    assert_eq!(one(json!({"limits": {"hugepages-2Mi": "2Mi"}})), QosClass::BestEffort);

    let full = resources("1", "1Gi", "1", "1Gi");
    let mixed = pod(json!({"containers": [{"name": "a", "resources": full}, {"name": "b"}]}));
    assert_eq!(qos_class(&mixed), QosClass::Burstable);
    let init = pod(json!({"containers": [{"name": "a", "resources": full}],
        "initContainers": [{"name": "i"}]}));
    assert_eq!(qos_class(&init), QosClass::Burstable);
    let of_pod = pod(json!({"containers": [{"name": "a"}], "resources": full}));
    assert_eq!(qos_class(&of_pod), QosClass::Guaranteed);
    let mut told = mixed;
    told.status.qos_class = "BestEffort".into();
    assert_eq!(qos_class(&told), QosClass::BestEffort);
}

#[test]
fn totals_count_init_containers_by_their_peak_and_sidecars_for_good() {
    let pod = pod(json!({
        "containers": [
            {"name": "a", "resources": resources("100m", "100Mi", "", "")},
            {"name": "b", "resources": resources("200m", "50Mi", "", "")}
        ],
        "initContainers": [
            {"name": "i1", "resources": resources("150m", "300Mi", "", "")},
            {"name": "side", "restartPolicy": "Always", "resources": resources("50m", "20Mi", "", "")},
            {"name": "i2", "resources": resources("400m", "10Mi", "", "")}
        ],
        "overhead": {"cpu": "7m", "memory": "1Mi"}
    }));
    let total = pod_requests(&pod, false);
    // i2 runs beside the sidecar: 450m at most before the containers start, 350m after.
    assert_eq!(total["cpu"], 450);
    assert_eq!(total["memory"], 300 << 20);
    assert_eq!(pod_requests(&pod, true)["cpu"], 457);
    assert!(pod_limits(&pod, true).is_empty(), "overhead alone limits nothing");
}

#[test]
fn cgroup_limits_need_every_container_to_have_one() {
    let of = |spec: Value| pod_cgroup_limits(&pod(spec), true, 100_000);
    let two = |a: Value, b: Value| {
        of(json!({"containers": [{"name": "a", "resources": a}, {"name": "b", "resources": b}]}))
    };
    let both = two(resources("100m", "1Gi", "200m", "1Gi"), resources("50m", "", "100m", "1Gi"));
    assert_eq!(
        both,
        PodCgroupLimits {
            cpu_shares: 153,
            cpu_quota: Some(30_000),
            cpu_period: 100_000,
            memory: Some(2 * GIB),
            hugepages: BTreeMap::new(),
        }
    );
    let one = two(resources("100m", "1Gi", "200m", "1Gi"), resources("50m", "", "", ""));
    assert_eq!((one.cpu_quota, one.memory, one.cpu_shares), (None, None, 153));
    let none = two(json!({}), json!({}));
    assert_eq!((none.cpu_quota, none.memory, none.cpu_shares), (None, None, 2));
    let guaranteed =
        pod(json!({"containers": [{"name": "a", "resources": resources("1", "1Gi", "1", "1Gi")}]}));
    assert_eq!(pod_cgroup_limits(&guaranteed, false, 100_000).cpu_quota, Some(-1));
    let huge = of(json!({"containers": [{"name": "a", "resources":
        {"requests": {"hugepages-2Mi": "4Mi", "cpu": "1"}, "limits": {"hugepages-2Mi": "4Mi"}}}]}));
    assert_eq!(huge.hugepages, BTreeMap::from([(2 << 20, 4 << 20)]));
}

#[test]
fn shares_and_quotas_have_the_kernels_bounds() {
    for (milli, shares) in [(0, 2), (1, 2), (2, 2), (10, 10), (1000, 1024), (i64::MAX, 262_144)] {
        assert_eq!(milli_cpu_to_shares(milli), shares, "{milli}");
    }
    for (milli, period, quota) in [
        (0, 100_000, 0),
        (5, 100_000, 1000),
        (10, 100_000, 1000),
        (200, 100_000, 20_000),
        (1500, 5_000, 7_500),
    ] {
        assert_eq!(milli_cpu_to_quota(milli, period), quota, "{milli}");
    }
}

#[test]
fn oom_scores_protect_what_keeps_its_requests() {
    let capacity = 8 * GIB;
    let score = |spec: Value, name: &str| {
        let pod = pod(spec);
        oom_score_adj(&pod, pod.container(name).unwrap(), capacity)
    };
    let one = |r: Value| score(json!({"containers": [{"name": "a", "resources": r}]}), "a");
    assert_eq!(one(json!({})), 1000);
    assert_eq!(one(resources("1", "1Gi", "1", "1Gi")), -997);
    assert_eq!(one(resources("1", "", "", "")), 999);
    assert_eq!(one(resources("", "2Gi", "", "")), 750);
    assert_eq!(one(resources("", "8Gi", "", "")), 3);
    let critical = json!({"priority": 2_000_001_000, "containers": [{"name": "a"}]});
    assert_eq!(score(critical, "a"), -997);
    let sidecar = json!({
        "containers": [{"name": "a", "resources": resources("", "4Gi", "", "")}],
        "initContainers": [{"name": "s", "restartPolicy": "Always",
            "resources": resources("", "1Gi", "", "")}]
    });
    assert_eq!(score(sidecar, "s"), 500, "as safe as the container that it serves");
    let of_pod = json!({"resources": {"requests": {"memory": "4Gi"}}, "containers": [
        {"name": "a", "resources": resources("", "1Gi", "", "")}, {"name": "b"}]});
    assert_eq!(score(of_pod.clone(), "a"), 688, "1Gi and half of the 3Gi that no container claims");
    assert_eq!(score(of_pod, "b"), 813);
}
