//! Hooks, grace periods and the order of the end.

use coracle_cri::testing::{ExecScript, Method, Script};

use super::*;
use crate::api::{ExecAction, Lifecycle, LifecycleHandler, ObjectMeta, SleepAction, Time};

fn exec(command: &str) -> Option<Box<LifecycleHandler>> {
    let exec = Some(Box::new(ExecAction { command: vec![command.to_owned()] }));
    Some(Box::new(LifecycleHandler { exec, ..LifecycleHandler::default() }))
}

fn with_lifecycle(name: &str, lifecycle: Lifecycle) -> Pod {
    let mut pod = pod(name);
    pod.spec.containers[0].lifecycle = Some(Box::new(lifecycle));
    pod
}

/// Seconds from the first call of a method to the end of `wait`.
async fn seconds(wait: impl Future<Output = ()>) -> u64 {
    let begun = tokio::time::Instant::now();
    wait.await;
    begun.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ignores_its_signal_is_killed_after_the_grace_period() {
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::runs().ignores_stop_signal()]);
    bench.desire([pod("web")]);
    bench.until("web", is_running).await;
    bench.desire([]);
    assert_eq!(seconds(bench.until_gone("web")).await, 30);
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_eats_into_the_grace_period() {
    let lifecycle = Lifecycle { pre_stop: exec("goodbye"), ..Lifecycle::default() };
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::runs().ignores_stop_signal()]);
    bench.fake.script_exec("main", [ExecScript::exits(0).takes(Duration::from_secs(12))]);
    bench.desire([with_lifecycle("web", lifecycle)]);
    bench.until("web", is_running).await;
    bench.desire([]);
    assert_eq!(seconds(bench.until_gone("web")).await, 30);
    assert_eq!(bench.fake.execs().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_past_the_grace_period_leaves_two_seconds() {
    let lifecycle = Lifecycle { pre_stop: exec("goodbye"), ..Lifecycle::default() };
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::runs().ignores_stop_signal()]);
    bench.fake.script_exec("main", [ExecScript::exits(0).takes(Duration::from_secs(500))]);
    bench.desire([with_lifecycle("web", lifecycle)]);
    bench.until("web", is_running).await;
    bench.desire([]);
    assert_eq!(seconds(bench.until_gone("web")).await, 32);
}

#[tokio::test(start_paused = true)]
async fn a_failed_pre_stop_hook_is_told_and_a_sleep_waits() {
    let bench = Bench::new().await;
    bench.fake.script_exec("main", [ExecScript::exits(1).stdout("secret")]);
    let lifecycle = Lifecycle { pre_stop: exec("goodbye"), ..Lifecycle::default() };
    bench.desire([with_lifecycle("web", lifecycle)]);
    bench.until("web", is_running).await;
    bench.desire([]);
    bench.until_gone("web").await;
    assert!(bench.events().contains(&"FailedPreStopHook: PreStopHook failed".to_owned()));

    let sleep = LifecycleHandler { sleep: Some(Box::new(SleepAction { seconds: 7 })), ..Default::default() };
    let lifecycle = Lifecycle { pre_stop: Some(Box::new(sleep)), ..Lifecycle::default() };
    bench.desire([with_lifecycle("nap", lifecycle)]);
    bench.until("nap", is_running).await;
    bench.desire([]);
    assert_eq!(seconds(bench.until_gone("nap")).await, 7);
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_kills_the_container() {
    let lifecycle = Lifecycle { post_start: exec("hello"), ..Lifecycle::default() };
    let bench = Bench::new().await;
    bench.fake.script_exec("main", [ExecScript::exits(1), ExecScript::exits(0)]);
    bench.desire([with_lifecycle("web", lifecycle)]);
    bench.until_event(|e| e.reason == "FailedPostStartHook" && e.message == "PostStartHook failed").await;
    bench.until_event(|e| e.reason == "Killing" && e.message == "FailedPostStartHook").await;
    let status = bench.until("web", is_running).await;
    assert_eq!(of(&status, "main").restart_count, 1);
}

#[tokio::test(start_paused = true)]
async fn sidecars_end_after_the_others_in_reverse_order() {
    let mut web = pod("web");
    web.spec.init_containers = vec![sidecar("one"), sidecar("two")];
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::runs().stops_after(Duration::from_secs(5), 0)]);
    bench.fake.script_container("two", [Script::runs().stops_after(Duration::from_secs(3), 0)]);
    bench.desire([web]);
    bench.until("web", is_running).await;
    bench.desire([]);
    assert_eq!(seconds(bench.until_gone("web")).await, 8);
    let stops = bench.fake.calls().into_iter().filter(|c| c.method == Method::StopContainer);
    let stops: Vec<String> = stops.map(|call| call.name).collect();
    assert_eq!(stops, ["main", "two", "one"]);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_may_shorten_the_grace_period_on_its_way() {
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::runs().ignores_stop_signal()]);
    bench.desire([pod("web")]);
    bench.until("web", is_running).await;
    let deleted = |grace: i64| {
        let mut web = pod("web");
        web.metadata.deletion_timestamp = Some(Time(1));
        web.metadata.deletion_grace_period_seconds = Some(grace);
        web
    };
    let begun = tokio::time::Instant::now();
    bench.desire([deleted(60)]);
    bench.until_event(|e| e.reason == "Killing").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.desire([deleted(15)]);
    let status = bench.until("web", |s| s.phase == "Failed").await;
    assert_eq!(of(&status, "main").state.terminated.as_ref().unwrap().exit_code, 137);
    assert_eq!(begun.elapsed().as_secs(), 15);
    // The pod stays known until its deletion is complete.
    bench.desire([]);
    bench.until_gone("web").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_waits_for_the_one_before() {
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::runs().ignores_stop_signal(), Script::runs()]);
    bench.desire([pod("web")]);
    bench.until("web", is_running).await;
    let mut next = pod("web");
    next.metadata.uid = Arc::from("uid-next");
    bench.desire([next]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(bench.fake.sandboxes().len(), 1);
    assert_eq!(bench.kubelet.statuses().borrow()["uid-next"].status.phase, "Pending");
    let mut statuses = bench.kubelet.statuses();
    let runs =
        statuses.wait_for(|v| v.len() == 1 && v.get("uid-next").is_some_and(|v| is_running(&v.status)));
    tokio::time::timeout(LONG, runs).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_wanted_again_while_it_ends_starts_afresh() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    bench.fake.delay(Method::StopContainer, Duration::from_secs(5));
    bench.desire([]);
    bench.until_event(|e| e.reason == "Killing").await;
    bench.desire([pod("web")]);
    bench.until_event(|e| e.reason == "Started" && e.count == 2).await;
    bench.until("web", is_running).await;
    assert_eq!(bench.fake.sandboxes().len(), 1);
    assert_eq!(bench.running("main"), 1);
}

#[tokio::test(start_paused = true)]
async fn stop_pods_ends_all_and_starts_none() {
    let bench = Bench::new().await;
    bench.fake.script_container("slow/main", [Script::runs().ignores_stop_signal()]);
    bench.desire([pod("web"), pod("slow")]);
    bench.until("web", is_running).await;
    bench.until("slow", is_running).await;
    bench.kubelet.stop_pods(Some(5), Duration::from_secs(60)).await.unwrap();
    assert!(bench.fake.sandboxes().is_empty());
    bench.desire([pod("another")]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.fake.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_leaves_pods_running() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    let Bench { fake, kubelet, .. } = bench;
    kubelet.drain().await;
    assert_eq!(fake.containers().len(), 1);
    assert_eq!(fake.count(Method::StopContainer), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waited_for_its_name_in_vain_is_forgotten() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    bench.fake.hang(Method::StopContainer);
    let second =
        Pod { metadata: ObjectMeta { uid: Arc::from("second"), ..pod("web").metadata }, ..pod("web") };
    bench.desire([second]);
    let mut statuses = bench.kubelet.statuses();
    statuses.wait_for(|views| views.contains_key("second")).await.unwrap();
    bench.desire([]);
    bench.fake.clear_faults();
    bench.fake.release();
    bench.until_gone("web").await;
}
