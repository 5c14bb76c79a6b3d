//! metrics-server in the control plane's machine, so that `kubectl top` and autoscaling work as in a real cluster.
//!
//! It reads every node's kubelet API, whose serving certificate must be signed by the cluster.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::Cluster;

/// Where it listens, beside the API server.
const PORT: u16 = 4443;

/// Starts it and waits until its API answers through the API server.
pub(super) fn start(cluster: &Cluster) -> Result<()> {
    let program = cluster.peers.program("metrics-server")?;
    let admin = cluster.kubeconfig().display().to_string();
    let arguments = [
        format!("--kubeconfig={admin}"),
        format!("--authentication-kubeconfig={admin}"),
        format!("--authorization-kubeconfig={admin}"),
        format!("--kubelet-certificate-authority={}", cluster.authority().display()),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--cert-dir=/run/metrics-server".to_owned(),
        format!("--secure-port={PORT}"),
        "--metric-resolution=10s".to_owned(),
        // Must be less than the resolution.
        "--kubelet-request-timeout=8s".to_owned(),
    ];
    cluster.control_plane.start_service("metrics-server", &program, &arguments)?;
    for (path, object) in objects(cluster) {
        cluster.api.create(path, &object)?;
    }
    let shown = || cluster.control_plane.last_words("metrics-server", 20);
    let path = "/apis/metrics.k8s.io/v1beta1";
    cluster
        .wait("metrics-server answers", Duration::from_secs(60), |api| Ok(api.get(path).is_ok()), shown)
        .map(drop)
}

fn objects(cluster: &Cluster) -> [(&'static str, serde_json::Value); 3] {
    let name = json!({"name": "metrics-server", "namespace": "kube-system"});
    [
        (
            "/api/v1/namespaces/kube-system/services",
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": name,
                "spec": {"ports": [{"name": "https", "port": 443, "targetPort": PORT}]},
            }),
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices",
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {
                    "name": "metrics-server", "namespace": "kube-system",
                    "labels": {"kubernetes.io/service-name": "metrics-server"},
                },
                "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
                "endpoints": [{"addresses": [cluster.network.control_plane()], "conditions": {"ready": true}}],
            }),
        ),
        (
            "/apis/apiregistration.k8s.io/v1/apiservices",
            json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": "v1beta1.metrics.k8s.io"},
                "spec": {
                    "group": "metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
                    "groupPriorityMinimum": 100, "versionPriority": 100,
                    "service": {"name": "metrics-server", "namespace": "kube-system", "port": 443},
                },
            }),
        ),
    ]
}
