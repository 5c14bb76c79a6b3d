//! The pod network by executed plugins, with the default bridge.
//!
//! Each test runs once more inside a network namespace of its own, so that bridge, routes and firewall rules
//! are nobody else's and vanish with it.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod service_support;

use std::fs;
use std::process::Command;

use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use coracle_runtime::BridgeNetwork;
use service_support::{Node, namespaces, script_container, until};

/// Runs the test in a fresh network namespace; answers whether this is that run.
fn isolated(test: &str) -> bool {
    if std::env::var_os("CORACLE_TEST_NETNS").is_some() {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .arg("--net")
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env("CORACLE_TEST_NETNS", "1")
        .env("CORACLE_SHIM", service_support::shim())
        .status()
        .unwrap();
    assert!(status.success(), "the test failed in its network namespace");
    false
}

async fn node() -> Node {
    Node::with(|config| {
        config.cni.default =
            Some(BridgeNetwork { bridge: "cortest0".into(), subnet: "10.199.7.0/24".into() });
    })
    .await
}

fn own_network(node: &Node, name: &str) -> PodSandboxConfig {
    let mut pod = node.sandbox(name);
    pod.hostname = format!("{name}-host");
    let context = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options = Some(namespaces(NamespaceMode::Pod, NamespaceMode::Container));
    pod
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn pods_reach_one_another_and_the_node_by_host_port() {
    if !isolated("pods_reach_one_another_and_the_node_by_host_port") {
        return;
    }
    let mut node = node().await;
    let mut one = own_network(&node, "one");
    one.port_mappings = vec![PortMapping { container_port: 8080, host_port: 18080, ..Default::default() }];
    one.linux.as_mut().unwrap().sysctls =
        [("net.ipv4.ip_unprivileged_port_start".into(), "99".into())].into();
    let two = own_network(&node, "two");
    let (first, second) = (node.run_sandbox(&one).await, node.run_sandbox(&two).await);
    let ip = node.sandbox_status(&first).await.network.unwrap().ip;
    let other = node.sandbox_status(&second).await.network.unwrap().ip;
    assert!(ip.starts_with("10.199.7.") && other.starts_with("10.199.7.") && ip != other, "{ip} {other}");
    let serve = "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
                 while :; do echo served | nc -l -p 8080; done";
    let server = node.run(&first, &one, "server", serve).await;
    let log = node.log_has(&server, "F 99").await;
    assert!(log.contains("one-host"), "{log}");
    let client = node.run(&second, &two, "client", "sleep 1000").await;
    let ping = node.exec(&client, &["ping", "-c", "1", "-W", "5", &ip]).await;
    assert_eq!(ping.exit_code, 0, "{}", String::from_utf8_lossy(&ping.stdout));
    until("the server by the node's port", || async {
        output("busybox", &["nc", "-w", "2", "10.199.7.1", "18080"]).contains("served").then_some(())
    })
    .await;
    let request = PodSandboxStatsRequest { pod_sandbox_id: second.clone() };
    let stats = node.runtime().pod_sandbox_stats(request).await.unwrap().stats.unwrap();
    let eth0 = stats.linux.unwrap().network.unwrap().default_interface.unwrap();
    assert!(eth0.name == "eth0" && eth0.rx_bytes.unwrap().value > 0);

    // A teardown by the next runtime finds all it needs in the records.
    node.restart().await;
    assert_eq!(node.sandbox_status(&first).await.network.unwrap().ip, ip);
    node.remove_sandbox(&first).await;
    node.remove_sandbox(&second).await;
    until("the veth pairs to vanish", || async {
        (!output("ip", &["-o", "link"]).contains("veth")).then_some(())
    })
    .await;
    let rules = output("iptables-save", &[]);
    assert!(!rules.contains("CNI-DN-") && !rules.contains(&ip), "{rules}");
    let leases = service_support::entries(&node.state().join("cni/networks/coracle"));
    assert!(!leases.iter().any(|lease| lease.ends_with(&ip)), "{leases:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_failed_network_leaves_nothing_and_status_names_what_is_missing() {
    if !isolated("a_failed_network_leaves_nothing_and_status_names_what_is_missing") {
        return;
    }
    let node = node().await;
    let conf_dir = node.config.cni.conf_dir.clone();
    fs::create_dir_all(&conf_dir).unwrap();
    let network = async || {
        let status = node.runtime().status(StatusRequest::default()).await.unwrap().status.unwrap();
        status.conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap()
    };
    assert!(network().await.status);
    let broken =
        serde_json::json!({"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "no-such-plugin"}]});
    fs::write(conf_dir.join("10-x.conflist"), broken.to_string()).unwrap();
    let condition = network().await;
    assert!(!condition.status && condition.message.contains("no-such-plugin"), "{}", condition.message);

    // The bridge comes up, then the second plugin fails: the pod's veth and address must go again.
    let fails = node.dir.path().join("bin");
    fs::create_dir(&fails).unwrap();
    let bridge = serde_json::json!({
        "type": "bridge", "bridge": "cortest0", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.199.7.0/24", "dataDir": node.dir.path().join("leases")},
    });
    let list = serde_json::json!({"cniVersion": "1.0.0", "name": "x", "plugins": [bridge, {"type": "bandwidth", "ingressRate": "wrong"}]});
    fs::write(conf_dir.join("10-x.conflist"), list.to_string()).unwrap();
    let pod = own_network(&node, "fails");
    let request = RunPodSandboxRequest { config: Some(pod), runtime_handler: String::new() };
    let error = node.runtime().run_pod_sandbox(request).await.unwrap_err();
    assert!(error.message().contains("network plugin bandwidth ADD"), "{error}");
    // DEL of the plugin that cannot read its configuration fails as well, and its record stays for the next try.
    fs::remove_file(conf_dir.join("10-x.conflist")).unwrap();
    let veths = output("ip", &["-o", "link"]);
    assert!(!veths.contains("veth"), "{veths}");
    let pod = own_network(&node, "works");
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.create(&sandbox, &pod, script_container(&pod, "main", "ip -o addr")).await;
    node.start_container(&id).await;
    assert!(node.log_has(&id, "10.199.7.").await.contains("eth0"));
    node.remove_sandbox(&sandbox).await;
    for path in service_support::entries(&node.state().join("cni/results")) {
        fs::remove_file(path).unwrap();
    }
    // Without that record there is nothing to undo, and the pod that failed can be removed as any other.
    let listed = node.runtime().list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    for failed in listed.items {
        node.remove_sandbox(&failed.id).await;
    }
    node.finish().await;
}
