//! Containers against the kubelet's rules.

use std::collections::HashMap;

use coracle_cri::v1::security_profile::ProfileType;
use coracle_cri::v1::{HugepageLimit, LinuxContainerSecurityContext};
use serde_json::{Value, json};

use super::*;

fn facts() -> HostFacts {
    HostFacts {
        cgroup_v2: false,
        swap_accounting: true,
        memory_capacity: 8 << 30,
        hugepage_sizes: vec![2 << 20, 1 << 30],
        thermal_paths: vec!["/sys/t".into()],
    }
}

fn build(spec: Value, image: &ImageRef, facts: &HostFacts) -> Result<ContainerConfig, String> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u1"}, "spec": spec
    }))
    .unwrap();
    let inputs = ContainerInputs {
        attempt: 3,
        image,
        env: vec![("PORT".into(), "80".into()), ("HOME".into(), "/h".into())],
        mounts: vec![Mount { container_path: "/m".into(), ..Mount::default() }],
        devices: Vec::new(),
        facts,
        cpu: CpuPolicy::default(),
        seccomp_default: false,
        seccomp_root: "/root-dir/seccomp",
        user_namespace: None,
    };
    container_config(&pod, &pod.spec.containers[0], inputs).map_err(|error| error.to_string())
}

fn one(container: Value) -> ContainerConfig {
    build(
        json!({"containers": [container]}),
        &ImageRef { id: "sha256:1".into(), ..ImageRef::default() },
        &facts(),
    )
    .unwrap()
}

fn security(container: Value) -> LinuxContainerSecurityContext {
    one(container).linux.unwrap().security_context.unwrap()
}

#[test]
fn a_container_with_everything_plain() {
    let config = build(
        json!({"terminationGracePeriodSeconds": 30, "containers": [{
            "name": "c", "image": "reg/app:1", "command": ["sh", "-c"], "args": ["echo $(PORT) $$(PORT) $(NONE)"],
            "workingDir": "/w", "stdin": true, "stdinOnce": true, "tty": true,
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "lifecycle": {"stopSignal": "SIGRTMIN+3", "preStop": {"sleep": {"seconds": 5}}}
        }]}),
        &ImageRef { id: "sha256:1".into(), uid: None, username: String::new() },
        &facts(),
    )
    .unwrap();
    let metadata = config.metadata.unwrap();
    assert_eq!((metadata.name.as_str(), metadata.attempt), ("c", 3));
    let image = config.image.unwrap();
    assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:1", "reg/app:1"));
    assert_eq!(config.command, ["sh", "-c"]);
    assert_eq!(config.args, ["echo 80 $(PORT) $(NONE)"]);
    assert_eq!((config.working_dir.as_str(), config.log_path.as_str()), ("/w", "c/3.log"));
    assert!(config.stdin && config.stdin_once && config.tty);
    assert_eq!(config.stop_signal, i32::from(Signal::Sigrtminplus3));
    assert_eq!(config.envs[0], KeyValue { key: "PORT".into(), value: b"80".to_vec() });
    assert_eq!(config.mounts.len(), 1);
    let labels = HashMap::from([
        ("io.kubernetes.pod.name".to_owned(), "web".to_owned()),
        ("io.kubernetes.pod.namespace".to_owned(), "ns".to_owned()),
        ("io.kubernetes.pod.uid".to_owned(), "u1".to_owned()),
        ("io.kubernetes.container.name".to_owned(), "c".to_owned()),
    ]);
    assert_eq!(config.labels, labels);
    let annotation = |key: &str| config.annotations[key].as_str();
    assert_eq!(annotation("io.kubernetes.container.restartCount"), "3");
    assert_eq!(annotation("io.kubernetes.container.terminationMessagePath"), "/dev/termination-log");
    assert_eq!(annotation("io.kubernetes.container.terminationMessagePolicy"), "File");
    assert_eq!(annotation("io.kubernetes.pod.terminationGracePeriod"), "30");
    assert_eq!(annotation("io.kubernetes.container.preStopHandler"), r#"{"sleep":{"seconds":5}}"#);
    assert_eq!(annotation("io.kubernetes.container.ports"), r#"[{"containerPort":80,"protocol":"TCP"}]"#);
    assert_eq!(u64::from_str_radix(annotation("io.kubernetes.container.hash"), 16).unwrap() >> 32, 0);
}

#[test]
fn the_hash_sees_name_and_image_alone() {
    let container = |name: &str, image: &str, dir: &str| Container {
        name: name.into(),
        image: image.into(),
        working_dir: dir.into(),
        ..Container::default()
    };
    let hash = container_hash(&container("a", "b", ""));
    assert_eq!(hash, container_hash(&container("a", "b", "/x")));
    assert_ne!(hash, container_hash(&container("b", "a", "")));
    assert_ne!(hash, container_hash(&container("a", "c", "")));
}

#[test]
fn resources_become_cgroup_values() {
    let resources = |container: Value, facts: &HostFacts| {
        let spec = json!({"containers": [container]});
        build(spec, &ImageRef::default(), facts).unwrap().linux.unwrap().resources.unwrap()
    };
    let with = json!({"name": "c", "resources": {
        "requests": {"cpu": "250m", "memory": "1Gi", "hugepages-2Mi": "4Mi"},
        "limits": {"cpu": "500m", "memory": "2Gi", "hugepages-2Mi": "4Mi"}}});
    let v1 = resources(with.clone(), &facts());
    assert_eq!((v1.cpu_shares, v1.cpu_quota, v1.cpu_period), (256, 50_000, 100_000));
    assert_eq!((v1.memory_limit_in_bytes, v1.memory_swap_limit_in_bytes), (2 << 30, 2 << 30));
    assert_eq!(v1.oom_score_adj, 875);
    let pages = |page_size: &str, limit| HugepageLimit { page_size: page_size.into(), limit };
    assert_eq!(v1.hugepage_limits, [pages("2MB", 4 << 20), pages("1GB", 0)]);
    assert!(v1.unified.is_empty());

    let v2 = resources(with, &HostFacts { cgroup_v2: true, ..facts() });
    assert_eq!((v2.unified["memory.swap.max"].as_str(), v2.unified["memory.oom.group"].as_str()), ("0", "1"));
    assert_eq!(v2.memory_swap_limit_in_bytes, 0);

    let none = resources(json!({"name": "c"}), &HostFacts::default());
    assert_eq!((none.cpu_shares, none.cpu_quota, none.memory_limit_in_bytes), (2, 0, 0));
    assert_eq!(none.oom_score_adj, 1000);
    let limit_only = resources(json!({"name": "c", "resources": {"limits": {"cpu": "1"}}}), &facts());
    assert_eq!(limit_only.cpu_shares, 1024, "a limit without a request counts as one");
}

#[test]
fn the_containers_security_settings_come_before_the_pods_and_the_images() {
    let spec = json!({
        "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
            "seLinuxOptions": {"type": "pod_t"}, "seccompProfile": {"type": "RuntimeDefault"},
            "appArmorProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "securityContext": {"runAsUser": 5, "seLinuxOptions": {"type": "c_t"},
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "privileged": true,
            "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "seccompProfile": {"type": "Localhost", "localhostProfile": "p/a.json"},
            "appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}}}]
    });
    let image = ImageRef { uid: Some(99), ..ImageRef::default() };
    let context = build(spec, &image, &facts()).unwrap().linux.unwrap().security_context.unwrap();
    assert_eq!(context.run_as_user.as_ref().unwrap().value, 5);
    assert_eq!(context.run_as_group.as_ref().unwrap().value, 2);
    assert_eq!(context.supplemental_groups, [3, 4]);
    assert_eq!(context.selinux_options.as_ref().unwrap().r#type, "c_t");
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.add_capabilities, ["NET_ADMIN"]);
    assert_eq!(capabilities.drop_capabilities, ["ALL"]);
    assert!(context.privileged && context.readonly_rootfs && context.no_new_privs);
    let seccomp = context.seccomp.as_ref().unwrap();
    assert_eq!(seccomp.profile_type(), ProfileType::Localhost);
    assert_eq!(seccomp.localhost_ref, "/root-dir/seccomp/p/a.json");
    assert_eq!(context.apparmor.as_ref().unwrap().localhost_ref, "mine");
    #[allow(deprecated)]
    let old = &context.apparmor_profile;
    assert_eq!(old, "localhost/mine");
}

#[test]
fn defaults_of_a_container_without_settings() {
    let context = security(json!({"name": "c"}));
    assert_eq!(context.run_as_user.unwrap().value, 0, "an image without a user runs as root");
    assert_eq!(context.seccomp.unwrap().profile_type(), ProfileType::Unconfined);
    assert!(context.apparmor.is_none() && !context.no_new_privs);
    assert_eq!(context.masked_paths.len(), 13);
    assert_eq!(context.masked_paths.last().unwrap(), "/sys/t");
    assert_eq!(context.readonly_paths[0], "/proc/bus");
    let unmasked = security(json!({"name": "c", "securityContext": {"procMount": "Unmasked"}}));
    assert!(unmasked.masked_paths.is_empty() && unmasked.readonly_paths.is_empty());
    let named = build(
        json!({"containers": [{"name": "c"}]}),
        &ImageRef { username: "www".into(), ..ImageRef::default() },
        &facts(),
    );
    let context = named.unwrap().linux.unwrap().security_context.unwrap();
    assert_eq!((context.run_as_user, context.run_as_username.as_str()), (None, "www"));
}

#[test]
fn run_as_non_root_is_checked_against_the_image() {
    let numeric = |uid| ImageRef { uid: Some(uid), ..ImageRef::default() };
    let named = ImageRef { username: "www".into(), ..ImageRef::default() };
    let check = |image: &ImageRef, pod: Value, container: Value| {
        let spec =
            json!({"securityContext": pod, "containers": [{"name": "c", "securityContext": container}]});
        build(spec, image, &facts()).map(drop)
    };
    let who = "(pod: \"web_ns(u1)\", container: c)";
    let non_root = || json!({"runAsNonRoot": true});
    assert_eq!(
        check(&numeric(0), non_root(), json!({})).unwrap_err(),
        format!("container has runAsNonRoot and image will run as root {who}")
    );
    assert_eq!(
        check(&ImageRef::default(), json!({}), non_root()).unwrap_err(),
        format!("container has runAsNonRoot and image will run as root {who}")
    );
    assert_eq!(
        check(&named, non_root(), json!({})).unwrap_err(),
        format!(
            "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root {who}"
        )
    );
    assert_eq!(
        check(&numeric(5), json!({"runAsNonRoot": true, "runAsUser": 0}), json!({})).unwrap_err(),
        format!("container's runAsUser breaks non-root policy {who}")
    );
    assert_eq!(
        check(&numeric(-4), non_root(), json!({})).unwrap_err(),
        format!(
            "container has runAsNonRoot and image has an invalid user id (-4). (Must be 1-(2147483647)): must be \
             between 0 and 2147483647, inclusive {who}"
        )
    );
    assert!(check(&numeric(0), non_root(), json!({"runAsUser": 1})).is_ok());
    assert!(check(&numeric(0), non_root(), json!({"runAsNonRoot": false})).is_ok());
    assert!(check(&numeric(7), non_root(), json!({})).is_ok());
}

#[test]
fn settings_that_contradict_themselves_are_told() {
    let refused = |container: Value| {
        build(json!({"containers": [container]}), &ImageRef::default(), &facts()).unwrap_err()
    };
    let context = |context: Value| refused(json!({"name": "c", "securityContext": context}));
    assert_eq!(
        context(json!({"seccompProfile": {"type": "Localhost"}})),
        "localhostProfile must be set if seccompProfile type is Localhost."
    );
    assert_eq!(
        context(json!({"appArmorProfile": {"type": "Localhost"}})),
        "missing localhost apparmor profile name"
    );
    assert_eq!(context(json!({"appArmorProfile": {"type": "x"}})), "unknown apparmor profile type: \"x\"");
    let signal = refused(json!({"name": "c", "lifecycle": {"stopSignal": "SIGNONE"}}));
    assert_eq!(signal, "unknown stop signal \"SIGNONE\"");
}
