//! The plan by table, as the kubelet's `kuberuntime_manager_test` has it.

use std::sync::Arc;

use super::*;
use crate::api::{ContainerRestartRule, ContainerRestartRuleOnExitCodes, Probe, Time};
use crate::backoff::BackoffPolicy;
use crate::pod::observation::Sandbox;

fn container(name: &str) -> Container {
    Container { name: name.to_owned(), image: "busybox".to_owned(), ..Container::default() }
}

fn sidecar(name: &str) -> Container {
    Container { restart_policy: Some("Always".to_owned()), ..container(name) }
}

/// Three regular containers that run in a ready sandbox.
fn base(policy: &str) -> (Pod, Observation) {
    let mut pod = Pod::default();
    pod.metadata.name = "foo".to_owned();
    pod.spec.restart_policy = policy.to_owned();
    pod.spec.containers = vec![container("foo1"), container("foo2"), container("foo3")];
    let sandbox = Sandbox {
        id: Arc::from("sandbox"),
        ready: true,
        reports_network: true,
        ips: vec!["10.0.0.1".to_owned()],
        ..Sandbox::default()
    };
    let containers = pod.spec.containers.iter().map(|c| running(&c.name)).collect();
    (pod, Observation { sandboxes: vec![sandbox], containers })
}

/// Three init containers that are done, the regular ones not made yet.
fn with_init(policy: &str) -> (Pod, Observation) {
    let (mut pod, mut observed) = base(policy);
    pod.spec.init_containers = vec![container("init1"), container("init2"), container("init3")];
    observed.containers = ["init1", "init2", "init3"].map(|name| exited(name, 0)).to_vec();
    (pod, observed)
}

/// The same with sidecars, which run.
fn with_sidecars(policy: &str) -> (Pod, Observation) {
    let (mut pod, mut observed) = base(policy);
    pod.spec.init_containers = vec![sidecar("side1"), sidecar("side2"), sidecar("side3")];
    observed.containers = ["side1", "side2", "side3"].map(running).to_vec();
    (pod, observed)
}

fn running(name: &str) -> Instance {
    let hash = Some(container_hash(&container(name)));
    Instance {
        id: id(name),
        name: name.to_owned(),
        phase: ContainerPhase::Running,
        hash,
        ..Instance::default()
    }
}

fn exited(name: &str, exit_code: i32) -> Instance {
    Instance { phase: ContainerPhase::Exited, exit_code, finished: at(100), ..running(name) }
}

fn in_phase(name: &str, phase: ContainerPhase) -> Instance {
    Instance { phase, ..running(name) }
}

fn id(name: &str) -> Arc<str> {
    Arc::from(format!("id-{name}"))
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn replace(observed: &mut Observation, instance: Instance) {
    observed.containers.retain(|c| c.name != instance.name);
    observed.containers.push(instance);
}

fn plan_with(pod: &Pod, observed: &Observation, probes: &ProbeResults) -> Plan {
    let backoff = Backoff::new(BackoffPolicy::CRASH_LOOP);
    let now = Now { boot: at(1000), wall_nanos: 0 };
    plan(&Inputs {
        pod,
        observed,
        probes,
        backoff: &backoff,
        restarting_all: false,
        sizes: &Sizes::default(),
        now,
    })
}

fn planned(pod: &Pod, observed: &Observation) -> Plan {
    plan_with(pod, observed, &ProbeResults::default())
}

fn starts(plan: &Plan) -> Vec<&str> {
    plan.start.iter().map(|start| start.name.as_str()).collect()
}

fn kills(plan: &Plan) -> Vec<&str> {
    plan.kill.iter().map(|kill| kill.name.as_str()).collect()
}

#[test]
fn all_is_well() {
    let (pod, observed) = base("Always");
    assert!(planned(&pod, &observed).is_idle());
}

#[test]
fn everything_starts_where_nothing_is() {
    let (pod, _) = base("Always");
    let plan = planned(&pod, &Observation::default());
    assert!(plan.kill_pod && plan.create_sandbox && plan.attempt == 0 && plan.sandbox.is_none());
    assert_eq!(starts(&plan), ["foo1", "foo2", "foo3"]);
}

#[test]
fn ended_containers_start_by_policy() {
    for (policy, wanted) in [("Always", &["foo1", "foo2"][..]), ("OnFailure", &["foo2"]), ("Never", &[])] {
        let (pod, mut observed) = base(policy);
        replace(&mut observed, exited("foo1", 0));
        replace(&mut observed, exited("foo2", 111));
        let plan = planned(&pod, &observed);
        assert_eq!(starts(&plan), wanted, "{policy}");
        assert!(!plan.kill_pod && plan.kill.is_empty());
    }
}

#[test]
fn a_created_or_unknown_container_starts_whatever_the_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let (pod, mut observed) = base(policy);
        replace(&mut observed, in_phase("foo2", ContainerPhase::Created));
        assert_eq!(starts(&planned(&pod, &observed)), ["foo2"]);
        replace(&mut observed, in_phase("foo2", ContainerPhase::Unknown));
        let plan = planned(&pod, &observed);
        assert_eq!((starts(&plan), kills(&plan)), (vec!["foo2"], vec!["foo2"]));
        assert_eq!(plan.kill[0].message, "Container is in \"unknown\" state, try killing it before restart");
    }
}

#[test]
fn a_pod_whose_work_is_done_is_killed() {
    let (pod, mut observed) = base("Never");
    for name in ["foo1", "foo2", "foo3"] {
        replace(&mut observed, exited(name, 0));
    }
    let plan = planned(&pod, &observed);
    assert!(plan.kill_pod && !plan.create_sandbox && plan.start.is_empty());
}

#[test]
fn a_sandbox_is_replaced_when_it_is_dead_doubled_or_without_address() {
    let not_ready = |o: &mut Observation| o.sandboxes[0].ready = false;
    let no_address = |o: &mut Observation| o.sandboxes[0].ips.clear();
    let doubled = |o: &mut Observation| {
        let older = Sandbox { id: Arc::from("older"), ..o.sandboxes[0].clone() };
        o.sandboxes.push(older);
    };
    let changes: [&dyn Fn(&mut Observation); 3] = [&not_ready, &no_address, &doubled];
    for change in changes {
        let (pod, mut observed) = base("Always");
        change(&mut observed);
        let plan = planned(&pod, &observed);
        assert!(plan.kill_pod && plan.create_sandbox && plan.attempt == 1);
        assert_eq!(plan.sandbox.as_deref(), Some("sandbox"));
        assert_eq!(starts(&plan), ["foo1", "foo2", "foo3"]);
    }
    let (mut pod, observed) = base("Always");
    pod.spec.host_network = true;
    let plan = planned(&pod, &observed);
    assert!(plan.create_sandbox && plan.sandbox.is_none());
}

#[test]
fn a_dead_sandbox_of_a_finished_pod_is_not_made_again() {
    for (policy, code, create) in [("Never", 1, false), ("OnFailure", 0, false), ("OnFailure", 1, true)] {
        let (pod, mut observed) = base(policy);
        observed.sandboxes[0].ready = false;
        for name in ["foo1", "foo2", "foo3"] {
            replace(&mut observed, exited(name, code));
        }
        assert_eq!(planned(&pod, &observed).create_sandbox, create, "{policy} {code}");
    }
    // A pod that has never come to a container is tried again, whatever its policy.
    let (pod, mut observed) = base("Never");
    observed.sandboxes[0].ready = false;
    observed.containers.clear();
    assert!(planned(&pod, &observed).create_sandbox);
}

#[test]
fn on_failure_leaves_out_what_succeeded_in_the_sandbox_before() {
    let (pod, mut observed) = base("OnFailure");
    observed.sandboxes[0].ready = false;
    replace(&mut observed, exited("foo1", 0));
    assert_eq!(starts(&planned(&pod, &observed)), ["foo2", "foo3"]);
}

#[test]
fn probes_that_failed_kill_and_restart_by_policy() {
    for (policy, restarts) in [("Always", true), ("OnFailure", true), ("Never", false)] {
        for (kind, word, reason) in [
            (ProbeKind::Liveness, "liveness", KillReason::Liveness),
            (ProbeKind::Startup, "startup", KillReason::Startup),
        ] {
            let (pod, observed) = base(policy);
            let mut probes = ProbeResults::default();
            probes.set(id("foo2"), kind, false);
            let plan = plan_with(&pod, &observed, &probes);
            assert_eq!(kills(&plan), ["foo2"]);
            assert_eq!(plan.kill[0].reason, reason);
            let tail = if restarts { ", will be restarted" } else { "" };
            assert_eq!(plan.kill[0].message, format!("Container foo2 failed {word} probe{tail}"));
            assert_eq!(!plan.start.is_empty(), restarts);
        }
    }
    let (pod, observed) = base("Always");
    let mut probes = ProbeResults::default();
    probes.set(id("foo2"), ProbeKind::Readiness, false);
    probes.set(id("foo3"), ProbeKind::Liveness, true);
    assert!(plan_with(&pod, &observed, &probes).is_idle());
}

#[test]
fn a_changed_container_is_replaced_whatever_the_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let (mut pod, observed) = base(policy);
        pod.spec.containers[1].image = "other".to_owned();
        let plan = planned(&pod, &observed);
        assert_eq!((starts(&plan), kills(&plan)), (vec!["foo2"], vec!["foo2"]));
        assert_eq!(plan.kill[0].message, "Container foo2 definition changed, will be restarted");
    }
}

#[test]
fn nothing_starts_in_a_deleted_pod() {
    let (mut pod, mut observed) = base("Always");
    pod.metadata.deletion_timestamp = Some(Time(1));
    replace(&mut observed, exited("foo1", 1));
    assert!(starts(&planned(&pod, &observed)).is_empty());
}

#[test]
fn init_containers_go_one_by_one() {
    let (pod, mut observed) = with_init("Always");
    assert_eq!(starts(&planned(&pod, &observed)), ["foo1", "foo2", "foo3"]);
    replace(&mut observed, running("init3"));
    assert!(planned(&pod, &observed).is_idle());
    observed.containers.retain(|c| c.name == "init1");
    assert_eq!(starts(&planned(&pod, &observed)), ["init2"]);
    observed.containers.clear();
    assert_eq!(starts(&planned(&pod, &observed)), ["init1"]);
    // The last one alone proves those before it done.
    observed.containers = vec![exited("init3", 0)];
    assert_eq!(starts(&planned(&pod, &observed)), ["foo1", "foo2", "foo3"]);
    // Regular containers that run prove all of them done.
    observed.containers = vec![running("foo1"), running("foo2"), running("foo3")];
    assert!(planned(&pod, &observed).is_idle());
}

#[test]
fn a_failed_init_container_starts_again_or_ends_the_pod() {
    for (policy, restarts) in [("Always", true), ("OnFailure", true), ("Never", false)] {
        let (pod, mut observed) = with_init(policy);
        replace(&mut observed, exited("init3", 111));
        let plan = planned(&pod, &observed);
        assert_eq!(starts(&plan), if restarts { vec!["init3"] } else { vec![] }, "{policy}");
        assert_eq!(plan.kill_pod, !restarts);
        replace(&mut observed, in_phase("init3", ContainerPhase::Unknown));
        let plan = planned(&pod, &observed);
        assert_eq!(kills(&plan), if restarts { vec!["init3"] } else { vec![] }, "{policy}");
        assert_eq!(plan.kill_pod, !restarts);
        replace(&mut observed, in_phase("init3", ContainerPhase::Created));
        assert_eq!(starts(&planned(&pod, &observed)), ["init3"]);
    }
}

#[test]
fn a_new_sandbox_starts_with_the_first_init_container() {
    for policy in ["Always", "OnFailure"] {
        let (pod, mut observed) = with_init(policy);
        observed.sandboxes[0].ready = false;
        let plan = planned(&pod, &observed);
        assert!(plan.create_sandbox);
        assert_eq!(starts(&plan), ["init1"]);
        assert_eq!(plan.prune.len(), 3);
    }
}

#[test]
fn old_runs_of_init_containers_are_pruned_but_for_the_last() {
    let (pod, mut observed) = with_init("Always");
    let older = Instance { id: Arc::from("older"), ..exited("init1", 1) };
    observed.containers.push(older);
    assert_eq!(planned(&pod, &observed).prune, [Arc::from("older")]);
}

#[test]
fn sidecars_start_in_order_and_gate_by_startup_probe() {
    let (mut pod, mut observed) = with_sidecars("Always");
    assert_eq!(starts(&planned(&pod, &observed)), ["foo1", "foo2", "foo3"]);
    observed.containers.retain(|c| c.name == "side1");
    assert_eq!(starts(&planned(&pod, &observed)), ["side2"]);
    pod.spec.init_containers[0].startup_probe = Some(Box::new(Probe::default()));
    assert!(planned(&pod, &observed).is_idle());
    let mut probes = ProbeResults::default();
    probes.set(id("side1"), ProbeKind::Startup, true);
    assert_eq!(starts(&plan_with(&pod, &observed, &probes)), ["side2"]);
    probes.set(id("side1"), ProbeKind::Startup, false);
    let plan = plan_with(&pod, &observed, &probes);
    assert_eq!((starts(&plan), kills(&plan)), (vec!["side1"], vec!["side1"]));
    assert_eq!(plan.kill[0].message, "Init container side1 failed startup probe");
}

#[test]
fn sidecars_are_kept_running_beside_the_others() {
    for policy in ["Always", "OnFailure", "Never"] {
        let (pod, mut observed) = with_sidecars(policy);
        observed.containers.extend(["foo1", "foo2", "foo3"].map(running));
        assert!(planned(&pod, &observed).is_idle());
        replace(&mut observed, exited("side2", 0));
        assert_eq!(starts(&planned(&pod, &observed)), ["side2"]);
        observed.containers.retain(|c| c.name != "side3");
        assert_eq!(starts(&planned(&pod, &observed)), ["side2", "side3"]);
    }
}

#[test]
fn sidecars_end_with_the_work() {
    let (pod, mut observed) = with_sidecars("Never");
    observed.containers.extend(["foo1", "foo2", "foo3"].map(|name| exited(name, 0)));
    replace(&mut observed, exited("side1", 1));
    let plan = planned(&pod, &observed);
    assert!(plan.kill_pod && plan.start.is_empty());
}

#[test]
fn a_sidecars_liveness_and_definition_count() {
    let (mut pod, mut observed) = with_sidecars("Never");
    observed.containers.extend(["foo1", "foo2", "foo3"].map(running));
    let mut probes = ProbeResults::default();
    probes.set(id("side2"), ProbeKind::Liveness, false);
    let plan = plan_with(&pod, &observed, &probes);
    assert_eq!((starts(&plan), kills(&plan)), (vec!["side2"], vec!["side2"]));
    assert_eq!(plan.kill[0].message, "Init container side2 failed liveness probe");
    pod.spec.init_containers[0].image = "other".to_owned();
    let plan = planned(&pod, &observed);
    assert_eq!((starts(&plan), kills(&plan)), (vec!["side1"], vec!["side1"]));
}

#[test]
fn ephemeral_containers_start_once_and_first() {
    let (mut pod, mut observed) = with_init("Always");
    pod.spec.ephemeral_containers = vec![container("debug")];
    observed.containers.clear();
    assert_eq!(starts(&planned(&pod, &observed)), ["debug", "init1"]);
    observed.containers.push(exited("debug", 1));
    assert_eq!(starts(&planned(&pod, &observed)), ["init1"]);
}

#[test]
fn back_off_holds_a_container_and_what_waits_for_it() {
    let (pod, mut observed) = with_init("Always");
    replace(&mut observed, exited("init3", 1));
    let mut backoff = Backoff::new(BackoffPolicy::CRASH_LOOP);
    let key = BackoffKey::of(&pod.spec.init_containers[2]);
    backoff.advance(key, at(90), at(90));
    let now = |seconds| Now { boot: at(seconds), wall_nanos: 0 };
    let (probes, sizes) = (ProbeResults::default(), Sizes::default());
    let inputs = |now| Inputs {
        pod: &pod,
        observed: &observed,
        probes: &probes,
        backoff: &backoff,
        restarting_all: false,
        sizes: &sizes,
        now,
    };
    let waiting = plan(&inputs(now(105)));
    assert!(waiting.is_idle());
    let expected = Wait { name: "init3".to_owned(), until: at(110), delay: at(10) };
    assert_eq!(waiting.waits, [expected]);
    let due = plan(&inputs(now(110)));
    assert_eq!(starts(&due), ["init3"]);
    assert_eq!(due.start[0].after_end, Some(at(100)));
}

#[test]
fn exit_code_rules_come_before_policies() {
    let rule = |operator: &str, values: &[i32], action: &str| {
        let codes = ContainerRestartRuleOnExitCodes { operator: operator.into(), values: values.to_vec() };
        ContainerRestartRule { action: action.into(), exit_codes: Some(Box::new(codes)) }
    };
    for (rule, code, restarts) in [
        (rule("In", &[42], "Restart"), 42, true),
        (rule("In", &[42], "Restart"), 1, false),
        (rule("NotIn", &[1], "Restart"), 42, true),
        (rule("In", &[42], "RestartAllContainers"), 42, true),
    ] {
        let (mut pod, mut observed) = base("Always");
        pod.spec.containers[1].restart_policy = Some("Never".to_owned());
        pod.spec.containers[1].restart_policy_rules = vec![rule];
        replace(&mut observed, exited("foo2", code));
        assert_eq!(!planned(&pod, &observed).start.is_empty(), restarts, "{code}");
    }
}

#[test]
fn a_restart_of_all_removes_everything_its_source_last() {
    let (mut pod, mut observed) = with_init("Never");
    let codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: vec![42] };
    let action = RESTART_ALL.to_owned();
    pod.spec.containers[0].restart_policy_rules =
        vec![ContainerRestartRule { action, exit_codes: Some(Box::new(codes)) }];
    pod.spec.containers[0].restart_policy = Some("Never".to_owned());
    observed.containers.extend([exited("foo1", 42), running("foo2"), exited("foo3", 0)]);
    let (backoff, probes) = (Backoff::new(BackoffPolicy::CRASH_LOOP), ProbeResults::default());
    let now = Now { boot: at(1000), wall_nanos: 0 };
    let plan = plan(&Inputs {
        pod: &pod,
        observed: &observed,
        probes: &probes,
        backoff: &backoff,
        restarting_all: true,
        sizes: &Sizes::default(),
        now,
    });
    let resets: Vec<_> = plan.reset.iter().map(|r| (r.name.as_str(), r.kill)).collect();
    assert_eq!(
        resets,
        [
            ("foo2", true),
            ("foo3", false),
            ("init1", false),
            ("init2", false),
            ("init3", false),
            ("foo1", false)
        ]
    );
    assert!(plan.start.is_empty() && !plan.kill_pod);
}

mod resizes {
    //! What a container gets while it runs, and what it has to start anew for.

    use super::*;
    use crate::api::ContainerResizePolicy;
    use crate::pod::resize::Amounts;
    use crate::qos::PodCgroupLimits;

    /// Three containers with a CPU limit of half a core and 64 MiB, and what was set last.
    fn sized() -> (Pod, Observation, Sizes) {
        let (mut pod, observed) = base("Always");
        let mut sizes = Sizes::default();
        for container in &mut pod.spec.containers {
            for (name, value) in [("cpu", "500m"), ("memory", "64Mi")] {
                container.resources.limits.insert(name.to_owned(), value.parse().unwrap());
            }
        }
        for instance in &observed.containers {
            let container = pod.container(&instance.name).unwrap();
            sizes.containers.insert(instance.id.clone(), Amounts::of(&pod, container));
        }
        (pod, observed, sizes)
    }

    fn limit(pod: &mut Pod, at: usize, name: &str, value: &str) {
        pod.spec.containers[at].resources.limits.insert(name.to_owned(), value.parse().unwrap());
    }

    fn planned(pod: &Pod, observed: &Observation, sizes: &Sizes) -> Plan {
        let backoff = Backoff::new(BackoffPolicy::CRASH_LOOP);
        let now = Now { boot: at(1000), wall_nanos: 0 };
        let probes = &ProbeResults::default();
        plan(&Inputs { pod, observed, probes, backoff: &backoff, restarting_all: false, sizes, now })
    }

    #[test]
    fn containers_that_give_come_before_those_that_take() {
        let (mut pod, observed, mut sizes) = sized();
        assert!(super::planned(&pod, &observed).is_idle() && planned(&pod, &observed, &sizes).is_idle());
        limit(&mut pod, 0, "memory", "128Mi");
        limit(&mut pod, 2, "cpu", "100m");
        sizes.wanted = PodCgroupLimits { memory: Some(5), ..PodCgroupLimits::default() };
        let plan = planned(&pod, &observed, &sizes);
        let resize = plan.resize.clone().unwrap();
        let names: Vec<&str> = resize.containers.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["foo3", "foo1"]);
        assert_eq!(resize.containers[1].to.memory_limit, 128 << 20);
        assert_eq!((resize.from.memory, resize.to.memory), (None, Some(5)));
        assert!(resize.lowers_memory(), "a limit where there was none");
        assert!(plan.kill.is_empty() && plan.start.is_empty() && !plan.is_idle());
    }

    #[test]
    fn a_policy_wants_a_container_to_start_anew() {
        let (mut pod, observed, sizes) = sized();
        let policy = |name: &str| ContainerResizePolicy {
            resource_name: name.to_owned(),
            restart_policy: "RestartContainer".to_owned(),
        };
        pod.spec.containers[0].resize_policy = vec![policy("memory")];
        limit(&mut pod, 0, "cpu", "1");
        assert!(planned(&pod, &observed, &sizes).kill.is_empty(), "CPU may change while it runs");
        limit(&mut pod, 0, "memory", "32Mi");
        let plan = planned(&pod, &observed, &sizes);
        assert_eq!(plan.kill[0].message, "Container foo1 resize requires restart");
        assert_eq!((plan.kill.len(), plan.start.len(), plan.start[0].name.as_str()), (1, 1, "foo1"));
        assert!(plan.resize.is_none(), "the new one is made as it should be");
    }

    #[test]
    fn sidecars_and_init_containers_that_run_are_resized_too() {
        let (mut pod, mut observed, mut sizes) = sized();
        pod.spec.init_containers = vec![sidecar("side"), container("init")];
        observed.containers = vec![running("side"), running("init")];
        for name in ["side", "init"] {
            sizes.containers.insert(id(name), Amounts { memory_limit: 7, ..Amounts::default() });
        }
        let plan = planned(&pod, &observed, &sizes);
        let names: Vec<String> = plan.resize.unwrap().containers.into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["init", "side"]);
        // What does not run is made as it should be, and a new sandbox makes all of it anew.
        replace(&mut observed, exited("side", 1));
        let plan = planned(&pod, &observed, &sizes);
        assert_eq!(plan.resize.unwrap().containers.len(), 1);
        observed.sandboxes[0].ready = false;
        assert!(planned(&pod, &observed, &sizes).resize.is_none());
    }
}
