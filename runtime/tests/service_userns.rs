//! Pods with a user namespace: whose root is nobody on the node, and whose images and volumes look as ever.
//!
//! Each test runs once more inside a network namespace of its own, as those of the pod network do.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod service_support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::process::Command;

use coracle_cri::v1::*;
use coracle_cri::{Code, RuntimeService as _};
use coracle_runtime::BridgeNetwork;
use service_support::{Node, script_container};

/// The node's user that is root of the pods.
const ROOT: u32 = 200_000;

/// Runs the test in a fresh network namespace; answers whether this is that run.
fn isolated(test: &str) -> bool {
    if std::env::var_os("CORACLE_TEST_NETNS").is_some() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return true;
    }
    let status = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("CORACLE_TEST_NETNS", "1")
        .env("CORACLE_SHIM", service_support::shim())
        .status()
        .unwrap();
    assert!(status.success(), "the test failed in its network namespace");
    false
}

fn mappings() -> Vec<IdMapping> {
    vec![IdMapping { host_id: ROOT, container_id: 0, length: 65_536 }]
}

/// A pod with a user namespace and a network of its own.
fn pod(node: &Node, name: &str, pid: NamespaceMode) -> PodSandboxConfig {
    let mut pod = node.sandbox(name);
    let context = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let user = UserNamespace { mode: NamespaceMode::Pod.into(), uids: mappings(), gids: mappings() };
    context.namespace_options = Some(NamespaceOption {
        network: NamespaceMode::Pod.into(),
        ipc: NamespaceMode::Pod.into(),
        pid: pid.into(),
        userns_options: Some(user),
        ..Default::default()
    });
    pod
}

async fn node() -> Node {
    let node = Node::with(|config| {
        config.cni.default =
            Some(BridgeNetwork { bridge: "cortest2".into(), subnet: "10.199.9.0/24".into() });
    })
    .await;
    // A pod's root is nobody here, and must get through to its files as on a real node.
    fs::set_permissions(node.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    node
}

#[tokio::test]
async fn root_of_a_pod_is_nobody_on_the_node() {
    if !isolated("root_of_a_pod_is_nobody_on_the_node") {
        return;
    }
    let mut node = node().await;
    for (name, pid) in [("own", NamespaceMode::Container), ("shared", NamespaceMode::Pod)] {
        let pod = pod(&node, name, pid);
        let sandbox = node.run_sandbox(&pod).await;
        // Only the node's root gets here; the volume is given by the maker.
        let private = node.dir.path().join(format!("private-{name}"));
        fs::create_dir(&private).unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
        let volume = private.join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("of-user"), "content").unwrap();
        chown(volume.join("of-user"), Some(1000), Some(1000)).unwrap();
        let script = "cat /proc/self/uid_map; id -u; ls -ln /bin/busybox /data/of-user /etc/hosts | tr -s ' ' | \
                      while read _ _ uid _; do echo owner $uid; done; cat /data/of-user; echo; touch /made /data/made; \
                      echo to-stdout > /dev/stdout; echo x > /sys/kernel/mm/ksm/run; echo done; sleep 1000";
        let mut config = script_container(&pod, "main", script);
        config.mounts = vec![Mount {
            container_path: "/data".into(),
            host_path: volume.to_string_lossy().into_owned(),
            uid_mappings: mappings(),
            gid_mappings: mappings(),
            ..Default::default()
        }];
        let id = node.create(&sandbox, &pod, config).await;
        node.start_container(&id).await;
        let log = node.log_has(&id, "F done").await;
        for expected in ["200000 ", "F 0\n", "owner 0", "owner 1000", "F content", "F to-stdout"] {
            assert!(log.contains(expected), "{name}: no {expected:?} in {log}");
        }
        let layer = node.config.root.join("containers").join(&id).join("upper");
        assert_eq!(fs::metadata(layer.join("made")).unwrap().uid(), ROOT);
        assert_eq!(fs::metadata(volume.join("made")).unwrap().uid(), 0);
        let mapped = node.exec(&id, &["cat", "/proc/self/uid_map"]).await;
        assert!(String::from_utf8_lossy(&mapped.stdout).contains("200000"), "{mapped:?}");
        // Its processes are that user's.
        let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let status = node.runtime().container_status(request).await.unwrap();
        let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
        let process = fs::metadata(format!("/proc/{}", info["pid"])).unwrap();
        assert_eq!(process.uid(), ROOT);
        node.restart().await;
        let again = node.exec(&id, &["sh", "-c", "id -u; touch /again"]).await;
        assert_eq!((again.exit_code, again.stdout.as_slice()), (0, b"0\n".as_slice()));
        node.remove_sandbox(&sandbox).await;
        fs::remove_dir_all(private).unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn mappings_that_cannot_be_are_refused() {
    let node = Node::start().await;
    let refused = async |change: &dyn Fn(&mut NamespaceOption)| {
        let mut pod = pod(&node, "refused", NamespaceMode::Container);
        change(
            pod.linux
                .as_mut()
                .unwrap()
                .security_context
                .as_mut()
                .unwrap()
                .namespace_options
                .as_mut()
                .unwrap(),
        );
        let request = RunPodSandboxRequest { config: Some(pod), runtime_handler: String::new() };
        let error = node.runtime().run_pod_sandbox(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    };
    refused(&|options| options.network = NamespaceMode::Node.into()).await;
    refused(&|options| options.userns_options.as_mut().unwrap().uids.push(mappings()[0])).await;
    refused(&|options| options.userns_options.as_mut().unwrap().gids.clear()).await;
    refused(&|options| options.userns_options.as_mut().unwrap().uids[0].container_id = 1).await;
    refused(&|options| options.userns_options.as_mut().unwrap().mode = NamespaceMode::Target.into()).await;
    node.finish().await;
}
