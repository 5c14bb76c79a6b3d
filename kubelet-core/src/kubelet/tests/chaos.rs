//! Long random trouble: faults of every kind, ends, dead sandboxes, killed agents. While it lasts no container
//! runs twice; after it every pod settles, and leaves nothing behind when it goes.

use coracle_cri::Status;
use coracle_cri::testing::{Fault, Method};
use coracle_cri::v1::ContainerState;

use super::*;
use crate::api::{ExecAction, Probe};

const METHODS: [Method; 13] = [
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
    Method::GetContainerEvents,
    Method::ExecSync,
];

/// A small generator, so that a failure is found again by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % below
    }
}

fn pods() -> Vec<Pod> {
    let mut plain = pod("plain");
    plain.spec.containers.push(container("second"));
    let mut initialized = pod("initialized");
    initialized.spec.init_containers = vec![container("setup"), sidecar("proxy")];
    let exec = Some(Box::new(ExecAction { command: vec!["check".into()] }));
    let check =
        Probe { exec, period_seconds: 5, failure_threshold: 3, timeout_seconds: 1, ..Probe::default() };
    initialized.spec.containers[0].readiness_probe = Some(Box::new(check.clone()));
    initialized.spec.containers[0].liveness_probe = Some(Box::new(check));
    vec![plain, initialized]
}

/// No two instances of one container of one pod run at once.
fn assert_single(fake: &FakeRuntime, seed: u64) {
    let mut seen = std::collections::BTreeSet::new();
    for container in fake.containers() {
        if container.status.state() == ContainerState::ContainerRunning {
            let name = container.status.metadata.as_ref().unwrap().name.clone();
            let key = (container.pod.clone(), name);
            assert!(seen.insert(key), "seed {seed}: two of {container:?} run: {fake:#?}");
        }
    }
}

fn disturb(bench: &Bench, random: &mut Random) {
    let method = METHODS[random.next(METHODS.len())];
    let times = u32::try_from(1 + random.next(3)).unwrap();
    match random.next(8) {
        0 => bench.fake.inject(Fault::fail(method, Status::unavailable("chaos")).times(times)),
        1 => bench.fake.inject(Fault::lose_response(method, Status::unavailable("chaos")).times(times)),
        2 => bench.fake.inject(Fault::hang(method).times(1)),
        3 => bench.fake.inject(Fault::delay(method, Duration::from_secs(3)).times(times)),
        4 | 5 => {
            let running = bench.fake.containers();
            let mut running = running.iter().filter(|c| c.status.state() == ContainerState::ContainerRunning);
            if let Some(container) = running.nth(random.next(4)) {
                bench.fake.exit_container(&container.status.id, i32::try_from(random.next(2)).unwrap());
            }
        }
        6 => {
            let sandboxes = bench.fake.sandboxes();
            if let Some(sandbox) = sandboxes.get(random.next(4)) {
                bench.fake.kill_sandbox(&sandbox.status.id);
            }
        }
        _ => {
            bench.fake.set_available(false);
            bench.fake.set_available(true);
        }
    }
}

async fn trouble(seed: u64) {
    let mut random = Random(seed);
    let mut bench = Bench::new().await;
    bench.fake.script_container("setup", [coracle_cri::testing::Script::exits(0)]);
    for _ in 0..30 {
        let wanted: Vec<Pod> = pods().into_iter().filter(|_| random.next(5) > 0).collect();
        bench.desire(wanted);
        disturb(&bench, &mut random);
        if random.next(10) == 0 {
            bench = bench.restart().await;
        }
        let pause = Duration::from_millis(u64::try_from(random.next(20_000)).unwrap());
        let fake = bench.fake.clone();
        let watched = fake.wait_until(LONG, |fake| {
            assert_single(fake, seed);
            false
        });
        let _ = tokio::time::timeout(pause, watched).await;
    }
    bench.fake.clear_faults();
    bench.fake.release();
    bench.desire(pods());
    for pod in ["plain", "initialized"] {
        bench.until(pod, is_running).await;
    }
    assert_single(&bench.fake, seed);
    bench.desire([]);
    for pod in ["plain", "initialized"] {
        bench.until_gone(pod).await;
    }
    bench.fake.wait_until(LONG, |f| f.sandboxes().is_empty() && f.containers().is_empty()).await;
    assert!(bench.disk.prepared.lock().unwrap().is_empty(), "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn pods_come_through_trouble_whole() {
    for seed in 0..40 {
        trouble(seed).await;
    }
}
