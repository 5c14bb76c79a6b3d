//! What an API server says to each mistake.

mod containers;
mod volumes;

use serde_json::{Value, json};

use super::*;
use crate::source::default_pod;

/// Merges as a strategic patch without the strategy: maps deep, everything else replaced.
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn errors_of(base: Value, patch: Value, rules: PodRules) -> Vec<String> {
    let mut value = base;
    merge(&mut value, patch);
    let mut pod: Pod = serde_json::from_value(value).unwrap();
    default_pod(&mut pod);
    validate_pod(&pod, rules).iter().map(ToString::to_string).collect()
}

const FREE: PodRules = PodRules { allow_object_references: true };

/// Errors of a pod whose specification is this one laid over a good one.
fn spec(patch: Value) -> Vec<String> {
    let base = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }
    });
    errors_of(base, json!({"spec": patch}), FREE)
}

/// Errors of a container laid over a good one.
fn container(patch: Value) -> Vec<String> {
    let mut container = json!({"name": "c", "image": "i"});
    merge(&mut container, patch);
    spec(json!({"containers": [container]}))
}

/// Errors of one volume source.
fn volume(source: Value) -> Vec<String> {
    let mut volume = json!({"name": "v"});
    merge(&mut volume, source);
    spec(json!({"volumes": [volume]}))
}

#[track_caller]
fn check(table: impl IntoIterator<Item = (Vec<String>, &'static [&'static str])>) {
    for (errors, expected) in table {
        let starts_match = errors.len() == expected.len()
            && errors.iter().zip(expected).all(|(error, expected)| error.starts_with(expected));
        assert!(starts_match, "got      {errors:#?}\nexpected {expected:#?}");
    }
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name', or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

#[test]
fn a_good_pod_has_no_errors() {
    check([
        (spec(json!({})), &[][..]),
        (
            spec(json!({
                "hostNetwork": true,
                "shareProcessNamespace": true,
                "initContainers": [
                    {"name": "i", "image": "i", "restartPolicy": "Always", "livenessProbe": {"exec": {"command": ["a"]}}},
                    {"name": "j", "image": "i", "restartPolicy": "OnFailure"},
                ],
                "containers": [{
                    "name": "c", "image": "r.x:5000/i@sha256:x", "ports": [{"containerPort": 80, "name": "http"}],
                    "env": [
                        {"name": "A B", "value": "x"},
                        {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a.b/c']"}}},
                        {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1000m"}}},
                        {"name": "F", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "f", "key": "K"}}},
                    ],
                    "volumeMounts": [{"name": "v", "mountPath": "/a", "subPathExpr": "$(L)/b"}],
                    "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                    "readinessProbe": {"httpGet": {"port": "http"}},
                    "startupProbe": {"grpc": {"port": 1}},
                    "resources": {"limits": {"cpu": "1", "hugepages-2Mi": "4Mi", "a.b/c": 2}},
                    "securityContext": {"privileged": true, "seccompProfile": {"type": "Localhost", "localhostProfile": "a/b"}},
                }],
                "dnsPolicy": "None",
                "dnsConfig": {"nameservers": ["10.0.0.1", "fd00::1"], "searches": [".", "_a.b."], "options": [{"name": "x"}]},
                "hostAliases": [{"ip": "::1", "hostnames": ["a.b"]}],
                "tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 1}],
                "securityContext": {"sysctls": [{"name": "kernel/shm_rmid_forced", "value": "1"}]},
            })),
            &[],
        ),
    ]);
}

#[test]
fn names_are_checked() {
    let base = || json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
    let metadata = |patch: Value| {
        let mut metadata = json!({"name": "web", "namespace": "default"});
        merge(&mut metadata, patch);
        errors_of(base(), json!({"metadata": metadata}), FREE)
    };
    check([
        (
            metadata(json!({"name": ""})),
            &["metadata.name: Required value: name or generateName is required"][..],
        ),
        (
            metadata(json!({"name": "Web"})),
            &[
                "metadata.name: Invalid value: \"Web\": a lowercase RFC 1123 subdomain must consist of lower case",
            ],
        ),
        (
            metadata(json!({"namespace": "a.b"})),
            &["metadata.namespace: Invalid value: \"a.b\": must not contain dots"],
        ),
        (metadata(json!({"name": "a".repeat(254)})), &["metadata.name: Invalid value: \"aaaa"]),
        (
            metadata(json!({"labels": {"a/b/c": "ok", "d": "-"}})),
            &[
                "metadata.labels: Invalid value: \"a/b/c\": a valid label key must consist of",
                "metadata.labels: Invalid value: \"-\": a valid label must be an empty string or consist of",
            ],
        ),
        (
            metadata(json!({"annotations": {"/x": "", "UPPER.example/Ok": ""}})),
            &["metadata.annotations: Invalid value: \"/x\": prefix part must be non-empty"],
        ),
        (
            metadata(json!({"annotations": {"a": "x".repeat(256 << 10)}})),
            &["metadata.annotations: Too long: may not be more than 262144 bytes"],
        ),
        (
            metadata(json!({"generateName": "web-", "finalizers": ["a b"]})),
            &["metadata.finalizers: Invalid value: \"a b\": name part must consist of"],
        ),
    ]);
    let whole = container(json!({"name": "c_1"}));
    assert_eq!(whole, [format!("spec.containers[0].name: Invalid value: \"c_1\": {LABEL}")]);
}

#[test]
fn security_is_checked() {
    check([
        (
            spec(
                json!({"hostPID": true, "hostNetwork": true, "hostIPC": true, "shareProcessNamespace": true,
                "securityContext": {"runAsUser": -1, "fsGroup": 4294967296_i64, "supplementalGroups": [0, -1],
                    "fsGroupChangePolicy": "Never", "supplementalGroupsPolicy": "x",
                    "sysctls": [{"name": ""}, {"name": "a..b"}, {"name": "net.x"}, {"name": "kernel.sem"}, {"name": "kernel.sem"}],
                    "seccompProfile": {"type": "Localhost"}, "appArmorProfile": {"type": "Mine"}}}),
            ),
            &[
                "spec.securityContext.fsGroup: Invalid value: 4294967296: must be between 0 and 2147483647, inclusive",
                "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "spec.securityContext.supplementalGroups[1]: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled",
                "spec.securityContext.sysctls[0].name: Required value",
                "spec.securityContext.sysctls[1].name: Invalid value: \"a..b\": must have at most 253 characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
                "spec.securityContext.sysctls[2].name: Invalid value: \"net.x\": may not be specified when 'hostNetwork' is true",
                "spec.securityContext.sysctls[3].name: Invalid value: \"kernel.sem\": may not be specified when 'hostIPC' is true",
                "spec.securityContext.sysctls[4].name: Duplicate value: \"kernel.sem\"",
                "spec.securityContext.sysctls[4].name: Invalid value: \"kernel.sem\"",
                "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Never\": supported values: \"Always\", \"OnRootMismatch\"",
                "spec.securityContext.supplementalGroupsPolicy: Unsupported value: \"x\": supported values: \"Merge\", \"Strict\"",
                "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
                "spec.securityContext.appArmorProfile.type: Unsupported value: \"Mine\": supported values: \"Localhost\", \
                 \"RuntimeDefault\", \"Unconfined\"",
            ][..],
        ),
        (
            container(
                json!({"securityContext": {"runAsGroup": -1, "procMount": "Unmasked", "privileged": true,
                "allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]},
                "seccompProfile": {"type": "Unconfined", "localhostProfile": "x"},
                "appArmorProfile": {"type": "Localhost", "localhostProfile": " x"}}}),
            ),
            &[
                "spec.containers[0].securityContext.runAsGroup: Invalid value: -1: must be between",
                "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
                "spec.containers[0].securityContext.seccompProfile.localhostProfile: Invalid value: {",
                "spec.containers[0].securityContext: Invalid value: {",
                "spec.containers[0].securityContext: Invalid value: {",
                "spec.containers[0].securityContext.appArmorProfile.localhostProfile: Invalid value: \" x\": must not be padded",
            ],
        ),
        (
            spec(json!({"hostUsers": false, "hostNetwork": true, "hostPID": true})),
            &[
                "spec.hostNetwork: Forbidden: when `hostUsers` is false",
                "spec.HostPID: Forbidden: when `hostUsers` is false",
            ],
        ),
    ]);
}

#[test]
fn the_rest_of_a_pod_is_checked() {
    check([
        (
            spec(
                json!({"restartPolicy": "Maybe", "dnsPolicy": "Never", "preemptionPolicy": "x", "activeDeadlineSeconds": 0,
                "terminationGracePeriodSeconds": -1}),
            ),
            &[
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                "spec.dnsPolicy: Unsupported value: \"Never\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \
                 \"Default\", \"None\"",
                "spec.preemptionPolicy: Unsupported value: \"x\"",
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
                "spec.terminationGracePeriodSeconds: Invalid value: -1: must be greater than or equal to 0",
            ][..],
        ),
        (
            spec(json!({"dnsPolicy": "None"})),
            &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        (
            spec(json!({"dnsPolicy": "None", "dnsConfig": {}})),
            &[
                "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
            ],
        ),
        (
            spec(
                json!({"dnsConfig": {"nameservers": ["1.1.1.1", "2", "3.3.3.3", "4.4.4.4"], "searches": ["a b"], "options": [{}]}}),
            ),
            &[
                "spec.dnsConfig.nameservers: Invalid value: [\"1.1.1.1\",\"2\",\"3.3.3.3\",\"4.4.4.4\"]: must not have more than 3 nameservers",
                "spec.dnsConfig.nameservers[1]: Invalid value: \"2\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "spec.dnsConfig.searches[0]: Invalid value: \"a b\": a lowercase RFC 1123 subdomain must consist of lower case \
                 alphanumeric characters, '_', '-' or '.'",
                "spec.dnsConfig.options[0]: Required value: must not be empty",
            ],
        ),
        (
            spec(
                json!({"hostAliases": [{"ip": "x", "hostnames": ["A"]}], "hostname": "a.b", "subdomain": "-"}),
            ),
            &[
                "spec.hostname: Invalid value: \"a.b\": must not contain dots",
                "spec.subdomain: Invalid value: \"-\": a lowercase RFC 1123 label",
                "spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address",
                "spec.hostAliases[0].hostnames[0]: Invalid value: \"A\": a lowercase RFC 1123 subdomain",
            ],
        ),
        (
            spec(json!({"tolerations": [
                {"value": "x"}, {"key": "a", "operator": "Exists", "value": "x"},
                {"key": "a", "operator": "Gt", "effect": "Never"}, {"key": "a", "tolerationSeconds": 1}]})),
            &[
                "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \
                 \"match all values and all keys\"",
                "spec.tolerations[1].operator: Invalid value: \"x\": value must be empty when `operator` is 'Exists'",
                "spec.tolerations[2].operator: Unsupported value: \"Gt\": supported values: \"Equal\", \"Exists\"",
                "spec.tolerations[2].effect: Unsupported value: \"Never\"",
                "spec.tolerations[3].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            ],
        ),
        (
            spec(json!({"hostnameOverride": "A", "setHostnameAsFQDN": true, "hostNetwork": true})),
            &[
                "spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true",
                "spec.hostnameOverride: Forbidden: may not be specified when hostNetwork is true",
                "spec.hostnameOverride: Invalid value: \"A\": a lowercase RFC 1123 subdomain",
            ],
        ),
        (spec(json!({"os": {"name": "windows"}})), &["spec.os.name: Forbidden: this node runs linux"]),
        (
            spec(
                json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "Like"}]}]}}}}),
            ),
            &[
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].\
                 matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].\
                 matchExpressions[1].operator: Invalid value: \"Like\": not a valid selector operator",
            ],
        ),
        (
            spec(
                json!({"readinessGates": [{"conditionType": "a b"}], "runtimeClassName": "X", "overhead": {"disk": "1"}}),
            ),
            &[
                "spec.readinessGates[0].conditionType: Invalid value: \"a b\": name part must consist of",
                "spec.runtimeClassName: Invalid value: \"X\"",
                "spec.overhead.limits[disk]: Invalid value: \"disk\": must be a standard resource type or fully qualified",
                "spec.overhead.limits[disk]: Invalid value: \"disk\": must be a standard resource for containers",
            ],
        ),
    ]);
}

#[test]
fn static_pods_of_a_cluster_refer_to_no_objects() {
    let reference = |patch: Value| {
        let base = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}
        });
        assert_eq!(errors_of(base.clone(), json!({"spec": patch.clone()}), FREE), Vec::<String>::new());
        errors_of(base, json!({"spec": patch}), PodRules { allow_object_references: false })
    };
    let env = |source: Value| json!({"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "valueFrom": source}]}]});
    check([
        (reference(json!({"volumes": [{"name": "v"}, {"name": "h", "hostPath": {"path": "/"}}]})), &[][..]),
        (
            reference(json!({"serviceAccountName": "a"})),
            &["spec: Forbidden: static pods may not reference serviceaccounts"],
        ),
        (
            reference(json!({"serviceAccount": "a"})),
            &["spec: Forbidden: static pods may not reference serviceaccounts"],
        ),
        (
            reference(json!({"imagePullSecrets": [{"name": "s"}]})),
            &["spec: Forbidden: static pods may not reference secrets"],
        ),
        (
            reference(env(json!({"secretKeyRef": {"name": "s", "key": "k"}}))),
            &["spec: Forbidden: static pods may not reference secrets"],
        ),
        (
            reference(env(json!({"configMapKeyRef": {"name": "s", "key": "k"}}))),
            &["spec: Forbidden: static pods may not reference configmaps"],
        ),
        (
            reference(
                json!({"volumes": [{"name": "v", "projected": {"sources": [{"configMap": {"name": "m"}}]}}]}),
            ),
            &["spec: Forbidden: static pods may not reference configmaps"],
        ),
        (
            reference(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]})),
            &["spec: Forbidden: static pods may not reference persistentvolumeclaims"],
        ),
        (
            reference(json!({"resourceClaims": [{"name": "r"}]})),
            &["spec: Forbidden: static pods may not reference resourceclaims"],
        ),
    ]);
}

#[test]
fn config_maps_and_secrets_are_checked() {
    let config_map = |value: Value| -> Vec<String> {
        let mut base = json!({"metadata": {"name": "m", "namespace": "default"}});
        merge(&mut base, value);
        let object = serde_json::from_value(base).unwrap();
        validate_config_map(&object).iter().map(ToString::to_string).collect()
    };
    let secret = |value: Value| -> Vec<String> {
        let mut base = json!({"metadata": {"name": "s", "namespace": "default"}});
        merge(&mut base, value);
        let object = serde_json::from_value(base).unwrap();
        validate_secret(&object).iter().map(ToString::to_string).collect()
    };
    check([
        (config_map(json!({"data": {"a.b": "c"}, "binaryData": {"x": ""}})), &[][..]),
        (
            config_map(json!({"data": {"a b": "c", "d": "e"}, "binaryData": {"d": ""}})),
            &[
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' \
                 (e.g. 'key.name', or 'KEY_NAME', or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                "data[d]: Invalid value: \"d\": duplicate of key present in binaryData",
            ],
        ),
        (
            config_map(json!({"data": {"a": "x".repeat((1 << 20) + 1)}})),
            &[": Too long: may not be more than 1048576 bytes"],
        ),
        (
            secret(json!({"type": "kubernetes.io/tls"})),
            &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
        ),
        (
            secret(json!({"type": "kubernetes.io/dockerconfigjson"})),
            &["data[.dockerconfigjson]: Required value"],
        ),
        (
            secret(
                json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e3NlY3JldA=="}}),
            ),
            &[
                "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": not valid JSON at line 1 column 2",
            ],
        ),
        (
            secret(json!({"type": "kubernetes.io/basic-auth"})),
            &["data[username]: Required value", "data[password]: Required value"],
        ),
        (secret(json!({"type": "kubernetes.io/ssh-auth"})), &["data[ssh-privatekey]: Required value"]),
    ]);
}
