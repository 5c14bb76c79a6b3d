//! Patches, as tables of before, after and difference.

use serde_json::json;

use super::*;

fn status(value: Value) -> PodStatus {
    serde_json::from_value(value).unwrap()
}

fn condition(kind: &str, is: &str, at: &str) -> Value {
    json!({"type": kind, "status": is, "lastTransitionTime": format!("2026-01-01T00:00:{at}Z")})
}

#[test]
fn a_first_status_names_all_and_orders_conditions() {
    let base = status(
        json!({"phase": "Pending", "qosClass": "BestEffort", "conditions": [condition("PodScheduled", "True", "00")]}),
    );
    let wanted =
        status(json!({"phase": "Pending", "qosClass": "BestEffort", "startTime": "2026-01-01T00:00:01Z",
        "hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}],
        "conditions": [condition("Initialized", "True", "01"), condition("PodScheduled", "True", "00")]}));
    assert_eq!(
        patch(&base, &wanted).unwrap(),
        json!({
            "hostIP": "10.0.0.1",
            "startTime": "2026-01-01T00:00:01Z",
            "hostIPs": [{"ip": "10.0.0.1"}],
            "$setElementOrder/hostIPs": [{"ip": "10.0.0.1"}],
            "conditions": [condition("Initialized", "True", "01")],
            "$setElementOrder/conditions": [{"type": "Initialized"}, {"type": "PodScheduled"}],
        })
    );
    assert_eq!(patch(&wanted, &wanted), None);
}

#[test]
fn a_change_names_only_itself() {
    let ready = |is: &str, at: &str| condition("Ready", is, at);
    let mut unready = ready("False", "05");
    unready["reason"] = json!("ContainersNotReady");
    let base = status(json!({"phase": "Running", "message": "old", "podIPs": [{"ip": "10.1.0.1"}],
        "conditions": [condition("example.com/gate", "False", "00"), unready]}));
    let wanted = status(json!({"phase": "Running", "podIPs": [{"ip": "10.1.0.2"}],
        "conditions": [condition("example.com/gate", "True", "09"), ready("True", "06")]}));
    assert_eq!(
        patch(&base, &wanted).unwrap(),
        json!({
            "message": null,
            "podIPs": [{"ip": "10.1.0.2"}, {"$patch": "delete", "ip": "10.1.0.1"}],
            "$setElementOrder/podIPs": [{"ip": "10.1.0.2"}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:06Z", "reason": null}],
        }),
        "conditions of others are left alone"
    );
}

#[test]
fn quantities_are_equal_by_value() {
    let with = |cpu: &str| {
        status(json!({"containerStatuses": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    };
    assert_eq!(patch(&with("1000m"), &with("1")), None);
    assert!(patch(&with("1000m"), &with("2")).is_some());
}

#[test]
fn a_pod_is_not_terminal_while_a_container_runs() {
    let base = status(json!({"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
        "conditions": [condition("example.com/gate", "True", "00"), condition("Ready", "True", "01")]}));
    let own = |state: Value| {
        status(json!({"phase": "Failed", "reason": "DeadlineExceeded", "startTime": "2026-01-01T00:00:07Z",
            "conditions": [condition("Ready", "True", "01")], "containerStatuses": [{"name": "c", "state": state}]}))
    };
    let running = merged(&base, &own(json!({"running": {}})), false);
    assert_eq!((running.phase.as_str(), running.reason.as_str()), ("Running", ""));
    assert_eq!(running.conditions.len(), 2);
    assert_eq!(running.start_time, base.start_time);
    let ended = merged(&base, &own(json!({"terminated": {"exitCode": 137}})), false);
    assert_eq!((ended.phase.as_str(), ended.reason.as_str()), ("Failed", "DeadlineExceeded"));
    let ready = ended.conditions.iter().find(|c| c.r#type == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "PodFailed"));
}

#[test]
fn resources_are_merged_by_name() {
    let base = status(json!({"allocatedResources": {"cpu": "1", "memory": "1Mi"}}));
    let wanted = status(json!({"allocatedResources": {"cpu": "2"}, "resources": {"requests": {"cpu": "2"}}}));
    assert_eq!(
        patch(&base, &wanted).unwrap(),
        json!({"allocatedResources": {"cpu": "2", "memory": null}, "resources": {"requests": {"cpu": "2"}}})
    );
    let empty = status(json!({"resources": {}}));
    assert_eq!(patch(&status(json!({})), &empty).unwrap(), json!({"resources": {}}));
    assert_eq!(patch(&empty, &status(json!({"resources": {"limits": {}}}))), None);
}
