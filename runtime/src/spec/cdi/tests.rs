//! Requests, their resolution, and edits of every kind.

use oci_spec::runtime::{Linux, Process};

use super::*;

fn specification(text: Value) -> Specification {
    serde_json::from_value(text).unwrap()
}

fn gpu() -> Specification {
    specification(json!({
        "cdiVersion": "0.7.0", "kind": "vendor.com/gpu",
        "containerEdits": {"env": ["COMMON=1"], "hooks": [
            {"hookName": "createContainer", "path": "/bin/hook", "args": ["hook", "x"], "timeout": 5}]},
        "devices": [
            {"name": "gpu0", "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}],
                "mounts": [{"hostPath": "/lib/gpu", "containerPath": "/usr/lib/gpu", "options": ["ro", "rbind"]}],
                "additionalGids": [44, 0, 44], "env": ["GPU=0"]}},
            {"name": "gpu1", "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpu1", "type": "b", "major": 8, "minor": 1, "permissions": "rw"}]}},
        ],
    }))
}

fn spec() -> Spec {
    let mut process = Process::default();
    process.set_env(Some(vec!["GPU=none".into()]));
    let mut spec = Spec::default();
    spec.set_process(Some(process)).set_linux(Some(Linux::default())).set_hooks(None);
    let deep = |path: &str| {
        let mut mount = Mount::default();
        mount.set_destination(path.into());
        mount
    };
    spec.set_mounts(Some(vec![deep("/usr/lib/gpu/inner"), deep("/usr/lib/gpu"), deep("/proc")]));
    spec
}

fn null() -> HashMap<PathBuf, NodeFacts> {
    HashMap::from([("/dev/null".into(), NodeFacts { kind: "c", major: 1, minor: 3, mode: 0o666 })])
}

#[test]
fn devices_are_asked_for_by_field_and_by_annotation() {
    let cdi_devices = ["v.com/c=a", "v.com/c=a", "v.com/c=b"].map(|name| v1::CdiDevice { name: name.into() });
    let mut config = v1::ContainerConfig { cdi_devices: cdi_devices.into(), ..Default::default() };
    config.annotations.insert("cdi.k8s.io/x".into(), "v.com/c=b,v.com/c=d".into());
    config.annotations.insert("other/x".into(), "nonsense".into());
    assert_eq!(requested(&config).unwrap(), ["v.com/c=a", "v.com/c=b", "v.com/c=d"]);
    for wrong in ["v.com/c", "v.com=a", "1v/c=a", "v.com/c=", "v.com/c=a b", ""] {
        config.annotations.insert("cdi.k8s.io/x".into(), wrong.into());
        assert_eq!(requested(&config), Err(CdiError::Annotation(wrong.into())), "{wrong}");
    }
}

#[test]
fn what_nobody_has_is_refused_by_all_its_names() {
    let mut registry = Registry::default();
    registry.add(vec![gpu()]);
    let names = ["vendor.com/gpu=gpu0", "a.com/b=c", "d.com/e=f"].map(str::to_owned);
    let error = registry.edits(&names).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CDI device injection failed: unresolvable CDI devices a.com/b=c, d.com/e=f"
    );
    assert_eq!(registry.add(vec![gpu(), gpu()]), ["vendor.com/gpu=gpu0", "vendor.com/gpu=gpu1"]);
    assert!(registry.edits(&names[..1]).is_err(), "two have it, so nobody has");
}

#[test]
fn edits_of_every_kind_reach_the_spec_once() {
    let mut registry = Registry::default();
    registry.add(vec![gpu()]);
    let edits = registry.edits(&["vendor.com/gpu=gpu0", "vendor.com/gpu=gpu1"].map(str::to_owned)).unwrap();
    let mut spec = spec();
    apply(&mut spec, &edits, &null()).unwrap();
    let text = serde_json::to_value(&spec).unwrap();
    assert_eq!(text["process"]["env"], json!(["GPU=0", "COMMON=1"]));
    assert_eq!(text["process"]["user"]["additionalGids"], json!([44]));
    let devices = &text["linux"]["devices"];
    assert_eq!(
        (&devices[0]["path"], &devices[0]["major"], &devices[0]["minor"]),
        (&json!("/dev/gpu0"), &json!(1), &json!(3))
    );
    assert_eq!((&devices[1]["type"], &devices[1]["major"]), (&json!("b"), &json!(8)));
    let rules = text["linux"]["resources"]["devices"].as_array().unwrap();
    let access: Vec<&Value> = rules.iter().map(|rule| &rule["access"]).collect();
    assert_eq!(access[access.len() - 2..], [&json!("rwm"), &json!("rw")]);
    let places: Vec<&Value> =
        text["mounts"].as_array().unwrap().iter().map(|mount| &mount["destination"]).collect();
    assert_eq!(places, ["/proc", "/usr/lib/gpu", "/usr/lib/gpu/inner"]);
    assert_eq!(text["mounts"][1]["source"], "/lib/gpu");
    let hooks = text["hooks"]["createContainer"].as_array().unwrap();
    assert_eq!(hooks.len(), 1, "what all devices share is given once");
    assert_eq!(hooks[0], json!({"path": "/bin/hook", "args": ["hook", "x"], "timeout": 5}));
}

#[test]
fn a_node_must_be_there_or_described() {
    let mut registry = Registry::default();
    registry.add(vec![gpu()]);
    let edits = registry.edits(&["vendor.com/gpu=gpu0".to_owned()]).unwrap();
    assert_eq!(apply(&mut spec(), &edits, &HashMap::new()), Err(CdiError::NoNode("/dev/null".into())));
    let wrong = Edits {
        device_nodes: vec![Node { path: "/dev/null".into(), r#type: "b".into(), ..Node::default() }],
        ..Edits::default()
    };
    assert!(matches!(apply(&mut spec(), &[wrong], &null()), Err(CdiError::Mismatch { .. })));
    let hook =
        Edits { hooks: vec![Hook { hook_name: "never".into(), ..Hook::default() }], ..Edits::default() };
    assert_eq!(apply(&mut spec(), &[hook], &null()), Err(CdiError::Hook("never".into())));
}
