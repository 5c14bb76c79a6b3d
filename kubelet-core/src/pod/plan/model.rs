//! The plan against a model of a runtime: random ends, faults and probe verdicts, then quiet.
//!
//! Whatever happened before, no container ever runs twice at once, init containers stay in order, and once
//! nothing disturbs it any more the pod settles where its policies say.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::api::{Probe, Time};
use crate::backoff::BackoffPolicy;
use crate::pod::observation::Sandbox;
use crate::pod::status::{self, NodeFacts};

/// Something that happens between two syncs.
#[derive(Clone, Debug)]
enum Disturbance {
    Exit {
        container: usize,
        code: i32,
    },
    Verdict {
        container: usize,
        kind: ProbeKind,
        success: bool,
    },
    SandboxDies,
    ForgetEnded,
    /// The next step of the plan after this many fails.
    Fault {
        after: usize,
    },
    Wait {
        seconds: u64,
    },
}

/// A runtime that does what a plan says.
struct Model {
    pod: Pod,
    observed: Observation,
    probes: ProbeResults,
    backoff: Backoff<BackoffKey>,
    boot: u64,
    serial: u64,
}

impl Model {
    fn new(pod: Pod) -> Self {
        Self {
            pod,
            observed: Observation::default(),
            probes: ProbeResults::default(),
            backoff: Backoff::new(BackoffPolicy::CRASH_LOOP),
            boot: 1000,
            serial: 0,
        }
    }

    fn now(&self) -> Now {
        Now { boot: Duration::from_secs(self.boot), wall_nanos: 0 }
    }

    fn plan(&self) -> Plan {
        plan(&Inputs {
            pod: &self.pod,
            observed: &self.observed,
            probes: &self.probes,
            backoff: &self.backoff,
            restarting_all: false,
            sizes: &Sizes::default(),
            now: self.now(),
        })
    }

    fn end(&mut self, id: &str, code: i32) {
        let finished = self.now().boot;
        let mut alive = self.observed.containers.iter_mut().filter(|c| c.phase != ContainerPhase::Exited);
        if let Some(instance) = alive.find(|c| *c.id == *id) {
            let phase = ContainerPhase::Exited;
            *instance = Instance { phase, exit_code: code, finished, ..instance.clone() };
        }
    }

    fn end_all(&mut self, code: i32) {
        let ids: Vec<Arc<str>> = self.observed.alive().map(|c| c.id.clone()).collect();
        ids.iter().for_each(|id| self.end(id, code));
    }

    /// Whether status calls the pod ended, before which no plan is asked for.
    fn is_over(&self) -> bool {
        let status = status::status(&status::Inputs {
            pod: &self.pod,
            observed: &self.observed,
            old: None,
            failures: &BTreeMap::new(),
            probes: &self.probes,
            eviction: None,
            terminal: false,
            restarting_all: false,
            sizes: &Sizes::default(),
            resizing: None,
            start_time: Time(0),
            node: &NodeFacts::default(),
            now: self.now(),
        });
        status::is_terminal_phase(&status.phase)
    }

    /// One sync, whose steps from `fault` on do not happen.
    fn sync(&mut self, fault: Option<usize>) {
        if self.is_over() {
            self.end_all(137);
            return;
        }
        let plan = self.plan();
        let mut left = fault.unwrap_or(usize::MAX);
        let mut step = || {
            let goes = left > 0;
            left = left.saturating_sub(1);
            goes
        };
        if plan.kill_pod {
            if !step() {
                return;
            }
            self.end_all(137);
            self.observed.sandboxes.iter_mut().for_each(|s| s.ready = false);
        }
        for kill in &plan.kill {
            if !plan.kill_pod {
                if !step() {
                    return;
                }
                self.end(&kill.id, 137);
            }
        }
        self.observed.containers.retain(|c| !plan.prune.contains(&c.id));
        if plan.create_sandbox {
            if !step() {
                return;
            }
            let id = self.next_id("sandbox");
            let ips = vec!["10.0.0.1".to_owned()];
            let sandbox = Sandbox { id, ready: true, attempt: plan.attempt, ips, ..Sandbox::default() };
            self.observed.sandboxes.insert(0, sandbox);
        }
        for start in &plan.start {
            let goes = step();
            if goes {
                self.start(start);
            } else if start.kind == ContainerKind::Init {
                return;
            }
        }
    }

    fn start(&mut self, start: &Start) {
        let container = self.pod.container(&start.name).expect("plans name containers of the pod").clone();
        if let Some(end) = start.after_end {
            let now = self.now().boot;
            self.backoff.advance(BackoffKey::of(&container), end, now);
        }
        let restart_count = self.observed.latest(&start.name).map_or(0, |last| last.restart_count + 1);
        let instance = Instance {
            id: self.next_id(&start.name),
            name: start.name.clone(),
            phase: ContainerPhase::Running,
            sandbox_id: self.observed.sandboxes[0].id.clone(),
            restart_count,
            ..Instance::default()
        };
        self.observed.containers.insert(0, instance);
    }

    fn next_id(&mut self, what: &str) -> Arc<str> {
        self.serial += 1;
        Arc::from(format!("{what}-{}", self.serial))
    }

    fn disturb(&mut self, disturbance: &Disturbance) -> Option<usize> {
        let names: Vec<String> = self.pod.all_containers().map(|c| c.name.clone()).collect();
        let alive = |model: &Self, at: usize| {
            let name = &names[at % names.len()];
            let last = model.observed.latest(name).filter(|l| l.phase == ContainerPhase::Running);
            last.map(|l| l.id.clone())
        };
        match disturbance {
            Disturbance::Exit { container, code } => {
                if let Some(id) = alive(self, *container) {
                    self.end(&id, *code);
                }
            }
            Disturbance::Verdict { container, kind, success } => {
                if let Some(id) = alive(self, *container) {
                    self.probes.set(id, *kind, *success);
                }
            }
            Disturbance::SandboxDies => {
                self.end_all(137);
                self.observed.sandboxes.iter_mut().for_each(|s| s.ready = false);
            }
            Disturbance::ForgetEnded => {
                let mut seen: Vec<String> = Vec::new();
                self.observed.containers.retain(|c| {
                    let newest = !seen.contains(&c.name);
                    seen.push(c.name.clone());
                    newest || c.phase != ContainerPhase::Exited
                });
            }
            Disturbance::Fault { after } => return Some(*after),
            Disturbance::Wait { seconds } => self.boot += seconds,
        }
        None
    }

    /// No container twice, no regular one before the init ones are through, one ready sandbox at most.
    fn check(&self) {
        for container in self.pod.all_containers() {
            let alive = self.observed.alive().filter(|c| c.name == container.name).count();
            assert!(alive <= 1, "{} runs {alive} times: {:#?}", container.name, self.observed);
        }
        assert!(self.observed.sandboxes.iter().filter(|s| s.ready).count() <= 1);
        let plain = self.pod.spec.init_containers.iter().filter(|c| !c.is_restartable_init());
        let initializing = plain.filter(|c| self.is_running(&c.name)).count();
        let regular = self.pod.spec.containers.iter().any(|c| self.is_running(&c.name));
        assert!(initializing <= 1 && !(initializing == 1 && regular), "{:#?}", self.observed);
    }

    fn is_running(&self, name: &str) -> bool {
        self.observed.latest(name).is_some_and(|last| last.phase == ContainerPhase::Running)
    }

    /// Lets everything succeed until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.boot += 301;
            for container in self.pod.spec.init_containers.clone() {
                let Some(last) = self.observed.latest(&container.name) else { continue };
                let id = last.id.clone();
                if last.phase == ContainerPhase::Running && !container.is_restartable_init() {
                    self.end(&id, 0);
                } else if last.phase == ContainerPhase::Running
                    && self.probes.get(&id, ProbeKind::Startup).is_none()
                {
                    self.probes.set(id, ProbeKind::Startup, true);
                }
            }
            let plan = self.plan();
            if self.is_over() || (plan.is_idle() && plan.waits.is_empty()) {
                return;
            }
            self.sync(None);
            self.check();
        }
        panic!("does not settle: {:#?} {:#?}", self.plan(), self.observed);
    }
}

fn disturbances() -> impl Strategy<Value = Vec<Disturbance>> {
    let kind = prop_oneof![Just(ProbeKind::Startup), Just(ProbeKind::Liveness), Just(ProbeKind::Readiness)];
    let one = prop_oneof![
        4 => (0..8_usize, prop_oneof![Just(0), Just(1), Just(137)])
            .prop_map(|(container, code)| Disturbance::Exit { container, code }),
        2 => (0..8_usize, kind, any::<bool>())
            .prop_map(|(container, kind, success)| Disturbance::Verdict { container, kind, success }),
        1 => Just(Disturbance::SandboxDies),
        1 => Just(Disturbance::ForgetEnded),
        3 => (0..4_usize).prop_map(|after| Disturbance::Fault { after }),
        3 => (1..400_u64).prop_map(|seconds| Disturbance::Wait { seconds }),
    ];
    prop::collection::vec(one, 0..60)
}

fn pods() -> impl Strategy<Value = Pod> {
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    let own = prop_oneof![3 => Just(None), 1 => Just(Some("Always")), 1 => Just(Some("Never"))];
    let init = prop::collection::vec((any::<bool>(), any::<bool>()), 0..4);
    (policy, init, prop::collection::vec(own, 1..4)).prop_map(|(policy, init, regular)| {
        let mut pod = Pod::default();
        pod.spec.restart_policy = policy.to_owned();
        for (at, (sidecar, probed)) in init.into_iter().enumerate() {
            pod.spec.init_containers.push(Container {
                name: format!("init-{at}"),
                restart_policy: sidecar.then(|| "Always".to_owned()),
                startup_probe: (sidecar && probed).then(|| Box::new(Probe::default())),
                ..Container::default()
            });
        }
        for (at, own) in regular.into_iter().enumerate() {
            let restart_policy = own.map(str::to_owned);
            let name = format!("main-{at}");
            pod.spec.containers.push(Container { name, restart_policy, ..Container::default() });
        }
        pod
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_doubled_and_always_settled(pod in pods(), disturbances in disturbances()) {
        let mut model = Model::new(pod);
        for disturbance in &disturbances {
            let fault = model.disturb(disturbance);
            model.sync(fault);
            model.check();
        }
        model.settle();
        // Settled: each container runs, or has ended for good by its policy.
        let pod = model.pod.clone();
        let over = model.is_over();
        for container in &pod.spec.containers {
            let last = model.observed.latest(&container.name);
            let ended_for_good = last.is_some_and(|l| l.phase == ContainerPhase::Exited
                && !restart::restarts_after(container, &pod.spec, l.exit_code));
            prop_assert!(over || model.is_running(&container.name) || ended_for_good, "{:#?}", model.observed);
        }
    }
}
