//! The reference node: kubelet, containerd and runc as they ship, joined by token and TLS bootstrap.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Cluster;
use super::node::{Node, write};
use crate::containerd::{Release, Settings};

/// Settings of the kernel that a kubelet sets for the whole machine, each with the value it wants.
const KERNEL: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Starts containerd and the kubelet; the node registers itself.
pub(super) fn start(cluster: &Cluster, node: &Node) -> Result<()> {
    start_containerd(cluster, node)?;
    start_kubelet(cluster, node, "unix:///run/containerd/containerd.sock")
}

/// Starts a kubelet on a runtime that answers at `endpoint`.
pub(super) fn start_kubelet(cluster: &Cluster, node: &Node, endpoint: &str) -> Result<()> {
    let kubelet = cluster.peers.program("kubelet")?;
    write(node, "kubelet.yaml", &kubelet_config(cluster, endpoint))?;
    std::fs::create_dir_all(node.files().join("manifests")).context("cannot create the manifests' folder")?;
    let script = shield_kernel_settings(node)?;
    let arguments = [
        "--mount".to_owned(),
        "--propagation=unchanged".to_owned(),
        "bash".to_owned(),
        script.to_owned(),
        kubelet.display().to_string(),
        "--config=/var/lib/node/kubelet.yaml".to_owned(),
        "--bootstrap-kubeconfig=/var/lib/node/bootstrap.kubeconfig".to_owned(),
        "--kubeconfig=/var/lib/kubelet/kubeconfig".to_owned(),
        format!("--hostname-override={}", node.machine.name),
        format!("--node-ip={}", cluster.network.node(node.index)),
    ];
    node.machine.start_service("kubelet", Path::new("unshare"), &arguments)
}

/// Starts containerd and waits until it answers.
pub(super) fn start_containerd(cluster: &Cluster, node: &Node) -> Result<()> {
    let containerd = cluster.peers.program("containerd")?;
    let folder = containerd.parent().context("a program lies in a folder")?;
    write(node, "containerd.toml", &containerd_config(folder))?;
    let mirror = format!(
        "[host.\"http://{}:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
        cluster.network.control_plane()
    );
    write(node, "certs.d/_default/hosts.toml", &mirror)?;

    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
    let arguments =
        [path, containerd.display().to_string(), "--config=/var/lib/node/containerd.toml".to_owned()];
    node.machine.start_service("containerd", Path::new("env"), &arguments)?;
    let crictl = [folder.join("ctr").display().to_string(), "plugins".to_owned(), "ls".to_owned()];
    let words: Vec<&str> = crictl.iter().map(String::as_str).collect();
    cluster
        .wait(
            "containerd answers",
            Duration::from_secs(60),
            |_| {
                if node.machine.pid_of("containerd").is_none() {
                    bail!("containerd has ended");
                }
                Ok(node.machine.run(&words).is_ok())
            },
            || node.machine.last_words("containerd", 20),
        )
        .map(drop)
}

/// Writes a script that starts a program with files over the kernel's settings, holding what a kubelet wants to find
/// there, so that it leaves the machine's alone. Only the kubelet sees them: nobody can mount a /proc for a pod's user
/// namespace where one that is partly hidden is all there is.
fn shield_kernel_settings(node: &Node) -> Result<&'static str> {
    let mut script = "set -e\nmount --make-rprivate /proc\n".to_owned();
    for (name, value) in KERNEL {
        let file = format!("kernel/{}", name.replace('/', "-"));
        write(node, &file, &format!("{value}\n"))?;
        let place = format!("/proc/sys/{name}");
        if Path::new(&place).exists() {
            script.push_str(&format!("mount --bind /var/lib/node/{file} {place}\n"));
        }
    }
    write(node, "shielded.sh", &(script + "exec \"$@\"\n"))?;
    Ok("/var/lib/node/shielded.sh")
}

/// containerd's settings, with a registry for everything in `/var/lib/node/certs.d`.
pub(crate) fn containerd_config(programs: &Path) -> String {
    let settings = Settings {
        release: Release::Newest,
        root: Path::new("/var/lib/containerd"),
        state: Path::new("/run/containerd"),
        socket: Path::new("/run/containerd/containerd.sock"),
        sandbox: "registry.k8s.io/pause:3.10.2",
        plugins: programs,
        networks: Path::new("/var/lib/node/net.d"),
        runc: Some(&programs.join("runc")),
        handlers: &[],
    };
    settings.text()
        + "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"/var/lib/node/certs.d\"\n"
}

fn kubelet_config(cluster: &Cluster, endpoint: &str) -> String {
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: /var/lib/node/ca.crt}}
authorization: {{mode: Webhook}}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDNS: [{}]
clusterDomain: cluster.local
containerRuntimeEndpoint: {endpoint}
resolvConf: /var/lib/node/resolv.conf
rotateCertificates: true
serverTLSBootstrap: true
staticPodPath: /var/lib/node/manifests
# The disk is the developer's own, and may be nearly full.
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}}
"#,
        cluster.network.dns()
    )
}
