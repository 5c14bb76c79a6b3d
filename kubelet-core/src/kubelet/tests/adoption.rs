//! Agents that die and come back: what runs is adopted, what nobody wants is ended.

use coracle_cri::testing::{Method, Script};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_adopts_what_runs() {
    let bench = Bench::with_pods([pod("web"), pod("db")]).await;
    bench.until("web", is_running).await;
    let before = bench.until("db", is_running).await;
    let bench = bench.restart().await;
    let after = bench.until("db", is_running).await;
    bench.until("web", is_running).await;
    assert_eq!(of(&before, "main").container_id, of(&after, "main").container_id);
    assert_eq!(after.start_time, before.start_time);
    assert_eq!(bench.fake.count(Method::RunPodSandbox), 2);
    assert_eq!(bench.fake.count(Method::StopContainer), 0);
    // Its end is seen, and counted on.
    bench.fake.exit_container("db/main", 1);
    let status = bench.until("db", |s| of(s, "main").restart_count == 1 && is_running(s)).await;
    assert_eq!(of(&status, "main").last_state.terminated.as_ref().unwrap().exit_code, 1);
}

#[tokio::test(start_paused = true)]
async fn pods_that_nobody_wants_any_more_are_ended_as_they_asked() {
    let mut web = pod("web");
    web.spec.termination_grace_period_seconds = Some(20);
    let hook = r#"{"exec":{"command":["goodbye"]}}"#;
    web.spec.containers[0].lifecycle = Some(Box::new(crate::api::Lifecycle {
        pre_stop: Some(serde_json::from_str(hook).unwrap()),
        ..Default::default()
    }));
    let bench = Bench::new().await;
    bench.fake.script_container("web/main", [Script::runs().ignores_stop_signal()]);
    bench.desire([web, pod("db")]);
    bench.until("web", is_running).await;
    bench.until("db", is_running).await;
    let Bench { fake, disk, images, ips, clock, wall, pods, kubelet } = bench;
    drop(kubelet);
    pods.send_replace(set([pod("db")]));
    let begun = tokio::time::Instant::now();
    let kubelet = start(&fake, &clock, &disk, &images, &ips, pods.subscribe(), PodViews::default()).await;
    let bench = Bench { fake, disk, images, ips, clock, wall, pods, kubelet };
    bench.fake.wait_until(LONG, |fake| fake.sandboxes().len() == 1).await;
    assert_eq!(begun.elapsed().as_secs(), 20);
    assert_eq!(bench.fake.execs().len(), 1);
    assert!(bench.disk.torn_down.lock().unwrap().contains(&"uid-web".to_owned()));
    bench.until("db", is_running).await;
    bench.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_killed_at_any_call_loses_and_doubles_nothing() {
    // The kill comes at the nth call that changes something, for every n of a start and an end.
    for kill_at in 1..9 {
        let bench = Bench::new().await;
        let mut web = pod("web");
        web.spec.init_containers = vec![container("setup")];
        bench.fake.script_container("setup", [Script::exits(0)]);
        bench.fake.delay(Method::StartContainer, Duration::from_millis(10));
        bench.fake.delay(Method::RunPodSandbox, Duration::from_millis(10));
        bench.desire([web]);
        let reached = bench.fake.wait_until(Duration::from_secs(1), |fake| {
            fake.changes().len() >= kill_at || fake.changes().len() >= 5
        });
        reached.await;
        let bench = bench.restart().await;
        bench.until("web", is_running).await;
        assert_eq!(bench.running("main"), 1, "killed at {kill_at}");
        let ready = coracle_cri::v1::PodSandboxState::SandboxReady;
        let serving = bench.fake.sandboxes().iter().filter(|s| s.status.state() == ready).count();
        assert_eq!(serving, 1, "killed at {kill_at}: {:#?}", bench.fake);
        bench.desire([]);
        bench
            .fake
            .wait_until(LONG, |fake| fake.changes().iter().any(|c| c.method == Method::StopContainer))
            .await;
        let bench = bench.restart().await;
        bench.fake.wait_until(LONG, |fake| fake.sandboxes().is_empty() && fake.containers().is_empty()).await;
        bench.until_gone("web").await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_left_on_disk_alone_is_removed() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    bench.disk.prepared.lock().unwrap().insert("uid-lost".into(), 1);
    let bench = bench.restart().await;
    let begun = tokio::time::Instant::now();
    while bench.disk.prepared.lock().unwrap().contains_key("uid-lost") {
        assert!(begun.elapsed() < LONG, "still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(bench.disk.prepared.lock().unwrap().contains_key("uid-web"));
    bench.until("web", is_running).await;
    assert_eq!(bench.kubelet.statuses().borrow().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_changed_while_no_agent_ran_is_rendered_into_volumes() {
    let mut web = pod("web");
    let volume = r#"{"name": "v", "configMap": {"name": "settings"}}"#;
    web.spec.volumes = vec![serde_json::from_str(volume).unwrap()];
    let bench = Bench::with_pods([web]).await;
    bench.until("web", is_running).await;
    let refreshed = |bench: &Bench| bench.disk.refreshed.load(Ordering::Relaxed);
    assert_eq!(refreshed(&bench), 0);
    bench.disk.refresh_failures.store(2, Ordering::Relaxed);
    let bench = bench.restart().await;
    bench.until_event(|e| e.reason == "FailedMount" && e.count == 2).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(refreshed(&bench), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_starts_pods_afresh() {
    let mut job = pod("job");
    job.spec.restart_policy = "OnFailure".into();
    let bench = Bench::new().await;
    bench
        .fake
        .script_container("job/main", [Script::exits_after(Duration::from_secs(500), 1), Script::runs()]);
    bench.desire([job, pod("web")]);
    bench.until("job", is_running).await;
    bench.until("web", is_running).await;
    let Bench { fake, disk, images, ips, clock, wall, pods, kubelet } = bench;
    drop(kubelet);
    fake.kill_sandbox("job");
    fake.kill_sandbox("web");
    let kubelet = start(&fake, &clock, &disk, &images, &ips, pods.subscribe(), PodViews::default()).await;
    let bench = Bench { fake, disk, images, ips, clock, wall, pods, kubelet };
    for name in ["job", "web"] {
        let status = bench.until(name, is_running).await;
        assert_eq!(of(&status, "main").restart_count, 1);
    }
}
