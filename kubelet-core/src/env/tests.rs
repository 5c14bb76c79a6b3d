//! Variables against the kubelet's rules.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::api::{ConfigMap, Secret};

#[derive(Default)]
struct Objects {
    maps: Vec<Arc<ConfigMap>>,
    secrets: Vec<Arc<Secret>>,
}

impl ObjectSource for Objects {
    fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        let is = |m: &&Arc<ConfigMap>| m.metadata.namespace == namespace && m.metadata.name == name;
        self.maps.iter().find(is).cloned()
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        let is = |s: &&Arc<Secret>| s.metadata.namespace == namespace && s.metadata.name == name;
        self.secrets.iter().find(is).cloned()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

fn objects() -> Objects {
    let map = json!({"metadata": {"name": "cm", "namespace": "ns"}, "data": {"a": "1", "b.c": "2"}});
    let secret = json!({"metadata": {"name": "s", "namespace": "ns"}, "data": {"pw": "aHVudGVyMg=="}});
    Objects {
        maps: vec![serde_json::from_value(map).unwrap()],
        secrets: vec![serde_json::from_value(secret).unwrap()],
    }
}

fn run(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u1",
            "labels": {"app": "x\"y", "z": "1"}, "annotations": {"k/a[b]c": "v"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [container]}
    }))
    .unwrap();
    let allocatable = BTreeMap::from([("cpu".to_owned(), "4".parse().unwrap())]);
    let inputs = EnvInputs {
        objects: &objects(),
        pod_ips: &["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        host_ips: &["192.0.2.1".parse().unwrap()],
        allocatable: &allocatable,
        read_file_key: &|selector| match selector.key.as_str() {
            "K" => Ok(Some("from file".into())),
            "bad" => Err("couldn't parse env file".into()),
            _ => Ok(None),
        },
    };
    environment(&pod, &pod.spec.containers[0], &inputs).map_err(|e| e.to_string())
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn references_follow_the_expansion_rules() {
    let lookup = |name: &str| match name {
        "A" => Some("a"),
        "EMPTY" => Some(""),
        _ => None,
    };
    for (text, expected) in [
        ("$(A)", "a"),
        ("x$(A)$(A)y", "xaay"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$a"),
        ("$$$$(A)", "$$(A)"),
        ("$(B)", "$(B)"),
        ("$(EMPTY)", ""),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("$(A$(A)", "$(A$(A)"),
        ("$(", "$("),
        ("$", "$"),
        ("a$", "a$"),
        ("$é(A)", "$é(A)"),
        ("$()", "$()"),
        ("\n$(A)\u{1F600}", "\na\u{1F600}"),
    ] {
        assert_eq!(expand(text, lookup), expected, "{text}");
    }
    assert_eq!(expand_sub_path("logs/$(A)", lookup).unwrap(), "logs/a");
    assert_eq!(expand_sub_path("$(Z)/$(EMPTY)/$(Z)", lookup).unwrap_err(), ["EMPTY", "Z"]);
}

#[test]
fn variables_see_those_before_them_and_override_env_from() {
    let env = run(json!({
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}},
            {"configMapRef": {"name": "none", "optional": true}}],
        "env": [
            {"name": "A", "value": "1$(P_a)$(LATER)"},
            {"name": "pw", "value": "over $(pw)"},
            {"name": "LATER", "value": "x"},
            {"name": "A", "value": "$(A)!"},
            {"name": "E"}
        ]
    }));
    let expected = [
        ("P_a", "1"),
        ("P_b.c", "2"),
        ("pw", "over hunter2"),
        ("A", "11$(LATER)!"),
        ("LATER", "x"),
        ("E", ""),
    ];
    assert_eq!(env.unwrap(), pairs(&expected));
}

#[test]
fn sources_resolve_and_missing_ones_say_what_is_missing() {
    let from = |source: serde_json::Value| {
        run(json!({"env": [{"name": "V", "valueFrom": source}]}))
            .map(|env| env.into_iter().map(|(_, value)| value).next())
    };
    let field = |path: &str| from(json!({"fieldRef": {"fieldPath": path}}));
    for (path, value) in [
        ("metadata.name", "web"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u1"),
        ("metadata.labels['z']", "1"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['k/a[b]c']", "v"),
        ("metadata.labels", "app=\"x\\\"y\"\nz=\"1\""),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", "sa"),
        ("status.hostIP", "192.0.2.1"),
        ("status.hostIPs", "192.0.2.1"),
        ("status.podIP", "10.0.0.5"),
        ("status.podIPs", "10.0.0.5,fd00::5"),
    ] {
        assert_eq!(field(path).unwrap().as_deref(), Some(value), "{path}");
    }
    assert_eq!(field("spec.x").unwrap_err(), "unsupported fieldPath: spec.x");
    assert_eq!(field("spec.x['y']").unwrap_err(), "fieldPath \"spec.x['y']\" does not support subscript");

    let key = |kind: &str, name: &str, key: &str, optional: bool| {
        from(json!({kind: {"name": name, "key": key, "optional": optional}}))
    };
    assert_eq!(key("configMapKeyRef", "cm", "a", false).unwrap().as_deref(), Some("1"));
    assert_eq!(key("secretKeyRef", "s", "pw", false).unwrap().as_deref(), Some("hunter2"));
    for (kind, name) in [("configMapKeyRef", "none"), ("configMapKeyRef", "cm"), ("secretKeyRef", "s")] {
        assert_eq!(key(kind, name, "x", true).unwrap(), None);
    }
    assert_eq!(key("configMapKeyRef", "none", "a", false).unwrap_err(), "configmap \"none\" not found");
    assert_eq!(key("secretKeyRef", "none", "a", false).unwrap_err(), "secret \"none\" not found");
    let missing = key("configMapKeyRef", "cm", "x", false).unwrap_err();
    assert_eq!(missing, "couldn't find key x in ConfigMap ns/cm");
    assert_eq!(key("secretKeyRef", "s", "x", false).unwrap_err(), "couldn't find key x in Secret ns/s");

    let file = |key: &str, optional: bool| {
        from(json!({"fileKeyRef": {"volumeName": "v", "path": "f.env", "key": key, "optional": optional}}))
    };
    assert_eq!(file("K", false).unwrap().as_deref(), Some("from file"));
    assert_eq!(file("none", true).unwrap(), None);
    assert_eq!(
        file("none", false).unwrap_err(),
        "environment variable key \"none\" not found in file \"f.env\""
    );
    assert_eq!(file("bad", true).unwrap_err(), "couldn't parse env file");
}

#[test]
fn resources_are_divided_rounded_up_and_default_to_the_node() {
    let with = |resource: &str, divisor: Option<&str>| {
        let selector = json!({"resource": resource, "divisor": divisor});
        run(json!({
            "resources": {"requests": {"cpu": "1250m", "hugepages-2Mi": "4Mi"}, "limits": {"memory": "65Mi"}},
            "env": [{"name": "V", "valueFrom": {"resourceFieldRef": selector}}]
        }))
        .map(|env| env[0].1.clone())
    };
    for (resource, divisor, value) in [
        ("requests.cpu", None, "2"),
        ("requests.cpu", Some("1m"), "1250"),
        ("requests.cpu", Some("0"), "2"),
        ("limits.cpu", None, "4"),
        ("limits.memory", None, "68157440"),
        ("limits.memory", Some("1Mi"), "65"),
        ("limits.memory", Some("1Gi"), "1"),
        ("requests.memory", None, "0"),
        ("limits.ephemeral-storage", None, "0"),
        ("requests.hugepages-2Mi", Some("1Mi"), "4"),
        ("limits.hugepages-2Mi", None, "0"),
    ] {
        assert_eq!(with(resource, divisor).unwrap(), value, "{resource} {divisor:?}");
    }
    assert_eq!(with("limits.gpu", None).unwrap_err(), "unsupported container resource : limits.gpu");
    let other = run(json!({"env": [{"name": "V", "valueFrom": {"resourceFieldRef":
        {"resource": "limits.cpu", "containerName": "zz"}}}]}));
    assert_eq!(other.unwrap_err(), "container zz not found");
}

proptest::proptest! {
    #[test]
    fn an_escaped_text_expands_to_itself(text in ".*") {
        let expanded = expand(&text.replace('$', "$$"), |_| Some("never"));
        proptest::prop_assert_eq!(expanded, text);
    }

    #[test]
    fn unknown_references_stay(text in "[$()A-Z ]*") {
        let plain = text.replace("$$", "");
        proptest::prop_assert_eq!(expand(&plain, |_| None), plain);
    }
}
