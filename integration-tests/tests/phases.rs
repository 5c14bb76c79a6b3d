//! kill -9 of the runtime, a shim, a maker and an image worker in each phase of a sandbox, a container, an exec and a
//! pull; where `chaos` takes random moments, gates make sure here that the phase is the one meant.
//!
//! Held each time: no call hangs, the container's end is told with the right reason, the next start of the runtime puts
//! in order what the last one left, and once the pods are removed nothing is left.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

#[path = "phases/gates.rs"]
mod gates;
#[path = "phases/node.rs"]
mod node;

use std::time::Duration;

use coracle_cri::v1::*;
use coracle_cri::{ImageService as _, RuntimeService as _};
use coracle_integration_tests::sys;
use coracle_runtime::testing::Fault;
use node::Node;

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(90);

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Runtime,
    Shim,
    Maker,
}

use Victim::{Maker, Runtime, Shim};

/// Kills; `maker` is who waits at the gate, which then opens. A runtime is started again.
fn strike(node: &mut Node, victim: Victim, gate: &str, maker: u32) {
    match victim {
        Runtime => node.kill_agent(),
        Shim => sys::kill(node.shim()).unwrap(),
        Maker => sys::kill(maker).unwrap(),
    }
    node.gates.open(gate);
    if victim == Runtime {
        node.begin();
    }
}

/// A pod lives and ends as if nothing had been.
fn good_pod(node: &Node, when: &str) {
    let sandbox = node.run_sandbox("good").unwrap_or_else(|error| panic!("{when}: {error}"));
    let id = node.create(&sandbox, "good");
    node.start_container(&id).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(node.exec(&id).unwrap(), 3, "{when}");
    node.stop_container(&id).unwrap();
    assert_eq!(node.end_of(&id), (137, "Error".to_owned()), "{when}");
    node.clear(when);
}

/// A running container in a pod of its own.
fn running(node: &Node, name: &str) -> String {
    let sandbox = node.run_sandbox(name).unwrap();
    let id = node.create(&sandbox, name);
    node.start_container(&id).unwrap();
    id
}

fn sandboxes(node: &mut Node) {
    for (gate, victim) in [("net-ADD", Runtime), ("net-ADD", Shim), ("net-DEL", Runtime), ("net-DEL", Shim)] {
        let when = format!("{victim:?} killed at {gate}");
        let pod = node.pod("pod");
        let made = (gate == "net-DEL").then(|| node.run_sandbox("pod").unwrap());
        node.gates.close(gate);
        let call = match made {
            Some(pod_sandbox_id) => node.begin_call(move |client| async move {
                client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id }).await.map(drop)
            }),
            None => node.begin_call(move |client| async move {
                let request = RunPodSandboxRequest { config: Some(pod), ..Default::default() };
                client.run_pod_sandbox(request).await.map(drop)
            }),
        };
        let plugin = node.gates.reached(gate);
        strike(node, victim, gate, plugin);
        let ended = node.end_call(call);
        assert!(victim != Runtime || ended.is_err(), "{when}: {ended:?}");
        node.clear(&when);
        good_pod(node, &when);
    }
}

fn starts(node: &mut Node) {
    for gate in ["create-before", "create-after", "start-before", "start-after"] {
        for victim in [Runtime, Shim, Maker] {
            let when = format!("{victim:?} killed at {gate}");
            let sandbox = node.run_sandbox("pod").unwrap();
            let id = node.create(&sandbox, "pod");
            node.gates.close(gate);
            let container_id = id.clone();
            let call = node.begin_call(move |client| async move {
                client.start_container(StartContainerRequest { container_id }).await
            });
            let maker = node.gates.reached(gate);
            strike(node, victim, gate, maker);
            let ended = node.end_call(call);
            assert!(ended.is_err(), "{when}: {ended:?}");
            let status = node.status(&id);
            if victim == Runtime && status.state() == ContainerState::ContainerRunning {
                // The shim brought the start to its end meanwhile.
                assert_eq!(node.exec(&id).unwrap(), 3, "{when}");
            } else {
                let (code, reason) = node.end_of(&id);
                let is_right = match victim {
                    Shim => reason == "StartError" || (code, reason.as_str()) == (137, "Unknown"),
                    _ => (code, reason.as_str()) == (128, "StartError"),
                };
                assert!(is_right, "{when}: {code} {reason}");
                assert_eq!(node.contained(), 0, "{when}: a process of a container that did not start");
            }
            node.clear(&when);
            good_pod(node, &when);
        }
    }
}

fn lives(node: &mut Node) {
    for stopping in [false, true] {
        for victim in [Runtime, Shim] {
            let when = format!("{victim:?} killed while a container runs, stopping: {stopping}");
            let id = running(node, "pod");
            let container_id = id.clone();
            let call = stopping.then(|| {
                node.begin_call(move |client| async move {
                    // Its program does not heed the signal.
                    client.stop_container(StopContainerRequest { container_id, timeout: 3600 }).await
                })
            });
            std::thread::sleep(Duration::from_millis(if stopping { 300 } else { 0 }));
            strike(node, victim, "none", 0);
            if victim == Runtime {
                assert_eq!(node.status(&id).state(), ContainerState::ContainerRunning, "{when}");
                assert_eq!(node.exec(&id).unwrap(), 3, "{when}");
                node.stop_container(&id).unwrap();
                assert_eq!(node.end_of(&id), (137, "Error".to_owned()), "{when}");
            } else {
                assert_eq!(node.end_of(&id), (137, "Unknown".to_owned()), "{when}");
            }
            if let Some(call) = call {
                let _ = node.end_call(call);
            }
            assert_eq!(node.contained(), 0, "{when}");
            node.clear(&when);
            good_pod(node, &when);
        }
    }
}

fn ends(node: &mut Node) {
    for gate in ["delete-before", "delete-after"] {
        for victim in [Runtime, Shim, Maker] {
            let when = format!("{victim:?} killed at {gate}");
            let id = running(node, "pod");
            node.gates.close(gate);
            let container_id = id.clone();
            let call = node.begin_call(move |client| async move {
                client.stop_container(StopContainerRequest { container_id, timeout: 0 }).await
            });
            let maker = node.gates.reached(gate);
            strike(node, victim, gate, maker);
            let _ = node.end_call(call);
            // The shim wrote the end down before it had the rest taken away.
            assert_eq!(node.end_of(&id), (137, "Error".to_owned()), "{when}");
            node.clear(&when);
            good_pod(node, &when);
        }
    }
}

fn execs(node: &mut Node) {
    for gate in ["exec-before", "exec-after", "running"] {
        for victim in [Runtime, Shim, Maker] {
            if (gate, victim) == ("running", Maker) {
                continue;
            }
            let when = format!("{victim:?} killed at an exec, {gate}");
            let id = running(node, "pod");
            node.gates.close(gate);
            let container_id = id.clone();
            let call = node.begin_call(move |client| async move {
                let cmd = ["/example", "sleep"].map(str::to_owned).to_vec();
                client.exec_sync(ExecSyncRequest { container_id, cmd, timeout: 3600 }).await
            });
            let mut maker = 0;
            if gate == "running" {
                node.wait("the command runs", |node| node.contained() == 2);
            } else {
                maker = node.gates.reached(gate);
            }
            strike(node, victim, gate, maker);
            let ended = node.end_call(call);
            assert!(ended.is_err(), "{when}: {ended:?}");
            if victim == Shim {
                assert_eq!(node.end_of(&id), (137, "Unknown".to_owned()), "{when}");
            } else {
                node.wait(&format!("nothing of the command is left after {when}"), |node| {
                    node.contained() == 1
                });
                assert_eq!(node.status(&id).state(), ContainerState::ContainerRunning, "{when}");
                assert_eq!(node.exec(&id).unwrap(), 3, "{when}");
            }
            node.clear(&when);
            good_pod(node, &when);
        }
    }
}

fn pulls(node: &mut Node) {
    for (number, (part, kills_runtime)) in
        [("/manifests/", false), ("/manifests/", true), ("/blobs/", false), ("/blobs/", true)]
            .into_iter()
            .enumerate()
    {
        let when = format!("a pull cut at {part}, the runtime killed: {kills_runtime}");
        let name = format!("image{number}");
        node.push(&name, 10 + number as u8);
        node.registry
            .fault(&format!("/v2/{name}{part}"), Fault::Stall(if part == "/blobs/" { 100 } else { 0 }));
        let image = Some(node.image(&name));
        let call = node.begin_call(move |client| async move {
            client.pull_image(PullImageRequest { image, ..Default::default() }).await
        });
        let path = format!("{name}{part}");
        node.wait("the registry is asked", |node| {
            node.registry.requests().iter().any(|request| request.path.contains(&path))
        });
        if kills_runtime {
            node.kill_agent();
            node.begin();
        } else {
            node.wait("a worker fetches", |node| node.worker().is_some());
            sys::kill(node.worker().unwrap()).unwrap();
        }
        let ended = node.end_call(call);
        assert!(ended.is_err(), "{when}: {ended:?}");
        node.registry.clear_faults();
        node.pull(&name).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert!(node.worker().is_none(), "{when}");
    }
}

#[test]
fn killed_in_every_phase_nothing_is_left_and_ends_are_told_right() {
    let mut node = Node::start();
    good_pod(&node, "nothing at all");
    sandboxes(&mut node);
    starts(&mut node);
    lives(&mut node);
    ends(&mut node);
    execs(&mut node);
    pulls(&mut node);
    good_pod(&node, "all of it");
    node.finish();
}
