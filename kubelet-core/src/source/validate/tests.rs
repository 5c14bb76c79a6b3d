//! What an API server says to each mistake.

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
fn containers_are_checked() {
    check([
        (spec(json!({"containers": []})), &["spec.containers: Required value"][..]),
        (
            spec(json!({"containers": [{}]})),
            &["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
        ),
        (
            spec(json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": " i"}]})),
            &[
                "spec.containers[1].image: Invalid value: \" i\": must not have leading or trailing whitespace",
                "spec.containers[1].name: Duplicate value: \"a\"",
            ],
        ),
        (
            container(json!({"imagePullPolicy": "Sometimes", "terminationMessagePolicy": "x"})),
            &[
                "spec.containers[0].terminationMessagePolicy: Unsupported value: \"x\": supported values: \"File\", \
                 \"FallbackToLogsOnError\"",
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                 \"IfNotPresent\", \"Never\"",
            ],
        ),
        (
            container(json!({"ports": [
                {"containerPort": 0}, {"containerPort": 70000, "hostPort": -1, "protocol": "ICMP"},
                {"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}, {"containerPort": 3, "name": "--1"},
            ]})),
            &[
                "spec.containers[0].ports[0].containerPort: Required value",
                "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[1].hostPort: Invalid value: -1: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "spec.containers[0].ports[3].name: Duplicate value: \"a\"",
                "spec.containers[0].ports[4].name: Invalid value: \"--1\": must contain at least one letter (a-z)",
                "spec.containers[0].ports[4].name: Invalid value: \"--1\": must not contain consecutive hyphens",
                "spec.containers[0].ports[4].name: Invalid value: \"--1\": must not begin or end with a hyphen",
            ],
        ),
        (
            spec(json!({"containers": [
                {"name": "a", "image": "i", "ports": [{"containerPort": 1, "hostPort": 80}]},
                {"name": "b", "image": "i", "ports": [{"containerPort": 2, "hostPort": 80}]},
            ]})),
            &["spec.containers[1].ports[0].hostPort: Duplicate value: \"TCP//80\""],
        ),
        (
            spec(json!({"hostNetwork": true,
                "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 1, "hostPort": 80}]}]})),
            &[
                "spec.containers[0].ports[0].hostPort: Invalid value: 80: must match `containerPort` when `hostNetwork` is true",
            ],
        ),
        (
            container(json!({"restartPolicy": "Sometimes"})),
            &[
                "spec.containers[0].restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \
               \"OnFailure\"",
            ],
        ),
        (
            container(json!({"restartPolicyRules": [{"action": "Stop"}]})),
            &[
                "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
                "spec.containers[0].restartPolicyRules[0].action: Unsupported value: \"Stop\"",
                "spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified",
            ],
        ),
        (
            spec(json!({"ephemeralContainers": [{"name": "e", "image": "i"}]})),
            &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
        ),
    ]);
}

#[test]
fn init_containers_are_checked() {
    let probe = json!({"exec": {"command": ["x"]}});
    check([(
        spec(json!({"initContainers": [
            {"name": "c", "image": "i", "lifecycle": {}, "readinessProbe": probe, "restartPolicy": "Never"},
            {"name": "s", "image": "i", "restartPolicy": "Always", "readinessProbe": {}},
        ]})),
        &[
            "spec.initContainers[0].name: Duplicate value: \"c\"",
            "spec.initContainers[0].lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always",
            "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            "spec.initContainers[1].readinessProbe: Required value: must specify a handler type",
        ][..],
    )]);
}

#[test]
fn environment_is_checked() {
    let env = |value: Value| container(json!({"env": [{"name": "A", "valueFrom": value}]}));
    check([
        (
            container(
                json!({"env": [{"value": "x"}, {"name": "A=B"}], "envFrom": [{}, {"prefix": "=", "secretRef": {}}]}),
            ),
            &[
                "spec.containers[0].env[0].name: Required value",
                "spec.containers[0].env[1].name: Invalid value: \"A=B\": a valid environment variable name must consist only of \
                 printable ASCII characters other than '='",
                "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
                "spec.containers[0].envFrom[1].prefix: Invalid value: \"=\"",
                "spec.containers[0].envFrom[1].secretRef.name: Required value",
            ][..],
        ),
        (
            env(json!({})),
            &["spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`"],
        ),
        (
            container(
                json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            ),
            &[
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ],
        ),
        (
            env(json!({"fieldRef": {"fieldPath": "status.phase"}})),
            &[
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \
               \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \
               \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
            ],
        ),
        (
            env(json!({"fieldRef": {"fieldPath": "spec.nothing"}})),
            &[
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.nothing\": error converting \
               fieldPath: field label not supported: spec.nothing",
            ],
        ),
        (
            env(json!({"resourceFieldRef": {"resource": "limits.disk"}})),
            &[
                "spec.containers[0].env[0].valueFrom.resourceFieldRef.resource: Unsupported value: \"limits.disk\"",
            ],
        ),
        (
            env(json!({"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}})),
            &[
                "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's \
               values 1m and 1 are supported with the cpu resource",
            ],
        ),
        (
            env(json!({"configMapKeyRef": {"name": "m", "key": ".."}, "secretKeyRef": {"name": "s"}})),
            &[
                "spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Invalid value: \"..\": must not be '..'",
                "spec.containers[0].env[0].valueFrom.secretKeyRef.key: Required value",
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a time",
            ],
        ),
        (
            env(json!({"fileKeyRef": {"volumeName": "none", "path": "../x", "key": "K"}})),
            &[
                "spec.containers[0].env[0].valueFrom.fileKeyRef.path: Invalid value: \"../x\": must not contain '..'",
                "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Not found: \"none\"",
            ],
        ),
    ]);
}

#[test]
fn probes_and_hooks_are_checked() {
    check([
        (
            container(
                json!({"livenessProbe": {"httpGet": {"port": 0, "scheme": "FTP", "httpHeaders": [{"name": "a b"}]},
                "successThreshold": 2, "periodSeconds": -1}}),
            ),
            &[
                "spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.containers[0].livenessProbe.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"",
                "spec.containers[0].livenessProbe.httpGet.httpHeaders: Invalid value: \"a b\": a valid HTTP header must",
                "spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ][..],
        ),
        (
            container(json!({"readinessProbe": {"exec": {"command": []}, "tcpSocket": {"port": 1},
                "terminationGracePeriodSeconds": 5}})),
            &[
                "spec.containers[0].readinessProbe.exec.command: Required value",
                "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
                "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
            ],
        ),
        (
            container(
                json!({"lifecycle": {"postStart": {}, "preStop": {"sleep": {"seconds": 31}}, "stopSignal": "SIGTERM"}}),
            ),
            &[
                "spec.containers[0].lifecycle.postStart: Required value: must specify a handler type",
                "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than \
                 terminationGracePeriodSeconds (30)",
                "spec.containers[0].lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`",
            ],
        ),
    ]);
    let signal = |name: &str| {
        let container = json!({"name": "c", "image": "i", "lifecycle": {"stopSignal": name}});
        spec(json!({"os": {"name": "linux"}, "containers": [container]}))
    };
    check([
        (signal("SIGRTMIN+3"), &[][..]),
        (
            signal("TERM"),
            &[
                "spec.containers[0].lifecycle.stopSignal: Unsupported value: \"TERM\": supported values: \"SIGABRT\"",
            ],
        ),
    ]);
}

#[test]
fn volumes_are_checked() {
    check([
        (
            spec(json!({"volumes": [{"name": "a"}, {"name": "a"}, {}, {"name": "A"}]})),
            &[
                "spec.volumes[1].name: Duplicate value: \"a\"",
                "spec.volumes[2].name: Required value",
                "spec.volumes[3].name: Invalid value: \"A\": a lowercase RFC 1123 label must",
            ][..],
        ),
        (
            volume(json!({"emptyDir": {"sizeLimit": "-1"}, "hostPath": {"path": "/x"}, "nfs": {}})),
            &[
                "spec.volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[0].nfs: Forbidden: may not specify more than 1 volume type",
            ],
        ),
        (
            volume(json!({"nfs": {"server": "s"}})),
            &["spec.volumes[0].nfs: Forbidden: this node cannot mount volumes of this type"],
        ),
        (volume(json!({"hostPath": {"path": ""}})), &["spec.volumes[0].hostPath.path: Required value"]),
        (
            volume(json!({"hostPath": {"path": "/a/../b", "type": "Pipe"}})),
            &[
                "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
                "spec.volumes[0].hostPath.type: Unsupported value: \"Pipe\": supported values: \"\", \"BlockDevice\"",
            ],
        ),
        (
            volume(
                json!({"secret": {"defaultMode": 1000, "items": [{"key": "", "path": "/a"}, {"key": "k", "path": "..x", "mode": -1}]}}),
            ),
            &[
                "spec.volumes[0].secret.secretName: Required value",
                "spec.volumes[0].secret.defaultMode: Invalid value: 1000: must be a number between 0 and 0777 (octal), both inclusive",
                "spec.volumes[0].secret.items[0].key: Required value",
                "spec.volumes[0].secret.items[0].path: Invalid value: \"/a\": must be a relative path",
                "spec.volumes[0].secret.items[1].path: Invalid value: \"..x\": must not start with '..'",
                "spec.volumes[0].secret.items[1].mode: Invalid value: -1: must be a number between 0 and 0777",
            ],
        ),
        (
            volume(
                json!({"downwardAPI": {"items": [{"path": "a"}, {"path": "b", "resourceFieldRef": {"resource": "limits.cpu"}},
                {"path": "c", "fieldRef": {"fieldPath": "status.podIP"}}]}}),
            ),
            &[
                "spec.volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
                "spec.volumes[0].downwardAPI.resourceFieldRef.containerName: Required value",
                "spec.volumes[0].downwardAPI.fieldRef.fieldPath: Unsupported value: \"status.podIP\": supported values: \
                 \"metadata.annotations\", \"metadata.labels\"",
            ],
        ),
        (
            volume(json!({"projected": {"sources": [
                {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
                {"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}, "downwardAPI": {}},
                {"serviceAccountToken": {"path": "t", "expirationSeconds": 5}},
            ]}})),
            &[
                "spec.volumes[0].projected: Invalid value: \"s\": conflicting duplicate paths",
                "spec.volumes[0].projected.sources[1]: Forbidden: may not specify more than 1 volume type per source",
                "spec.volumes[0].projected.sources[2].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a \
                 duration less than 10 minutes",
                "spec.volumes[0].projected.sources[2].serviceAccountToken: Forbidden: must not be specified when \
                 serviceAccountName is not set",
            ],
        ),
        (volume(json!({"image": {}})), &["spec.volumes[0].image.reference: Required value"]),
        (
            volume(json!({"persistentVolumeClaim": {}})),
            &["spec.volumes[0].persistentVolumeClaim.claimName: Required value"],
        ),
    ]);
}

#[test]
fn mounts_are_checked() {
    check([
        (
            container(json!({"volumeMounts": [
                {"name": "none", "mountPath": "/a"}, {"name": "v", "mountPath": "/a", "subPath": "../x"}, {"name": "v"},
                {"name": "v", "mountPath": "/b", "subPath": "a", "subPathExpr": "/b"},
            ]})),
            &[
                "spec.containers[0].volumeMounts[0].name: Not found: \"none\"",
                "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
                "spec.containers[0].volumeMounts.subPath: Invalid value: \"../x\": must not contain '..'",
                "spec.containers[0].volumeMounts[2].mountPath: Required value",
                "spec.containers[0].volumeMounts[3].subPathExpr: Invalid value: \"/b\": subPathExpr and subPath are mutually exclusive",
                "spec.containers[0].volumeMounts.subPathExpr: Invalid value: \"/b\": must be a relative path",
            ][..],
        ),
        (
            container(json!({"volumeMounts": [
                {"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional"},
                {"name": "v", "mountPath": "/b", "mountPropagation": "Up", "recursiveReadOnly": "Enabled"},
                {"name": "v", "mountPath": "/c", "recursiveReadOnly": "Maybe"},
            ]})),
            &[
                "spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to \
                 privileged containers",
                "spec.containers[0].volumeMounts.mountPropagation: Unsupported value: \"Up\": supported values: \"Bidirectional\", \
                 \"HostToContainer\", \"None\"",
                "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
                "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None",
                "spec.containers[0].volumeMounts.recursiveReadOnly: Unsupported value: \"Maybe\": supported values: \"Disabled\", \
                 \"Enabled\", \"IfPossible\"",
            ],
        ),
        (
            container(json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/../x"}]})),
            &[
                "spec.containers[0].volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of \
                 PersistentVolumeClaim or Ephemeral for block mode",
                "spec.containers[0].volumeDevices[0].devicePath: Invalid value: \"/dev/../x\": can not contain backsteps ('..')",
            ],
        ),
    ]);
}

#[test]
fn resources_are_checked() {
    let resources = |value: Value| container(json!({"resources": value}));
    check([
        (
            resources(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2", "memory": "-1"}})),
            &[
                "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ][..],
        ),
        (
            resources(
                json!({"limits": {"disk": "1", "pods": "1", "a.b/c": "1500m", "hugepages-2Mi": "3Mi"}}),
            ),
            &[
                "spec.containers[0].resources.limits[a.b/c]: Invalid value: \"1500m\": must be an integer",
                "spec.containers[0].resources.limits[disk]: Invalid value: \"disk\": must be a standard resource type or fully qualified",
                "spec.containers[0].resources.limits[disk]: Invalid value: \"disk\": must be a standard resource for containers",
                "spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of \
                 hugepages-2Mi",
                "spec.containers[0].resources.limits[pods]: Invalid value: \"pods\": must be a standard resource for containers",
                "spec.containers[0].resources.requests[a.b/c]: Invalid value: \"1500m\"",
                "spec.containers[0].resources.requests[disk]",
                "spec.containers[0].resources.requests[disk]",
                "spec.containers[0].resources.requests[hugepages-2Mi]",
                "spec.containers[0].resources.requests[pods]",
                "spec.containers[0].resources: Forbidden: HugePages require cpu or memory",
            ],
        ),
        (
            resources(json!({"requests": {"a.b/c": "1"}})),
            &[
                "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
            ],
        ),
        (
            resources(json!({"limits": {"a.b/c": "2"}, "requests": {"a.b/c": "1"}})),
            &[
                "spec.containers[0].resources.requests: Invalid value: \"1\": must be equal to a.b/c limit of 2",
            ],
        ),
        (
            spec(
                json!({"resources": {"limits": {"memory": "1Gi", "disk": "1", "ephemeral-storage": "1"}, "requests": {"cpu": "1"}},
                "containers": [{"name": "c", "image": "i", "resources": {"limits": {"memory": "2Gi"}, "requests": {"cpu": "2"}}}]}),
            ),
            &[
                "spec.resources.limits[disk]: Invalid value: \"disk\": must be a standard resource type or fully qualified",
                "spec.resources.limits[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\"",
                "spec.resources.requests: Invalid value: \"2147483648\": must be less than or equal to memory limit of 1Gi",
                "spec.resources.containers[0][memory].limits: Invalid value: \"2Gi\": must be less than or equal to pod limits of 1Gi",
                "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 2",
            ],
        ),
    ]);
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
