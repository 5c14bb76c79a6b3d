//! Sandboxes and host names against the kubelet's rules.

use serde_json::{Value, json};

use super::*;

fn pod(name: &str, spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": "u1", "labels": {"app": "x"}, "annotations": {"a": "b"}},
        "spec": spec
    }))
    .unwrap()
}

fn config(spec: Value) -> Result<PodSandboxConfig, SandboxConfigError> {
    let inputs = SandboxInputs {
        attempt: 2,
        dns: DnsConfig { servers: vec!["1.1.1.1".into()], ..DnsConfig::default() },
        log_root: Path::new("/var/log/pods"),
        cluster_domain: "cluster.local",
        cgroup_parent: "/kubepods/podu1".into(),
        cpu: CpuPolicy::default(),
        user_namespace: None,
    };
    pod_sandbox_config(&pod("web", spec), inputs)
}

#[test]
fn a_plain_pod() {
    let config = config(json!({"containers": [{"name": "c", "ports": [
        {"containerPort": 80, "hostPort": 8080, "protocol": "TCP"},
        {"containerPort": 80, "hostPort": 8080, "protocol": "TCP"},
        {"containerPort": 53, "protocol": "UDP", "hostIP": "fd00::1"}
    ], "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Mi"}}}]}))
    .unwrap();
    let metadata = config.metadata.unwrap();
    assert_eq!(
        (metadata.name.as_str(), metadata.namespace.as_str(), metadata.uid.as_str(), metadata.attempt),
        ("web", "ns", "u1", 2)
    );
    assert_eq!(config.hostname, "web");
    assert_eq!(config.log_directory, "/var/log/pods/ns_web_u1");
    assert_eq!(config.dns_config.unwrap().servers, ["1.1.1.1"]);
    let ports: Vec<_> =
        config.port_mappings.iter().map(|p| (p.container_port, p.host_port, p.protocol)).collect();
    assert_eq!(ports, [(80, 8080, 0), (53, 0, 1)]);
    assert_eq!(config.labels["app"], "x");
    assert_eq!(config.labels["io.kubernetes.pod.name"], "web");
    assert_eq!(config.labels["io.kubernetes.pod.namespace"], "ns");
    assert_eq!(config.labels["io.kubernetes.pod.uid"], "u1");
    assert_eq!(config.annotations["a"], "b");
    let linux = config.linux.unwrap();
    assert_eq!(linux.cgroup_parent, "/kubepods/podu1");
    let resources = linux.resources.unwrap();
    assert_eq!((resources.cpu_shares, resources.memory_limit_in_bytes), (102, 1 << 20));
    let security = linux.security_context.unwrap();
    let names = security.namespace_options.unwrap();
    let modes = (names.network(), names.pid(), names.ipc());
    assert_eq!(modes, (NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Pod));
    assert_eq!(security.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
    assert!(!security.privileged);
}

#[test]
fn what_a_pod_shares_with_the_host() {
    let config = config(json!({
        "hostNetwork": true, "hostPID": true, "hostIPC": true, "shareProcessNamespace": true,
        "securityContext": {"runAsUser": 7, "runAsGroup": 8, "fsGroup": 9, "supplementalGroups": [10, 11],
            "supplementalGroupsPolicy": "Strict", "seLinuxOptions": {"type": "t"},
            "sysctls": [{"name": "net/ipv4/conf/eth0.100/forwarding", "value": "1"}, {"name": "a.b", "value": "2"}]},
        "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}],
        "initContainers": [{"name": "i", "securityContext": {"privileged": true}}]
    }))
    .unwrap();
    assert_eq!((config.hostname.as_str(), config.port_mappings.len()), ("", 0));
    let linux = config.linux.unwrap();
    assert_eq!(linux.sysctls["net.ipv4.conf.eth0/100.forwarding"], "1");
    assert_eq!(linux.sysctls["a.b"], "2");
    let security = linux.security_context.unwrap();
    let names = security.namespace_options.as_ref().unwrap();
    let modes = (names.network(), names.pid(), names.ipc());
    assert_eq!(modes, (NamespaceMode::Node, NamespaceMode::Node, NamespaceMode::Node));
    assert!(security.privileged);
    assert_eq!(security.supplemental_groups, [9, 10, 11]);
    assert_eq!(security.supplemental_groups_policy(), SupplementalGroupsPolicy::Strict);
    assert_eq!(security.run_as_user.unwrap().value, 7);
    assert_eq!(security.selinux_options.unwrap().r#type, "t");
}

#[test]
fn shared_processes_and_refusals() {
    let shared = config(json!({"shareProcessNamespace": true})).unwrap();
    let names = shared.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    assert_eq!(names.pid(), NamespaceMode::Pod);
    let refused = config(json!({"securityContext": {"supplementalGroupsPolicy": "x"}})).unwrap_err();
    assert_eq!(refused.to_string(), "unsupported supplementalGroupsPolicy: x");
}

#[test]
fn host_names() {
    let long = "a".repeat(60) + "-.-bc";
    for (name, spec, hostname, domain) in [
        ("web", json!({}), "web", ""),
        ("web", json!({"hostname": "h"}), "h", ""),
        ("web", json!({"subdomain": "s"}), "web", "s.ns.svc.cluster.local"),
        ("web", json!({"hostname": "h", "subdomain": "s"}), "h", "s.ns.svc.cluster.local"),
        ("web", json!({"hostname": "h", "subdomain": "s", "hostnameOverride": "o.x"}), "o.x", ""),
        (&long, json!({}), &long[..60], ""),
    ] {
        let expected = PodHostname { hostname: hostname.into(), domain: domain.into() };
        assert_eq!(pod_hostname(&pod(name, spec.clone()), "cluster.local").unwrap(), expected, "{spec}");
    }
    for (spec, start) in [
        (json!({"hostname": "A"}), "pod Hostname \"A\" is not a valid DNS label: "),
        (json!({"subdomain": "a.b"}), "pod Subdomain \"a.b\" is not a valid DNS label: "),
        (json!({"hostnameOverride": "-"}), "pod HostnameOverride \"-\" is not a valid DNS subdomain: "),
    ] {
        let error = pod_hostname(&pod("web", spec), "d").unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
    let fqdn = config(json!({"subdomain": "s", "setHostnameAsFQDN": true})).unwrap();
    assert_eq!(fqdn.hostname, "web.s.ns.svc.cluster.local");
    let error =
        config(json!({"subdomain": "s".repeat(50), "setHostnameAsFQDN": true})).unwrap_err().to_string();
    assert!(error.ends_with("is too long (64 characters is the max, 75 characters requested)"), "{error}");
}
