//! Containers, their environment, probes and hooks.

use serde_json::{Value, json};

use super::{check, container, spec};

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
