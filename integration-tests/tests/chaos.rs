//! The agent is killed with -9 at random moments while pods come and go.
//!
//! Held: a pod that nobody touched keeps its process, no process is doubled, what is asked for runs, and
//! nothing is left once the pods are gone. `CORACLE_CHAOS_MOMENTS` sets how many moments (`cargo xtask chaos`
//! takes 200); the seed of a run is printed, and `CORACLE_CHAOS_SEED` repeats its choices.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use support::{Fixture, LIMIT, pod};

/// A small generator, so that a run can be repeated: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn manifest(fixture: &Fixture, name: &str, on_bridge: bool) -> String {
    let mark = format!("/marks/{name}");
    let volumes = format!(
        "    volumeMounts: [{{name: marks, mountPath: /marks}}]\n  volumes:\n  - {{name: marks, hostPath: {{path: {}}}}}\n",
        fixture.marks.display()
    );
    let text = pod(name, &["mark", &mark], &volumes);
    if on_bridge { text.replace("hostNetwork: true", "hostNetwork: false") } else { text }
}

/// The processes of each pod that should run, or what is wrong with them.
fn processes(fixture: &Fixture, wanted: &BTreeSet<String>) -> Result<BTreeMap<String, u32>, String> {
    let mut all = BTreeMap::new();
    for name in wanted {
        match fixture.node.processes_with(&format!("/marks/{name}")).as_slice() {
            [pid] => all.insert(name.clone(), *pid),
            others => return Err(format!("{name} has processes {others:?}")),
        };
    }
    let everything = fixture.node.processes_with("/marks/chaos");
    if everything.len() == wanted.len() {
        Ok(all)
    } else {
        Err(format!("{} processes for {} pods", everything.len(), wanted.len()))
    }
}

#[test]
fn no_container_is_lost_or_doubled_when_the_agent_is_killed() {
    let seed = number("CORACLE_CHAOS_SEED", u64::from(std::process::id()) * 2_654_435_761 + 1);
    let moments = number("CORACLE_CHAOS_MOMENTS", 8);
    println!("seed {seed}, {moments} moments");
    let mut random = Random(seed);
    let mut fixture = Fixture::start("chaos");
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for number in 0..4 {
        let name = format!("chaos-stay{number}x");
        fixture.put(&format!("{name}.yaml"), &manifest(&fixture, &name, number == 0));
        wanted.insert(name);
    }
    fixture.node.wait("the first pods run", LIMIT, |node| Ok(node.running()? == 4)).unwrap();
    let stay = processes(&fixture, &wanted).unwrap();

    let mut made = 0;
    for moment in 0..moments {
        for _ in 0..=random.below(3) {
            let transient: Vec<String> =
                wanted.iter().filter(|name| name.contains("come")).cloned().collect();
            if transient.len() > 5 || (!transient.is_empty() && random.below(2) == 0) {
                let name = &transient[random.below(transient.len() as u64) as usize];
                fixture.remove(&format!("{name}.yaml"));
                wanted.remove(name);
            } else {
                let name = format!("chaos-come{made}x");
                made += 1;
                fixture.put(&format!("{name}.yaml"), &manifest(&fixture, &name, random.below(4) == 0));
                wanted.insert(name);
            }
        }
        std::thread::sleep(Duration::from_millis(random.below(400)));
        fixture.node.kill_agent().unwrap();
        fixture.node.start_agent().unwrap();
        // Every fourth time all must have come to rest; else the next kill meets whatever is under way.
        if moment % 4 == 3 || moment + 1 == moments {
            let settled = fixture.node.wait("the node settles", LIMIT, |node| {
                Ok(node.running()? == wanted.len() && node.pods()?.len() == wanted.len())
            });
            settled.unwrap_or_else(|error| panic!("moment {moment}, seed {seed}: {error}"));
            let deadline = std::time::Instant::now() + LIMIT;
            let now = loop {
                match processes(&fixture, &wanted) {
                    Ok(now) => break now,
                    Err(error) if std::time::Instant::now() > deadline => {
                        panic!("moment {moment}, seed {seed}: {error}");
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            };
            for (name, pid) in &stay {
                assert_eq!(now.get(name), Some(pid), "moment {moment}, seed {seed}: {name} was restarted");
            }
        }
    }
    fixture.finish();
}
