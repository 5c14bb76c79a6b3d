//! An API server that answers late, wrongly, in part or not at all, while deployments roll out on a node of ours: a
//! proxy between the two misbehaves, one way after another, and the node must neither lose nor restart anything, nor
//! ask in a loop, nor say the same thing again and again.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves it out.
//! `CORACLE_FAULT_SECONDS` says how long each fault lasts.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]
#![allow(clippy::print_stdout, reason = "what each fault cost is printed")]

#[path = "support/api_proxy.rs"]
mod api_proxy;
#[path = "support/rollouts.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api_proxy::{ApiProxy, Fault, Seen};
use coracle_integration_tests::random::number;
use support::{Containers, LIMIT, NODE, Rollouts, SERVICE};

/// A node of ours behind the proxy, with a deployment that changes and one that must not.
struct Scene {
    rollouts: Rollouts,
    proxy: ApiProxy,
    still: Containers,
    version: u64,
}

impl Scene {
    fn start(name: &str) -> Self {
        let rollouts = Rollouts::start(name);
        rollouts.create("web", 3);
        rollouts.create("still", 2);
        rollouts.settle("web", "pods are ready");
        rollouts.settle("still", "pods are ready");
        let proxy = ApiProxy::start(&rollouts.cluster, NODE);
        proxy.lead(&rollouts.cluster);
        // What is connected already goes on without the proxy.
        let machine = &rollouts.cluster.node(NODE).unwrap().machine;
        machine.kill_service(SERVICE).unwrap();
        machine.start_service_again(SERVICE).unwrap();
        let leads = |_: &_| Ok(proxy.seen().iter().any(|seen| seen.path.contains("/pods")));
        rollouts.cluster.wait("the proxy is asked", LIMIT, leads, || rollouts.table()).unwrap();
        let still = rollouts.told("still").unwrap();
        Self { rollouts, proxy, still, version: 0 }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.rollouts.cluster.node(NODE).unwrap().machine.log_of(SERVICE)).unwrap()
    }

    /// Lets the fault be for a while in which a rollout begins, and holds what must be true afterwards.
    fn suffer(&mut self, name: &str, begin: impl FnOnce(&ApiProxy)) {
        let (said, asked) = (self.log().lines().count(), self.proxy.seen().len());
        let connections = self.proxy.connections();
        self.version += 1;
        begin(&self.proxy);
        let begun = Instant::now();
        self.rollouts.roll("web", self.version);
        let length = Duration::from_secs(number("CORACLE_FAULT_SECONDS", 12));
        while begun.elapsed() < length {
            self.holds(name);
            std::thread::sleep(Duration::from_millis(500));
        }
        let requests = self.proxy.seen().split_off(asked);
        let connections = self.proxy.connections() - connections;
        self.proxy.set(Fault::None);
        println!("{name}: {} requests and {connections} connections in {length:?}", requests.len());
        self.rollouts.settle("web", name);
        self.rollouts.settle("still", name);
        self.agrees(name);
        self.holds(name);
        self.rollouts.assert_no_restarts("web", name);
        self.rollouts.assert_no_restarts("still", name);
        assert_eq!(self.rollouts.told("still").unwrap(), self.still, "{name}: pods were replaced");
        println!("{name}: settled {:?} after its end", begun.elapsed() - length);
        assert_bounded(name, &requests, length);
        assert!(connections <= 40, "{name}: {connections} connections in {length:?}");
        let log = self.log();
        let lines: Vec<&str> = log.lines().skip(said).collect();
        assert_told_once(name, &lines);
    }

    /// Waits until the API server says of the containers that run what is so.
    fn agrees(&self, when: &str) {
        let is_so = |_: &_| {
            let mut told = self.rollouts.told("web")?;
            told.extend(self.still.clone());
            Ok(told == self.rollouts.running())
        };
        self.rollouts.cluster.wait(when, LIMIT, is_so, || self.rollouts.table()).unwrap();
    }

    fn holds(&self, when: &str) {
        let running = self.rollouts.running();
        let lost: Vec<_> = self.still.iter().filter(|(uid, id)| running.get(*uid) != Some(id)).collect();
        assert!(lost.is_empty(), "{when}: {lost:?} ended");
    }
}

/// No request is repeated in a loop: the same one is made at most once a second, and twice as often at first.
fn assert_bounded(name: &str, requests: &[Seen], length: Duration) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for seen in requests {
        let path = seen.path.split('?').next().unwrap_or_default();
        *counts.entry(format!("{} {path}", seen.method)).or_default() += 1;
    }
    let mut most: Vec<_> = counts.iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    println!("{name}: asked most often: {:?}", &most[..most.len().min(4)]);
    let bound = length.as_secs() as usize + 6;
    for (request, count) in counts {
        // Events and tokens are a request each, several for every pod that comes or goes.
        let bound = if request.starts_with("POST") { bound * 4 } else { bound };
        assert!(count <= bound, "{name}: {count} times {request} in {length:?}");
    }
}

/// Nothing is said more than a few times: a change of state is told once, and each watch has its own.
fn assert_told_once(name: &str, lines: &[&str]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in lines {
        let level = line.split_whitespace().nth(1).unwrap_or_default();
        if matches!(level, "WARN" | "ERROR") {
            // Without the time.
            let words = line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
            *counts.entry(words).or_default() += 1;
        }
    }
    println!("{name}: said {} lines, of which warn {counts:#?}", lines.len());
    for (line, count) in &counts {
        assert!(*count <= 2, "{name}: said {count} times: {line}");
    }
    assert!(counts.values().sum::<usize>() <= 25, "{name}: a fault is told once, not in a loop");
}

#[test]
fn whatever_the_api_server_answers_nothing_is_lost_and_nothing_loops() {
    let mut scene = Scene::start("faults");
    let set = |fault: Fault| move |proxy: &ApiProxy| proxy.set(fault);
    scene.suffer("late answers", set(Fault::Delay(Duration::from_secs(3))));
    scene.suffer("401", set(Fault::Refuse(401, "Unauthorized", None)));
    scene.suffer("403", set(Fault::Refuse(403, "Forbidden", None)));
    scene.suffer("409", set(Fault::RefuseWrites(409, "Conflict")));
    scene.suffer("410 in watches", set(Fault::EndWatches(410, "Expired")));
    scene.suffer("410 in lists", set(Fault::RefuseLists(410, "Expired")));
    scene.suffer("429", set(Fault::Refuse(429, "TooManyRequests", Some(2))));
    scene.suffer("500", set(Fault::Refuse(500, "InternalError", None)));
    scene.suffer("503", set(Fault::Refuse(503, "ServiceUnavailable", None)));
    scene.suffer("cut watches", set(Fault::CutWatches(600)));
    scene.suffer("closed connections", set(Fault::CloseConnections));
    scene.suffer("stalled connections", ApiProxy::stall_connections);
    let Scene { rollouts, proxy, .. } = scene;
    rollouts.cluster.api.delete(&format!("{}/still", support::DEPLOYMENTS)).unwrap();
    rollouts.delete("web");
    drop(proxy);
}

/// A watch that is open already is met by a fault only when it is asked for anew.
#[test]
fn watches_that_break_under_a_fault_come_back() {
    let mut scene = Scene::start("broken");
    for (name, fault) in [
        ("500 after a break", Fault::Refuse(500, "InternalError", None)),
        ("410 in watches after a break", Fault::EndWatches(410, "Expired")),
        ("410 in lists after a break", Fault::RefuseLists(410, "Expired")),
        ("401 after a break", Fault::Refuse(401, "Unauthorized", None)),
        ("429 after a break", Fault::Refuse(429, "TooManyRequests", Some(2))),
        ("cut watches after a break", Fault::CutWatches(600)),
    ] {
        scene.suffer(name, |proxy| {
            proxy.set(Fault::CloseConnections);
            proxy.set(fault);
        });
    }
    let Scene { rollouts, proxy, .. } = scene;
    rollouts.cluster.api.delete(&format!("{}/still", support::DEPLOYMENTS)).unwrap();
    rollouts.delete("web");
    drop(proxy);
}

#[test]
fn an_object_with_fields_of_the_wrong_type_is_told_once_and_passed_over() {
    let mut scene = Scene::start("wrong-type");
    let line = concat!(
        r#"{"type":"ADDED","object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"wrong","#,
        r#""namespace":"default","uid":"0-0","resourceVersion":"1"},"spec":{"containers":"none"}}}"#,
        "\n"
    );
    for turn in ["first", "again"] {
        scene.suffer(turn, |proxy| {
            proxy.set(Fault::CloseConnections);
            proxy.set(Fault::InsertIntoPods(line.to_owned()));
        });
    }
    let log = scene.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("default/wrong")).collect();
    assert!(told.len() == 1 && told[0].contains("cannot be read"), "{told:?}");
    let Scene { rollouts, proxy, .. } = scene;
    rollouts.cluster.api.delete(&format!("{}/still", support::DEPLOYMENTS)).unwrap();
    rollouts.delete("web");
    drop(proxy);
}
