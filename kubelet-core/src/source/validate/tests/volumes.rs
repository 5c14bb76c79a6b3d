//! Volumes, mounts and resources.

use serde_json::{Value, json};

use super::{check, container, spec, volume};

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
