//! A runtime that fails, hangs, lies or goes away; workers that panic.

use coracle_cri::Status;
use coracle_cri::testing::{Fault, Method, Script};

use super::*;

/// The calls that a pod's life from start to removal makes.
const CALLS: [Method; 11] = [
    Method::RunPodSandbox,
    Method::PodSandboxStatus,
    Method::ListPodSandbox,
    Method::ListContainers,
    Method::CreateContainer,
    Method::StartContainer,
    Method::ContainerStatus,
    Method::StopContainer,
    Method::StopPodSandbox,
    Method::RemoveContainer,
    Method::RemovePodSandbox,
];

async fn lives_and_ends(bench: &Bench, what: &str) {
    bench.desire([pod("web")]);
    bench.until("web", is_running).await;
    assert_eq!(bench.running("main"), 1, "{what}");
    bench.desire([]);
    bench.until_gone("web").await;
    bench.fake.wait_until(LONG, |f| f.sandboxes().is_empty() && f.containers().is_empty()).await;
    assert!(bench.disk.prepared.lock().unwrap().is_empty(), "{what}");
}

#[tokio::test(start_paused = true)]
async fn every_call_may_fail_once() {
    for method in CALLS {
        let bench = Bench::new().await;
        bench.fake.fail_next(method, Status::unavailable("no shim"));
        lives_and_ends(&bench, method.name()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_answer_may_get_lost_once() {
    for method in CALLS {
        let bench = Bench::new().await;
        bench.fake.inject(Fault::lose_response(method, Status::unavailable("connection reset")).times(1));
        lives_and_ends(&bench, method.name()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_may_hang_once() {
    for method in CALLS {
        let bench = Bench::new().await;
        bench.fake.inject(Fault::hang(method).times(1));
        lives_and_ends(&bench, method.name()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_sandbox_is_told_and_tried_again() {
    let bench = Bench::new().await;
    bench.fake.fail_next(Method::RunPodSandbox, Status::unknown("no network"));
    bench.desire([pod("web")]);
    let event = bench.until_event(|e| e.reason == "FailedCreatePodSandBox").await;
    assert_eq!(event.message, "Failed to create pod sandbox: rpc error: code = Unknown desc = no network");
    let status = bench.until("web", |_| true).await;
    assert_eq!(waiting_reason(&status, "main"), "ContainerCreating");
    assert_eq!(condition(&status, "PodReadyToStartContainers"), "False");
    bench.until("web", is_running).await;
}

#[tokio::test(start_paused = true)]
async fn events_that_get_lost_cost_time_alone() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    // Without events the watch lists, every second.
    bench.fake.inject(Fault::fail(Method::GetContainerEvents, Status::unimplemented("no events")));
    bench.fake.set_available(false);
    bench.fake.set_available(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let begun = tokio::time::Instant::now();
    bench.fake.exit_container("web/main", 1);
    bench.until("web", |s| of(s, "main").restart_count == 1 && is_running(s)).await;
    assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_goes_away_and_comes_back_loses_no_pod() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    bench.fake.set_available(false);
    bench.desire([pod("web"), pod("db")]);
    tokio::time::sleep(Duration::from_secs(100)).await;
    bench.fake.set_available(true);
    bench.until("db", is_running).await;
    bench.fake.exit_container("web/main", 1);
    bench.until("web", |s| of(s, "main").restart_count == 1 && is_running(s)).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_that_pods_failure_alone() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    bench.disk.panics.store(2, std::sync::atomic::Ordering::Relaxed);
    bench.desire([pod("web"), pod("db")]);
    let event = bench.until_event(|e| e.reason == "FailedSync").await;
    assert_eq!(event.name, "db");
    assert!(event.message.contains("told to panic"), "{}", event.message);
    bench.until("db", is_running).await;
    assert_eq!(bench.fake.sandboxes().len(), 2);
    assert_eq!(bench.running("main"), 2);
}

#[tokio::test(start_paused = true)]
async fn volumes_that_are_not_there_hold_the_pod_back() {
    let bench = Bench::new().await;
    let error = StepError { reason: "FailedMount".into(), message: "configmap \"x\" not found".into() };
    *bench.disk.refused.lock().unwrap() = Some(error);
    bench.desire([pod("web")]);
    bench.until_event(|e| e.reason == "FailedMount" && e.message.contains("not found")).await;
    assert!(bench.fake.sandboxes().is_empty());
    *bench.disk.refused.lock().unwrap() = None;
    bench.until("web", is_running).await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_there_lets_the_other_container_run() {
    let bench = Bench::new().await;
    let error = PullError { reason: "ErrImagePull", message: "not found".into(), retry_at: None };
    bench.images.failing.lock().unwrap().insert("nope".into(), error);
    let mut web = pod("web");
    web.spec.containers.insert(0, Container { image: "nope".into(), ..container("bad") });
    bench.desire([web]);
    let status = bench.until("web", |s| of(s, "main").state.running.is_some()).await;
    assert_eq!(waiting_reason(&status, "bad"), "ErrImagePull");
    assert_eq!(status.phase, "Pending");
    // A container that waits for its image keeps nobody from restarting.
    bench.fake.exit_container("web/main", 1);
    bench.until("web", |s| of(s, "main").restart_count == 1 && of(s, "main").state.running.is_some()).await;
    bench.fake.add_image("nope");
    bench.images.failing.lock().unwrap().clear();
    bench.until("web", is_running).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_may_be_deleted_while_its_image_is_awaited() {
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::runs()]);
    bench.fake.hang(Method::StartContainer);
    bench.desire([pod("web")]);
    bench.fake.wait_until(LONG, |fake| fake.count(Method::StartContainer) == 1).await;
    bench.desire([]);
    bench.until_gone("web").await;
    assert!(bench.fake.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_network_that_hangs_delays_only_pods_that_need_it() {
    let bench = Bench::new().await;
    bench.fake.hang(Method::RunPodSandbox);
    let waiting = |n: u32| pod(&format!("waits-{n}"));
    bench.desire((0..100).map(waiting));
    let hanging = || bench.fake.count(Method::RunPodSandbox);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let held = hanging();
    assert!(held > 0);
    let mut host = pod("host");
    host.spec.host_network = true;
    bench.desire((0..100).map(waiting).chain([host]));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(hanging(), held + 1, "its turn came at once");
    bench.fake.clear_faults();
    bench.fake.release();
    bench.until("host", is_running).await;
    bench.until("waits-99", is_running).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_network_says_so_and_runs_what_needs_none() {
    let bench = Bench::new().await;
    bench.fake.set_condition("NetworkReady", false, "NetworkPluginNotReady", "no bridge plugin");
    let mut host = pod("host");
    host.spec.host_network = true;
    bench.desire([pod("web"), host]);
    bench.until("host", is_running).await;
    let event = bench.until_event(|e| e.reason == "NetworkNotReady").await;
    assert_eq!(
        event.message,
        "network is not ready: container runtime network not ready: \
         NetworkReady=false reason:NetworkPluginNotReady message:no bridge plugin"
    );
    assert_eq!(bench.fake.count(Method::RunPodSandbox), 1);
    bench.fake.set_condition("NetworkReady", true, "", "");
    bench.until("web", is_running).await;
}
