//! From desired to running and gone.

use coracle_cri::testing::{Method, Script};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_removed_without_a_trace() {
    let bench = Bench::with_pods([pod("web")]).await;
    let status = bench.until("web", is_running).await;
    assert_eq!(status.qos_class, "BestEffort");
    assert_eq!(status.host_ip, "192.0.2.7");
    assert!(status.pod_ip.starts_with("10.244."), "{}", status.pod_ip);
    let main = of(&status, "main");
    assert!(main.ready && main.started == Some(true) && main.restart_count == 0);
    assert!(main.state.running.is_some() && main.container_id.contains("://"));
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&status, kind), "True", "{kind}");
    }
    assert_eq!(bench.events(), ["Created: Container created", "Started: Container started"]);
    let path = &bench.kubelet.events().snapshot()[0].field_path;
    assert_eq!(path, "spec.containers{main}");

    bench.desire([]);
    bench.until_gone("web").await;
    assert!(bench.fake.containers().is_empty() && bench.fake.sandboxes().is_empty());
    assert_eq!(*bench.disk.torn_down.lock().unwrap(), ["uid-web"]);
    assert_eq!(bench.events().last().unwrap(), "Killing: Stopping container main");
}

#[tokio::test(start_paused = true)]
async fn statuses_follow_the_nodes_addresses() {
    let mut host = pod("host");
    host.spec.host_network = true;
    let bench = Bench::with_pods([pod("web"), host]).await;
    let before = bench.until("web", is_running).await;
    assert_eq!(bench.until("host", is_running).await.pod_ip, "192.0.2.7");
    bench.ips.set(["192.0.2.8".parse().unwrap(), "2001:db8::8".parse().unwrap()]);
    let web = bench.until("web", |status| status.host_ip == "192.0.2.8").await;
    assert_eq!(web.pod_ips, before.pod_ips);
    let host = bench.until("host", |status| status.host_ip == "192.0.2.8").await;
    assert_eq!((host.pod_ip.as_str(), host.pod_ips.len(), host.host_ips.len()), ("192.0.2.8", 2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_idle_pod_costs_nothing() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    // The first listing after a change makes the worker look once more.
    tokio::time::sleep(Duration::from_secs(65)).await;
    bench.fake.clear_calls();
    tokio::time::sleep(Duration::from_secs(590)).await;
    let calls: Vec<Method> = bench.fake.calls().iter().map(|call| call.method).collect();
    assert!(calls.iter().all(|m| matches!(m, Method::ListPodSandbox | Method::ListContainers)), "{calls:?}");
    assert!(calls.len() <= 20, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_before_the_others() {
    let mut web = pod("web");
    web.spec.init_containers = vec![container("first"), sidecar("proxy"), container("second")];
    let bench = Bench::new().await;
    bench.fake.script_container("first", [Script::exits_after(Duration::from_secs(5), 0)]);
    bench.fake.script_container("second", [Script::exits_after(Duration::from_secs(5), 0)]);
    bench.desire([web]);
    let status = bench.until("web", |s| s.phase == "Pending" && !s.init_container_statuses.is_empty()).await;
    assert_eq!(waiting_reason(&status, "main"), "PodInitializing");
    let text = "False|ContainersNotInitialized|containers with incomplete status: [first proxy second]";
    assert_eq!(condition(&status, "Initialized"), text);
    let status = bench.until("web", is_running).await;
    assert_eq!(condition(&status, "Initialized"), "True");
    assert_eq!(of(&status, "first").state.terminated.as_ref().unwrap().reason, "Completed");
    assert!(of(&status, "proxy").state.running.is_some());
    let starts = bench.fake.calls().into_iter().filter(|c| c.method == Method::CreateContainer);
    let starts: Vec<String> = starts.map(|call| call.name).collect();
    assert_eq!(starts, ["first", "proxy", "second", "main"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_on_the_hosts_network_has_its_address() {
    let mut web = pod("web");
    web.spec.host_network = true;
    let bench = Bench::with_pods([web]).await;
    let status = bench.until("web", is_running).await;
    assert_eq!(status.pod_ip, "192.0.2.7");
    assert_eq!(bench.fake.count(Method::RunPodSandbox), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_pods_start_side_by_side() {
    let bench = Bench::new().await;
    bench.fake.delay(Method::RunPodSandbox, Duration::from_millis(100));
    bench.desire((0..100).map(|n| pod(&format!("web-{n}"))));
    let mut statuses = bench.kubelet.statuses();
    let all = statuses.wait_for(|views| views.len() == 100 && views.values().all(|v| is_running(&v.status)));
    tokio::time::timeout(LONG, all).await.unwrap().unwrap();
    let sandboxes = bench.fake.sandboxes();
    assert_eq!(sandboxes.len(), 100);
    assert_eq!(bench.running("main"), 100);
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_container_is_added_once() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    bench.fake.script_container("debug", [Script::exits_after(Duration::from_secs(5), 1)]);
    let mut changed = pod("web");
    changed.spec.ephemeral_containers =
        vec![Container { target_container_name: "main".into(), ..container("debug") }];
    bench.desire([changed]);
    bench
        .until("web", |s| s.ephemeral_container_statuses.iter().any(|debug| debug.state.terminated.is_some()))
        .await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let made = bench.fake.containers();
    assert_eq!(made.len(), 2);
    let options = made[1].config.linux.clone().unwrap().security_context.unwrap().namespace_options.unwrap();
    assert_eq!(options.pid(), NamespaceMode::Target);
    assert_eq!(options.target_id, made[0].status.id);
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_volume_outgrows_its_limit_is_evicted() {
    let mut web = pod("web");
    let limit = Some("1Mi".parse().unwrap());
    let empty_dir = crate::api::EmptyDirVolumeSource { size_limit: limit, ..Default::default() };
    web.spec.volumes = vec![crate::api::Volume {
        name: "data".into(),
        empty_dir: Some(Box::new(empty_dir)),
        ..Default::default()
    }];
    let bench = Bench::with_pods([web]).await;
    bench.until("web", is_running).await;
    let message = "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". ".to_owned();
    *bench.disk.over_limit.lock().unwrap() = vec![message.clone()];
    let status = bench.until("web", |s| s.phase == "Failed").await;
    assert_eq!((status.reason.as_str(), &status.message), ("Evicted", &message));
    assert!(bench.events().contains(&format!("Evicted: {message}")));
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_container_writes_more_than_its_limit_is_evicted() {
    let mut web = pod("web");
    let limits = &mut web.spec.containers[0].resources.limits;
    limits.insert("ephemeral-storage".to_owned(), "1Mi".parse().unwrap());
    let bench = Bench::with_pods([web]).await;
    let status = bench.until("web", is_running).await;
    let stats = coracle_cri::v1::ContainerStats {
        writable_layer: Some(coracle_cri::v1::FilesystemUsage {
            used_bytes: Some(coracle_cri::v1::UInt64Value { value: 5 << 20 }),
            ..Default::default()
        }),
        ..Default::default()
    };
    bench.fake.set_container_stats(of(&status, "main").bare_id(), stats);
    let message = "Container main exceeded its local ephemeral storage limit \"1Mi\". ".to_owned();
    *bench.disk.over_limit.lock().unwrap() = vec![message.clone()];
    let status = bench.until("web", |s| s.phase == "Failed").await;
    assert_eq!((status.reason.as_str(), &status.message), ("Evicted", &message));
    let told = bench.disk.layers.lock().unwrap().clone();
    assert_eq!((told[0].container.as_str(), told[0].bytes), ("main", 5 << 20));
}
