//! The status by table, as the kubelet's `kubelet_pods_test` and `generate_test` have it.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::api::{Container, PendingResize, PodReadinessGate, Probe};
use crate::pod::observation::{ContainerPhase, Instance, Limits, Sandbox};
use crate::pod::resize::Amounts;
use crate::probe::ProbeKind;

fn container(name: &str) -> Container {
    Container { name: name.to_owned(), ..Container::default() }
}

fn pod(policy: &str, containers: &[&str]) -> Pod {
    let mut pod = Pod::default();
    pod.spec.restart_policy = policy.to_owned();
    pod.spec.containers = containers.iter().map(|name| container(name)).collect();
    pod
}

fn instance(name: &str, phase: ContainerPhase, exit_code: i32) -> Instance {
    let id = Arc::from(format!("id-{name}"));
    let sandbox_id = Arc::from("sandbox");
    Instance { id, name: name.to_owned(), sandbox_id, phase, exit_code, ..Instance::default() }
}

fn running(name: &str) -> Instance {
    instance(name, ContainerPhase::Running, 0)
}

fn exited(name: &str, code: i32) -> Instance {
    instance(name, ContainerPhase::Exited, code)
}

fn observed(containers: Vec<Instance>) -> Observation {
    let ips = vec!["10.0.0.1".to_owned(), "fd00::1".to_owned(), "10.0.0.2".to_owned()];
    let sandbox = Sandbox { id: Arc::from("sandbox"), ready: true, ips, ..Sandbox::default() };
    Observation { sandboxes: vec![sandbox], containers }
}

struct Case {
    pod: Pod,
    observed: Observation,
    old: Option<PodStatus>,
    failures: BTreeMap<String, StartFailure>,
    probes: ProbeResults,
    terminal: bool,
    sizes: Sizes,
    resizing: Option<Resizing>,
}

impl Case {
    fn of(pod: Pod, containers: Vec<Instance>) -> Self {
        let observed = observed(containers);
        let (failures, probes) = (BTreeMap::new(), ProbeResults::default());
        let sizes = Sizes::default();
        Self { pod, observed, old: None, failures, probes, terminal: false, sizes, resizing: None }
    }

    fn status(&self) -> PodStatus {
        let node = NodeFacts { runtime_name: "coracle".into(), host_ips: vec!["192.0.2.1".into()] };
        status(&Inputs {
            pod: &self.pod,
            observed: &self.observed,
            old: self.old.as_ref(),
            failures: &self.failures,
            probes: &self.probes,
            eviction: None,
            terminal: self.terminal,
            restarting_all: false,
            sizes: &self.sizes,
            resizing: self.resizing.as_ref(),
            start_time: Time(50),
            node: &node,
            now: Now { boot: Duration::from_secs(100), wall_nanos: 1_000_000_000_000 },
        })
    }
}

fn phase_of(pod: Pod, containers: Vec<Instance>) -> String {
    Case::of(pod, containers).status().phase
}

#[test]
fn phases_by_policy_and_ends() {
    for (policy, containers, phase) in [
        ("Always", vec![], "Pending"),
        ("Always", vec![running("a"), running("b")], "Running"),
        ("Always", vec![exited("a", 0), exited("b", 1)], "Running"),
        ("Always", vec![running("a"), exited("b", 0)], "Running"),
        ("Always", vec![running("a")], "Pending"),
        ("Always", vec![running("a"), instance("b", ContainerPhase::Created, 0)], "Pending"),
        ("Never", vec![exited("a", 0), exited("b", 0)], "Succeeded"),
        ("Never", vec![exited("a", 0), exited("b", 1)], "Failed"),
        ("Never", vec![running("a"), exited("b", 1)], "Running"),
        ("OnFailure", vec![exited("a", 0), exited("b", 0)], "Succeeded"),
        ("OnFailure", vec![exited("a", 0), exited("b", 1)], "Running"),
        ("OnFailure", vec![exited("a", 0)], "Pending"),
    ] {
        let got = phase_of(pod(policy, &["a", "b"]), containers.clone());
        assert_eq!(got, phase, "{policy} {containers:#?}");
    }
}

#[test]
fn init_containers_hold_the_phase_at_pending_or_fail_the_pod() {
    let with_init = |policy: &str| {
        let mut pod = pod(policy, &["a"]);
        pod.spec.init_containers = vec![container("i")];
        pod
    };
    assert_eq!(phase_of(with_init("Always"), vec![running("i")]), "Pending");
    assert_eq!(phase_of(with_init("Always"), vec![exited("i", 0), running("a")]), "Running");
    assert_eq!(phase_of(with_init("Always"), vec![exited("i", 1)]), "Pending");
    assert_eq!(phase_of(with_init("Never"), vec![exited("i", 1)]), "Failed");
    // A record that is gone counts as done once the pod went on.
    let status = Case::of(with_init("Always"), vec![running("a")]).status();
    let done = status.init_container_statuses[0].state.terminated.as_ref().unwrap();
    assert_eq!((done.reason.as_str(), done.exit_code), ("Completed", 0));
    assert_eq!(status.phase, "Running");
}

#[test]
fn what_is_made_and_not_started_waits_for_a_reason() {
    let mut pod = pod("Always", &["a"]);
    let made = |name: &str| vec![instance(name, ContainerPhase::Created, 0)];
    let reason = |status: &ContainerStatus| status.state.waiting.as_ref().map(|w| w.reason.clone());
    let status = Case::of(pod.clone(), made("a")).status();
    assert_eq!(reason(&status.container_statuses[0]).as_deref(), Some("ContainerCreating"));
    pod.spec.init_containers = vec![container("i")];
    let status = Case::of(pod, made("i")).status();
    assert_eq!(reason(&status.init_container_statuses[0]).as_deref(), Some("PodInitializing"));
}

#[test]
fn sidecars_count_while_they_run() {
    let mut job = pod("Never", &["a"]);
    job.spec.init_containers = vec![Container { restart_policy: Some("Always".into()), ..container("s") }];
    assert_eq!(phase_of(job.clone(), vec![running("s")]), "Pending");
    assert_eq!(phase_of(job.clone(), vec![running("s"), running("a")]), "Running");
    assert_eq!(phase_of(job.clone(), vec![running("s"), exited("a", 0)]), "Running");
    assert_eq!(phase_of(job.clone(), vec![exited("s", 137), exited("a", 0)]), "Succeeded");
    assert_eq!(phase_of(job, vec![exited("s", 0), exited("a", 1)]), "Failed");
}

#[test]
fn terminal_phases_stay_and_static_pods_keep_theirs() {
    let mut case = Case::of(pod("Always", &["a"]), vec![exited("a", 0)]);
    case.terminal = true;
    assert_eq!(case.status().phase, "Succeeded");
    let source = ("kubernetes.io/config.source".to_owned(), "file".to_owned());
    case.pod.metadata.annotations.extend([source]);
    assert_eq!(case.status().phase, "Running");
    let mut case = Case::of(pod("Always", &["a"]), vec![running("a")]);
    case.old = Some(PodStatus { phase: "Failed".into(), reason: "Evicted".into(), ..PodStatus::default() });
    let status = case.status();
    assert_eq!((status.phase.as_str(), status.reason.as_str()), ("Failed", "Evicted"));
}

#[test]
fn a_failure_to_start_is_the_waiting_reason_and_the_end_before_is_kept() {
    let mut case = Case::of(pod("Always", &["a", "b"]), vec![exited("a", 3)]);
    let failure = |reason: &str| StartFailure { reason: reason.into(), message: "m".into() };
    case.failures.insert("a".into(), failure("CrashLoopBackOff"));
    case.failures.insert("b".into(), failure("ErrImagePull"));
    let status = case.status();
    let (a, b) = (&status.container_statuses[0], &status.container_statuses[1]);
    assert_eq!(a.state.waiting.as_ref().unwrap().reason, "CrashLoopBackOff");
    assert_eq!(a.last_state.terminated.as_ref().unwrap().exit_code, 3);
    assert_eq!(a.container_id, "coracle://id-a");
    assert_eq!(b.state.waiting.as_ref().unwrap().reason, "ErrImagePull");
    // One that will not start again shows its end, whatever happened before.
    let mut case = Case::of(pod("Never", &["a"]), vec![exited("a", 3)]);
    case.failures.insert("a".into(), failure("CrashLoopBackOff"));
    assert!(case.status().container_statuses[0].state.terminated.is_some());
}

#[test]
fn a_container_that_vanished_counts_as_ended() {
    let mut case = Case::of(pod("Always", &["a"]), vec![running("a")]);
    case.old = Some(case.status());
    case.observed.containers.clear();
    let status = case.status();
    let a = &status.container_statuses[0];
    assert_eq!(a.restart_count, 1);
    let last = a.last_state.terminated.as_ref().unwrap();
    assert_eq!((last.reason.as_str(), last.exit_code), ("ContainerStatusUnknown", 137));
    assert_eq!(status.phase, "Running");
}

#[test]
fn two_runs_show_the_state_and_the_one_before() {
    let newer = Instance { id: Arc::from("newer"), restart_count: 1, ..running("a") };
    let status = Case::of(pod("Always", &["a"]), vec![newer, exited("a", 9)]).status();
    let a = &status.container_statuses[0];
    assert!(a.state.running.is_some() && a.restart_count == 1);
    assert_eq!(a.last_state.terminated.as_ref().unwrap().exit_code, 9);
}

#[test]
fn started_and_ready_follow_the_probes() {
    let mut web = pod("Always", &["a"]);
    web.spec.containers[0].startup_probe = Some(Box::new(Probe::default()));
    web.spec.containers[0].readiness_probe = Some(Box::new(Probe::default()));
    let mut case = Case::of(web, vec![running("a")]);
    let seen = |case: &Case| {
        let status = case.status();
        (status.container_statuses[0].started, status.container_statuses[0].ready)
    };
    assert_eq!(seen(&case), (Some(false), false));
    case.probes.set(Arc::from("id-a"), ProbeKind::Startup, true);
    assert_eq!(seen(&case), (Some(true), false));
    case.probes.set(Arc::from("id-a"), ProbeKind::Readiness, true);
    assert_eq!(seen(&case), (Some(true), true));
    case.probes.set(Arc::from("id-a"), ProbeKind::Readiness, false);
    assert_eq!(seen(&case), (Some(true), false));
}

#[test]
fn conditions_say_why_and_when_they_changed() {
    let mut web = pod("Always", &["a", "b"]);
    web.metadata.generation = Some(7);
    let gate = PodReadinessGate { condition_type: "load-balancer".into() };
    web.spec.readiness_gates = vec![gate];
    let mut case = Case::of(web, vec![running("a")]);
    let find = |status: &PodStatus, kind: &str| {
        status.conditions.iter().find(|c| c.r#type == kind).cloned().unwrap()
    };
    let first = case.status();
    let ready = find(&first, "Ready");
    assert_eq!(ready.reason, "ContainersNotReady");
    assert_eq!(ready.message, "containers with unready status: [b]");
    assert_eq!((ready.observed_generation, ready.last_transition_time), (Some(7), Some(Time(1000))));
    let mut old = first;
    old.conditions.iter_mut().for_each(|c| c.last_transition_time = Some(Time(5)));
    case.old = Some(old);
    case.observed.containers.push(running("b"));
    let second = case.status();
    let ready = find(&second, "Ready");
    assert_eq!(ready.reason, "ReadinessGatesNotReady");
    assert_eq!(
        ready.message,
        "corresponding condition of pod readiness gate \"load-balancer\" does not exist."
    );
    assert_eq!(ready.last_transition_time, Some(Time(5)));
    assert_eq!(find(&second, "ContainersReady").last_transition_time, Some(Time(1000)));
    assert_eq!(find(&second, "PodScheduled").status, "True");
}

#[test]
fn addresses_are_one_of_each_family() {
    let status = Case::of(pod("Always", &["a"]), vec![running("a")]).status();
    let ips: Vec<&str> = status.pod_ips.iter().map(|ip| ip.ip.as_str()).collect();
    assert_eq!(ips, ["10.0.0.1", "fd00::1"]);
    assert_eq!((status.host_ip.as_str(), status.start_time), ("192.0.2.1", Some(Time(50))));
}

#[test]
fn all_messages_of_a_pod_are_bounded() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let long = |name: &&str| Instance { message: "x".repeat(4096), ..exited(name, 1) };
    let status = Case::of(pod("Never", &names), names.iter().map(long).collect()).status();
    let total: usize =
        status.container_statuses.iter().map(|s| s.state.terminated.as_ref().unwrap().message.len()).sum();
    assert_eq!(total, 12 * 1024);
}

#[test]
fn a_pod_that_ended_leaves_nothing_open() {
    let web = pod("Always", &["a", "b"]);
    let mut status = Case::of(web.clone(), vec![exited("a", 0)]).status();
    finish(&web, &mut status);
    assert_eq!(status.phase, "Failed");
    let lost = status.container_statuses[1].state.terminated.as_ref().unwrap();
    assert_eq!(lost.reason, "ContainerStatusUnknown");
    assert_eq!(lost.message, "The container could not be located when the pod was terminated");
}

#[test]
fn a_running_container_shows_what_is_set() {
    let mut web = pod("Always", &["a"]);
    web.spec.containers[0].resources = serde_json::from_value(serde_json::json!(
        {"requests": {"cpu": "200m", "memory": "32Mi"}, "limits": {"cpu": "5m", "memory": "128Mi"}}
    ))
    .unwrap();
    let limits = Limits { cpu_request: Some(100), cpu_limit: Some(10), memory_limit: Some(64 << 20) };
    let mut case = Case::of(web, vec![Instance { limits, ..running("a") }]);
    let set = Amounts { memory_request: 16 << 20, ..Amounts::default() };
    case.sizes.containers.insert(Arc::from("id-a"), set);
    let shown = |case: &Case| {
        let status = case.status();
        let resources = status.container_statuses[0].resources.clone().unwrap();
        let of = |list: &BTreeMap<String, crate::api::Quantity>| {
            list.values().map(|quantity| quantity.as_str().to_owned()).collect::<Vec<_>>().join(" ")
        };
        (
            of(&resources.requests),
            of(&resources.limits),
            of(&status.container_statuses[0].allocated_resources),
        )
    };
    // No runtime gives less than a hundredth of a core.
    let wanted = ("100m 16Mi".to_owned(), "5m 64Mi".to_owned(), "200m 32Mi".to_owned());
    assert_eq!(shown(&case), wanted);
    case.observed.containers[0].phase = ContainerPhase::Exited;
    assert_eq!(shown(&case).0, "200m 32Mi", "what does not run is made as it should be");
}

#[test]
fn conditions_tell_of_a_resize_until_it_is_done_or_the_pod_is() {
    let mut web = pod("Always", &["a"]);
    web.metadata.generation = Some(3);
    let wanted = Arc::new(web.clone());
    let deferred = Some("no room".to_owned());
    web.pending_resize = Some(Box::new(PendingResize { wanted, deferred, since: 0 }));
    let mut case = Case::of(web, vec![running("a")]);
    case.resizing = Some(Resizing { generation: Some(2), error: None });
    let find = |status: &PodStatus, kind: &str| status.conditions.iter().find(|c| c.r#type == kind).cloned();
    let first = case.status();
    let pending = find(&first, "PodResizePending").unwrap();
    assert_eq!((pending.status.as_str(), pending.reason.as_str()), ("True", "Deferred"));
    assert_eq!((pending.message.as_str(), pending.observed_generation), ("no room", Some(3)));
    let doing = find(&first, "PodResizeInProgress").unwrap();
    assert_eq!((doing.reason.as_str(), doing.observed_generation), ("", Some(2)));

    let mut old = first;
    old.conditions.iter_mut().for_each(|c| c.last_transition_time = Some(Time(5)));
    case.old = Some(old);
    case.resizing = Some(Resizing { generation: Some(2), error: Some("too much is used".to_owned()) });
    let second = case.status();
    let doing = find(&second, "PodResizeInProgress").unwrap();
    assert_eq!((doing.reason.as_str(), doing.message.as_str()), ("Error", "too much is used"));
    assert_eq!(doing.last_transition_time, Some(Time(1000)), "the reason is another");
    assert_eq!(find(&second, "PodResizePending").unwrap().last_transition_time, Some(Time(5)));
    case.terminal = true;
    let ended = case.status();
    assert!(find(&ended, "PodResizeInProgress").or(find(&ended, "PodResizePending")).is_none());
}
