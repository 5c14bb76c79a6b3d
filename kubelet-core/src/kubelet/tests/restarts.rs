//! Restart policies, back-off, and pods that end by themselves.

use coracle_cri::testing::{Exit, Fault, Method, Script};

use super::*;
use crate::api::{ContainerRestartRule, ContainerRestartRuleOnExitCodes};

fn with_policy(name: &str, policy: &str) -> Pod {
    let mut pod = pod(name);
    pod.spec.restart_policy = policy.to_owned();
    pod
}

#[tokio::test(start_paused = true)]
async fn a_container_that_keeps_ending_backs_off() {
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::exits_after(Duration::from_secs(1), 1)]);
    bench.desire([with_policy("job", "Always")]);
    let status = bench.until("job", |s| waiting_reason(s, "main") == "CrashLoopBackOff").await;
    let waiting = of(&status, "main").state.waiting.clone().unwrap();
    assert_eq!(waiting.message, "back-off 10s restarting failed container=main pod=job_default(uid-job)");
    assert_eq!(status.phase, "Running");
    let last = of(&status, "main").last_state.terminated.clone().unwrap();
    assert_eq!((last.exit_code, last.reason.as_str()), (1, "Error"));
    let event = bench.until_event(|e| e.reason == "BackOff").await;
    assert_eq!(event.message, "Back-off restarting failed container main in pod job_default(uid-job)");

    let starts = |bench: &Bench| {
        let starts = bench.fake.calls().into_iter().filter(|c| c.method == Method::StartContainer);
        starts.map(|call| call.at).collect::<Vec<_>>()
    };
    bench.until("job", |s| of(s, "main").restart_count == 7 && of(s, "main").state.running.is_some()).await;
    let times = starts(&bench);
    let gaps: Vec<u64> = times.windows(2).map(|w| w[1].duration_since(w[0]).unwrap().as_secs()).collect();
    assert_eq!(gaps, [1, 11, 21, 41, 81, 161, 301]);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_changes_no_back_off() {
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::exits_after(Duration::from_secs(1), 1)]);
    bench.desire([with_policy("job", "Always")]);
    bench.until("job", |s| waiting_reason(s, "main") == "CrashLoopBackOff").await;
    let before = tokio::time::Instant::now();
    bench.wall.jump(50 * 365 * 86_400);
    bench.fake.set_time(bench.fake.now() + Duration::from_secs(50 * 365 * 86_400));
    bench.until("job", |s| of(s, "main").restart_count == 3).await;
    let waited = before.elapsed().as_secs();
    assert!((30..=33).contains(&waited), "{waited}");
    bench.wall.jump(-70 * 365 * 86_400);
    let before = tokio::time::Instant::now();
    bench.until("job", |s| of(s, "main").restart_count == 4).await;
    assert!((40..=43).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn never_and_on_failure_pods_end() {
    let bench = Bench::new().await;
    bench.fake.script_container("good/main", [Script::exits_after(Duration::from_secs(1), 0)]);
    bench.fake.script_container("bad/main", [Script::exits_after(Duration::from_secs(1), 3)]);
    bench.fake.script_container(
        "third/main",
        [Script::exits_after(Duration::from_secs(1), 3), Script::exits_after(Duration::from_secs(1), 0)],
    );
    let pods = [with_policy("good", "Never"), with_policy("bad", "Never"), with_policy("third", "OnFailure")];
    bench.desire(pods);
    let status = bench.until("good", |s| s.phase == "Succeeded").await;
    assert_eq!(condition(&status, "Ready"), "False|PodCompleted");
    assert_eq!(condition(&status, "Initialized"), "True|PodCompleted");
    let status = bench.until("bad", |s| s.phase == "Failed").await;
    assert_eq!(condition(&status, "Ready"), "False|PodFailed");
    assert_eq!(of(&status, "main").state.terminated.as_ref().unwrap().exit_code, 3);
    let status = bench.until("third", |s| s.phase == "Succeeded").await;
    assert_eq!(of(&status, "main").restart_count, 1);
    // What has ended is kept for its logs, without volumes, network and timers.
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(bench.disk.torn_down.lock().unwrap().len(), 3);
    assert_eq!(bench.fake.containers().len(), 4);
    let ready = coracle_cri::v1::PodSandboxState::SandboxReady;
    assert!(bench.fake.sandboxes().iter().all(|s| s.status.state() != ready));
    bench.desire([]);
    for name in ["good", "bad", "third"] {
        bench.until_gone(name).await;
    }
    assert!(bench.fake.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_past_its_deadline_fails() {
    let mut job = pod("job");
    job.spec.active_deadline_seconds = Some(60);
    let bench = Bench::with_pods([job]).await;
    bench.until("job", is_running).await;
    let status = bench.until("job", |s| s.phase == "Failed").await;
    assert_eq!(status.reason, "DeadlineExceeded");
    assert_eq!(status.message, "Pod was active on the node longer than the specified deadline");
    bench.until("job", |s| of(s, "main").state.terminated.is_some()).await;
    let event = bench.until_event(|e| e.reason == "DeadlineExceeded").await;
    assert_eq!(event.count, 1);
    assert_eq!(bench.running("main"), 0);
}

#[tokio::test(start_paused = true)]
async fn oom_kills_and_failed_starts_are_told() {
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::exits_after(Duration::from_secs(1), Exit::oom())]);
    bench.desire([with_policy("fat", "Never")]);
    let status = bench.until("fat", |s| s.phase == "Failed").await;
    assert_eq!(of(&status, "main").state.terminated.as_ref().unwrap().reason, "OOMKilled");

    let no_such = Script::fails_to_start(coracle_cri::Status::unknown("exec: \"nope\": not found"));
    bench.fake.script_container("odd/main", [no_such, Script::runs()]);
    bench.desire([with_policy("odd", "Always")]);
    let status = bench.until("odd", |s| waiting_reason(s, "main") == "RunContainerError").await;
    assert!(of(&status, "main").state.waiting.as_ref().unwrap().message.contains("not found"));
    bench.until_event(|e| e.reason == "Failed" && e.message.starts_with("Error: exec:")).await;
    bench.until("odd", is_running).await;
}

#[tokio::test(start_paused = true)]
async fn an_init_container_that_fails_ends_a_never_pod_and_is_tried_again_otherwise() {
    let bench = Bench::new().await;
    bench.fake.script_container("no/setup", [Script::exits(1)]);
    bench.fake.script_container("yes/setup", [Script::exits(1), Script::exits(0)]);
    let with_init = |name: &str, policy: &str| {
        let mut pod = with_policy(name, policy);
        pod.spec.init_containers = vec![container("setup")];
        pod
    };
    bench.desire([with_init("no", "Never"), with_init("yes", "Always")]);
    let status = bench.until("no", |s| s.phase == "Failed").await;
    assert_eq!(of(&status, "setup").state.terminated.as_ref().unwrap().exit_code, 1);
    let status = bench.until("yes", is_running).await;
    assert_eq!(of(&status, "setup").restart_count, 1);
    assert!(of(&status, "setup").ready);
}

#[tokio::test(start_paused = true)]
async fn container_rules_decide_before_the_pods_policy() {
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: vec![42] };
    let rule = ContainerRestartRule { action: "Restart".into(), exit_codes: Some(Box::new(codes)) };
    let mut job = with_policy("job", "Never");
    job.spec.containers[0].restart_policy = Some("Never".into());
    job.spec.containers[0].restart_policy_rules = vec![rule];
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::exits(42), Script::exits(7)]);
    bench.desire([job]);
    let status = bench.until("job", |s| s.phase == "Failed").await;
    assert_eq!(of(&status, "main").restart_count, 1);
    assert_eq!(of(&status, "main").state.terminated.as_ref().unwrap().exit_code, 7);
}

#[tokio::test(start_paused = true)]
async fn a_rule_may_restart_all_containers_in_place() {
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: vec![42] };
    let rule =
        ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: Some(Box::new(codes)) };
    let mut job = with_policy("job", "Never");
    job.spec.init_containers = vec![container("setup")];
    let source = Container {
        restart_policy: Some("Never".into()),
        restart_policy_rules: vec![rule],
        ..container("source")
    };
    job.spec.containers.push(source);
    let bench = Bench::new().await;
    bench.fake.script_container("setup", [Script::exits(0)]);
    bench.fake.script_container("source", [Script::exits_after(Duration::from_secs(30), 42), Script::runs()]);
    bench.desire([job]);
    bench.until("job", is_running).await;
    let status = bench.until("job", |s| is_running(s) && of(s, "main").restart_count == 1).await;
    assert_eq!(condition(&status, "AllContainersRestarting"), "False");
    assert_eq!(bench.fake.sandboxes().len(), 1);
    let creates = bench.fake.calls().into_iter().filter(|c| c.method == Method::CreateContainer);
    let creates: Vec<String> = creates.map(|call| call.name).collect();
    assert_eq!(creates, ["setup", "main", "source", "setup", "main", "source"]);
}

#[tokio::test(start_paused = true)]
async fn sidecars_do_not_keep_a_finished_pod_alive() {
    let mut job = with_policy("job", "Never");
    job.spec.init_containers = vec![sidecar("one"), sidecar("two")];
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::exits_after(Duration::from_secs(5), 0)]);
    bench.desire([job]);
    bench.until("job", |s| s.phase == "Succeeded").await;
    let stops = bench.fake.calls().into_iter().filter(|c| c.method == Method::StopContainer);
    let stops: Vec<String> = stops.map(|call| call.name).collect();
    assert_eq!(stops, ["two", "one"]);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_dies_is_made_again() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    bench.fake.kill_sandbox("web");
    bench.until_event(|e| e.reason == "SandboxChanged").await;
    let status = bench.until("web", |s| is_running(s) && of(s, "main").restart_count == 1).await;
    assert!(of(&status, "main").last_state.terminated.is_some());
    assert_eq!(bench.fake.sandbox("web").unwrap().status.metadata.unwrap().attempt, 1);
    assert_eq!(bench.running("main"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_changed_image_replaces_the_container() {
    let bench = Bench::with_pods([pod("web")]).await;
    bench.until("web", is_running).await;
    let mut changed = pod("web");
    changed.spec.containers[0].image = "web:2".into();
    bench.desire([changed]);
    let event = bench.until_event(|e| e.reason == "Killing").await;
    assert_eq!(event.message, "Container main definition changed, will be restarted");
    bench.until("web", |s| is_running(s) && of(s, "main").restart_count == 1).await;
    assert_eq!(bench.running("main"), 1);
}

/// Every status that is told of the pods from now on.
fn record(bench: &Bench) -> Arc<Mutex<Vec<Arc<PodStatus>>>> {
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let (mut statuses, told) = (bench.kubelet.statuses(), recorded.clone());
    tokio::spawn(async move {
        while statuses.changed().await.is_ok() {
            let views = statuses.borrow_and_update();
            told.lock().unwrap().extend(views.values().map(|view| view.status.clone()));
        }
    });
    recorded
}

#[tokio::test(start_paused = true)]
async fn a_container_is_told_of_before_and_after_it_is_replaced_and_never_amid() {
    let bench = Bench::new().await;
    bench.fake.script_container("main", [Script::exits_after(Duration::from_secs(5), 1), Script::runs()]);
    // Long enough for the runtime's events of what was made to be heard.
    bench.fake.inject(Fault::delay(Method::StartContainer, Duration::from_secs(3)));
    let told = record(&bench);
    bench.desire([pod("web")]);
    bench.until("web", |status| is_running(status) && of(status, "main").restart_count == 1).await;
    for status in told.lock().unwrap().iter().filter(|status| !status.container_statuses.is_empty()) {
        let main = of(status, "main");
        assert!(main.restart_count == 0 || main.state.running.is_some(), "counted before it runs: {main:?}");
    }

    told.lock().unwrap().clear();
    bench.fake.inject(Fault::delay(Method::StopContainer, Duration::from_secs(3)));
    let mut changed = pod("web");
    changed.spec.containers[0].image = "web:2".into();
    bench.desire([changed]);
    bench.until("web", |status| is_running(status) && of(status, "main").restart_count == 2).await;
    for status in told.lock().unwrap().iter() {
        assert!(of(status, "main").state.running.is_some(), "told amid: {status:?}");
    }
}
