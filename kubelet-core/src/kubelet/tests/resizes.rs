//! Pods whose CPU and memory change while they run.

use coracle_cri::testing::{Fault, Method};
use coracle_cri::v1::{ContainerStats, LinuxContainerResources, MemoryUsage, UInt64Value};
use coracle_cri::{Code, Status};

use super::*;
use crate::api::{ContainerResizePolicy, PendingResize};

const MEBIBYTE: i64 = 1 << 20;

/// A pod of that generation, with as much of both as it asks for.
fn sized(generation: i64, cpu: &str, memory: &str) -> Pod {
    let mut pod = pod("web");
    pod.metadata.generation = Some(generation);
    let resources = &mut pod.spec.containers[0].resources;
    for (name, value) in [("cpu", cpu), ("memory", memory)] {
        resources.limits.insert(name.to_owned(), value.parse().unwrap());
        resources.requests.insert(name.to_owned(), value.parse().unwrap());
    }
    pod
}

fn condition(status: &PodStatus, kind: &str) -> Option<(String, String, Option<i64>)> {
    let found = status.conditions.iter().find(|c| c.r#type == kind)?;
    Some((found.reason.clone(), found.message.clone(), found.observed_generation))
}

/// Whether it runs with that much memory and nothing is left to do.
fn has(status: &PodStatus, generation: i64, memory: &str) -> bool {
    let main = of(status, "main");
    let limit = main.resources.as_ref().and_then(|resources| resources.limits.get("memory"));
    status.observed_generation == Some(generation)
        && main.state.running.is_some()
        && limit.is_some_and(|limit| limit.as_str() == memory)
        && condition(status, "PodResizeInProgress").is_none()
}

fn set_in(bench: &Bench) -> LinuxContainerResources {
    let all = bench.fake.containers();
    let running = coracle_cri::v1::ContainerState::ContainerRunning;
    let container = all.iter().find(|c| c.status.state() == running).unwrap();
    container.status.resources.clone().unwrap().linux.unwrap()
}

fn calls(bench: &Bench, method: Method) -> usize {
    bench.fake.calls().into_iter().filter(|call| call.method == method).count()
}

#[tokio::test(start_paused = true)]
async fn a_container_gets_more_and_less_while_it_runs() {
    let bench = Bench::with_pods([sized(1, "100m", "64Mi")]).await;
    let before = bench.until("web", |s| has(s, 1, "64Mi")).await;
    bench.desire([sized(2, "250m", "128Mi")]);
    let after = bench.until("web", |s| has(s, 2, "128Mi")).await;
    let (old, new) = (of(&before, "main"), of(&after, "main"));
    assert_eq!((&old.container_id, old.restart_count), (&new.container_id, new.restart_count));
    assert_eq!(new.allocated_resources["cpu"].as_str(), "250m");
    let set = set_in(&bench);
    assert_eq!((set.cpu_quota, set.cpu_shares, set.memory_limit_in_bytes), (25_000, 256, 128 * MEBIBYTE));
    let resized = std::mem::take(&mut *bench.disk.resized.lock().unwrap());
    let both = [(Extent::Raise, Some(128 * MEBIBYTE)), (Extent::All, Some(128 * MEBIBYTE))];
    assert_eq!(resized, both);
    let summary = concat!(
        r#"{"containers":[{"name":"main","resources":{"limits":{"cpu":"250m","memory":"128Mi"},"#,
        r#""requests":{"cpu":"250m","memory":"128Mi"}}}],"generation":2}"#
    );
    let events = bench.events();
    assert!(events.contains(&format!("ResizeStarted: Pod resize started: {summary}")), "{events:#?}");
    assert!(events.contains(&format!("ResizeCompleted: Pod resize completed: {summary}")), "{events:#?}");

    bench.fake.set_container_stats(old.bare_id(), used(MEBIBYTE));
    bench.desire([sized(3, "100m", "32Mi")]);
    bench.until("web", |s| has(s, 3, "32Mi")).await;
    assert_eq!(set_in(&bench).memory_limit_in_bytes, 32 * MEBIBYTE);
    let resized = bench.disk.resized.lock().unwrap().clone();
    let both = [(Extent::Raise, Some(128 * MEBIBYTE)), (Extent::All, Some(32 * MEBIBYTE))];
    assert_eq!(resized, both, "the pod takes back last");
    assert_eq!(bench.running("main"), 1);
}

fn used(bytes: i64) -> ContainerStats {
    let usage_bytes = Some(UInt64Value { value: bytes.unsigned_abs() });
    ContainerStats { memory: Some(MemoryUsage { usage_bytes, ..Default::default() }), ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn no_limit_becomes_less_than_what_is_used() {
    let bench = Bench::with_pods([sized(1, "100m", "64Mi")]).await;
    let before = bench.until("web", |s| has(s, 1, "64Mi")).await;
    bench.fake.set_container_stats(of(&before, "main").bare_id(), used(20 * MEBIBYTE));
    bench.disk.memory_use.store(21 << 20, Ordering::Relaxed);
    bench.desire([sized(2, "100m", "16Mi")]);
    let is_error = |s: &PodStatus| condition(s, "PodResizeInProgress").is_some_and(|c| c.0 == "Error");
    let status = bench.until("web", is_error).await;
    let (_, message, generation) = condition(&status, "PodResizeInProgress").unwrap();
    assert_eq!(
        message,
        "cannot decrease memory limits: [attempting to set pod memory limit (16777216) below current usage \
         (22020096), attempting to set container \"main\" memory limit (16777216) below current usage (20971520)]"
    );
    assert_eq!(generation, Some(2));
    let limits = of(&status, "main").resources.clone().unwrap().limits;
    assert_eq!(limits["memory"].as_str(), "64Mi", "what it has is shown, not what it was given");
    bench.until_event(|e| e.reason == "ResizeError").await;
    assert_eq!(calls(&bench, Method::UpdateContainerResources), 0);
    assert!(bench.disk.resized.lock().unwrap().is_empty());
    // It is tried again until there is little enough.
    bench.fake.set_container_stats(of(&before, "main").bare_id(), used(MEBIBYTE));
    bench.disk.memory_use.store(2 << 20, Ordering::Relaxed);
    bench.until("web", |s| has(s, 2, "16Mi")).await;
    assert_eq!(bench.events().iter().filter(|event| event.starts_with("ResizeError")).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_policy_says_so_starts_anew_inside_the_larger_group() {
    let anew = |generation: i64, memory: &str| {
        let mut pod = sized(generation, "100m", memory);
        let (resource_name, restart_policy) = ("memory".to_owned(), "RestartContainer".to_owned());
        pod.spec.containers[0].resize_policy = vec![ContainerResizePolicy { resource_name, restart_policy }];
        pod
    };
    let bench = Bench::with_pods([anew(1, "64Mi")]).await;
    bench.until("web", |s| has(s, 1, "64Mi")).await;
    bench.desire([anew(2, "128Mi")]);
    let status = bench.until("web", |s| has(s, 2, "128Mi")).await;
    assert_eq!(of(&status, "main").restart_count, 1);
    assert_eq!(set_in(&bench).memory_limit_in_bytes, 128 * MEBIBYTE);
    assert_eq!(calls(&bench, Method::UpdateContainerResources), 0);
    assert_eq!(bench.disk.resized.lock().unwrap()[0], (Extent::Raise, Some(128 * MEBIBYTE)));
    let killing = bench.until_event(|e| e.reason == "Killing").await;
    assert_eq!(killing.message, "Container main resize requires restart");
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_the_runtime_refuses_is_tried_again_and_a_new_agent_goes_on_with_it() {
    let bench = Bench::with_pods([sized(1, "100m", "64Mi")]).await;
    bench.until("web", |s| has(s, 1, "64Mi")).await;
    bench.fake.inject(Fault::fail(Method::UpdatePodSandboxResources, Status::new(Code::Unimplemented, "no")));
    bench.fake.inject(Fault::fail(Method::UpdateContainerResources, Status::internal("busy")).times(1000));
    bench.desire([sized(2, "100m", "128Mi")]);
    let is_error = |s: &PodStatus| condition(s, "PodResizeInProgress").is_some_and(|c| c.0 == "Error");
    let status = bench.until("web", is_error).await;
    let (_, message, _) = condition(&status, "PodResizeInProgress").unwrap();
    assert_eq!(message, "rpc error: code = Internal desc = busy");
    bench.fake.clear_faults();
    let last = bench.kubelet.statuses().borrow().clone();
    let bench = bench.restart_knowing(last).await;
    let status = bench.until("web", |s| has(s, 2, "128Mi")).await;
    assert_eq!(of(&status, "main").restart_count, 0);
    assert_eq!(set_in(&bench).memory_limit_in_bytes, 128 * MEBIBYTE);
}

#[tokio::test(start_paused = true)]
async fn a_resize_that_has_to_wait_is_told_once() {
    let bench = Bench::with_pods([sized(1, "100m", "64Mi")]).await;
    bench.until("web", |s| has(s, 1, "64Mi")).await;
    let waits = |labelled: bool| {
        let mut pod = sized(1, "100m", "64Mi");
        pod.metadata.generation = Some(2);
        if labelled {
            pod.metadata.labels.insert("a".to_owned(), "b".to_owned());
        }
        let (wanted, deferred) = (Arc::new(sized(2, "8", "64Mi")), Some("no room".to_owned()));
        pod.pending_resize = Some(Box::new(PendingResize { wanted, deferred, since: 0 }));
        pod
    };
    bench.desire([waits(false)]);
    let status = bench.until("web", |s| condition(s, "PodResizePending").is_some()).await;
    let told = ("Deferred".to_owned(), "no room".to_owned(), Some(2));
    assert_eq!(condition(&status, "PodResizePending"), Some(told));
    let event = bench.until_event(|e| e.reason == "ResizeDeferred").await;
    assert!(event.message.starts_with(
        r#"Pod resize Deferred: {"containers":[{"name":"main","resources":{"limits":{"cpu":"8","#
    ));
    assert!(event.message.ends_with(r#""generation":2,"error":"no room"}"#), "{}", event.message);
    bench.desire([waits(true)]);
    bench.desire([sized(3, "100m", "64Mi")]);
    bench.until("web", |s| s.observed_generation == Some(3)).await;
    let events = bench.events();
    assert_eq!(events.iter().filter(|event| event.starts_with("Resize")).count(), 1, "{events:#?}");
    assert_eq!(calls(&bench, Method::UpdateContainerResources), 0);
}
