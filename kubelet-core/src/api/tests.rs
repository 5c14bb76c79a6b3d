//! The API types against texts as kubectl and the API server write them.

use super::*;

#[test]
fn quantities_have_apimachinerys_values() {
    for (text, value, milli) in [
        ("0", 0, 0),
        ("100m", 1, 100),
        ("1.5", 2, 1500),
        (".5Gi", 536_870_912, 536_870_912_000),
        ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
        ("2e3", 2000, 2_000_000),
        ("2E3", 2000, 2_000_000),
        ("1E", 1_000_000_000_000_000_000, i64::MAX),
        ("12345u", 1, 13),
        ("-5", -5, -5000),
        ("+5k", 5000, 5_000_000),
    ] {
        let quantity: Quantity = text.parse().unwrap();
        assert_eq!((quantity.value(), quantity.milli_value()), (value, milli), "{text}");
    }
    for text in ["", "1.2.3", "ki", "1 Gi", "1Kib", "e3", "--1", "1e", "0x10"] {
        assert!(text.parse::<Quantity>().is_err(), "{text}");
    }
}

#[test]
fn quantities_are_written_as_an_api_server_does() {
    for (milli, binary, text) in [
        (250, false, "250m"),
        (1000, false, "1"),
        (1500, false, "1500m"),
        (0, true, "0"),
        (128 * 1024 * 1024 * 1000, true, "128Mi"),
        (1088 * 1024 * 1024 * 1000, true, "1088Mi"),
        (134_217_728_000, false, "134217728"),
        (1_000_000_000, false, "1M"),
        (500_000, true, "500"),
    ] {
        assert_eq!(Quantity::canonical(milli, binary).as_str(), text);
    }
}

#[test]
fn a_pod_keeps_the_fields_it_uses_through_a_round_trip() {
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "y"}},
        "spec": {
            "hostPID": true, "hostIPC": true, "setHostnameAsFQDN": true, "hostNetwork": true,
            "containers": [{
                "name": "c", "image": "i", "ports": [{"containerPort": 1, "hostIP": "10.0.0.1"}],
                "env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
                "securityContext": {"runAsUser": 5, "seLinuxOptions": {"type": "t"}}
            }],
            "volumes": [{"name": "v", "downwardAPI": {"items": [{"path": "p"}]}}]
        },
        "status": {"podIPs": [{"ip": "10.0.0.2"}], "hostIPs": [{"ip": "10.0.0.3"}], "qosClass": "Burstable"}
    });
    let mut unknown = Vec::new();
    let pod: Pod = serde_ignored::deserialize(&text, |path| unknown.push(path.to_string())).unwrap();
    assert_eq!(unknown, Vec::<String>::new());
    assert_eq!(serde_json::to_value(&pod).unwrap(), text);
}

#[test]
fn a_field_that_is_known_but_unused_is_no_unknown_field() {
    let text = serde_json::json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1}], "tpyo": 1}});
    let mut unknown = Vec::new();
    let pod: Pod = serde_ignored::deserialize(text, |path| unknown.push(path.to_string())).unwrap();
    assert_eq!(unknown, ["spec.tpyo"]);
    assert!(pod.spec.topology_spread_constraints[0].is_set);
}

#[test]
fn times_are_rfc3339_in_whole_seconds() {
    let time: Time = "2026-01-31T12:00:00Z".parse().unwrap();
    assert_eq!(time.to_string(), "2026-01-31T12:00:00Z");
    assert!("yesterday".parse::<Time>().is_err());
    assert_eq!(Time::from_unix_nanos(0), None);
}
