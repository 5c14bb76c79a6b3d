//! What an API server fills in, and nothing else.

use serde_json::{Value, json};

use super::*;

fn defaulted(spec: Value) -> Value {
    let mut pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
    default_pod(&mut pod);
    serde_json::to_value(&pod.spec).unwrap()
}

#[test]
fn an_empty_pod_gets_the_defaults_of_a_pod() {
    assert_eq!(
        defaulted(json!({})),
        json!({
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true,
        })
    );
    let given = json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "dnsPolicy": "Default",
        "securityContext": {"runAsUser": 1}, "schedulerName": "s", "enableServiceLinks": false,
        "serviceAccountName": "a",
    });
    assert_eq!(defaulted(given.clone()), given, "what is given stays");
    assert_eq!(defaulted(json!({"serviceAccount": "old"}))["serviceAccountName"], "old");
}

#[test]
fn containers_of_every_kind_get_theirs() {
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        let container = json!({
            "name": "c", "image": "i:1", "ports": [{"containerPort": 1}],
            "env": [
                {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "B", "valueFrom": {"fileKeyRef": {"key": "k"}}},
            ],
            "livenessProbe": {"httpGet": {"port": 1}}, "readinessProbe": {"grpc": {"port": 1}, "periodSeconds": 3},
            "startupProbe": {"exec": {}}, "lifecycle": {"preStop": {"httpGet": {"port": 2, "path": "/x", "scheme": "HTTPS"}}},
        });
        let probe =
            json!({"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3});
        let with = |handler: Value| {
            let mut probe = probe.clone();
            probe.as_object_mut().unwrap().extend(handler.as_object().unwrap().clone());
            probe
        };
        let result = defaulted(json!({ kind: [container] }));
        assert_eq!(
            result[kind][0],
            json!({
                "name": "c", "image": "i:1", "imagePullPolicy": "IfNotPresent", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 1, "protocol": "TCP"}],
                "env": [
                    {"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                    {"name": "B", "valueFrom": {"fileKeyRef": {"key": "k", "optional": false}}},
                ],
                "livenessProbe": with(json!({"httpGet": {"path": "/", "port": 1, "scheme": "HTTP"}})),
                "readinessProbe": with(json!({"grpc": {"port": 1, "service": ""}, "periodSeconds": 3})),
                "startupProbe": with(json!({"exec": {}})),
                "lifecycle": {"preStop": {"httpGet": {"path": "/x", "port": 2, "scheme": "HTTPS"}}},
            }),
            "{kind}"
        );
    }
}

#[test]
fn the_pull_policy_follows_the_tag() {
    let digest = format!("i@sha256:{}", "0".repeat(64));
    for (image, policy) in [
        ("i", "Always"),
        ("i:latest", "Always"),
        ("r:5000/i", "Always"),
        ("i:v1", "IfNotPresent"),
        (&digest, "IfNotPresent"),
        ("Not A Name", "IfNotPresent"),
    ] {
        let result = defaulted(
            json!({"containers": [{"image": image}], "volumes": [{"image": {"reference": image}}]}),
        );
        assert_eq!(result["containers"][0]["imagePullPolicy"], policy, "{image}");
        assert_eq!(result["volumes"][0]["image"]["pullPolicy"], policy, "{image}");
    }
}

#[test]
fn volumes_get_their_kind_and_modes() {
    let field = json!({"path": "p", "fieldRef": {"fieldPath": "metadata.name"}});
    let full = json!({"path": "p", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}});
    for (source, expected) in [
        (json!({}), json!({"emptyDir": {}})),
        (json!({"hostPath": {"path": "/"}}), json!({"hostPath": {"path": "/", "type": ""}})),
        (json!({"secret": {}}), json!({"secret": {"defaultMode": 420}})),
        (json!({"secret": {"defaultMode": 0}}), json!({"secret": {"defaultMode": 0}})),
        (json!({"configMap": {}}), json!({"configMap": {"defaultMode": 420}})),
        (
            json!({"downwardAPI": {"items": [field]}}),
            json!({"downwardAPI": {"defaultMode": 420, "items": [full]}}),
        ),
        (
            json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}, {"downwardAPI": {"items": [field]}}]}}),
            json!({"projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}, {"downwardAPI": {"items": [full]}}]}}),
        ),
        (json!({"nfs": {"server": "s"}}), json!({})),
    ] {
        assert_eq!(defaulted(json!({"volumes": [source.clone()]}))["volumes"][0], expected, "{source}");
    }
}

#[test]
fn requests_come_from_limits_and_host_ports_from_the_host_network() {
    let resources = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}});
    let full = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
    for kind in ["containers", "initContainers"] {
        let container = json!({"resources": resources, "ports": [{"containerPort": 80}]});
        let result = defaulted(json!({"hostNetwork": true, kind: [container]}));
        assert_eq!(result[kind][0]["resources"], full);
        assert_eq!(result[kind][0]["ports"][0]["hostPort"], 80);
    }
    let result = defaulted(json!({"containers": [{"ports": [{"containerPort": 80}]}]}));
    assert_eq!(result["containers"][0]["ports"][0].get("hostPort"), None);
}

#[test]
fn pod_level_requests_follow_the_containers() {
    let limits = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
    let sidecar = json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}});
    for (init, expected) in
        [(vec![], "1500m"), (vec![limits("4")], "4"), (vec![sidecar, limits("4")], "4500m")]
    {
        let result = defaulted(json!({
            "initContainers": init,
            "containers": [limits("1"), limits("500m")],
            "resources": {"limits": {"cpu": "8", "memory": "1Gi"}},
        }));
        assert_eq!(result["resources"]["requests"], json!({"cpu": expected, "memory": "1Gi"}));
    }
    let huge = json!({"resources": {"limits": {"cpu": "1", "hugepages-2Mi": "4Mi"}}});
    let result = defaulted(json!({"containers": [huge], "resources": {"limits": {"memory": "1Gi"}}}));
    assert_eq!(result["resources"]["limits"]["hugepages-2Mi"], "4194304");
    assert_eq!(result["resources"]["requests"]["hugepages-2Mi"], "4194304");
    assert_eq!(defaulted(json!({"resources": {}}))["resources"], json!({}), "nothing set, nothing derived");
}

#[test]
fn a_secret_gets_a_type() {
    let mut secret = Secret::default();
    default_secret(&mut secret);
    assert_eq!(secret.r#type, "Opaque");
}
