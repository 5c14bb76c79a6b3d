//! Processes of the node are killed with -9 at random moments while pods come and go: the agent, shims, makers,
//! image workers, each in a test of its own.
//!
//! Held: a pod whose own processes nobody touched keeps them, no process is doubled, what is asked for runs, and
//! nothing is left once the pods are gone. `CORACLE_CHAOS_MOMENTS` sets how many moments (`cargo xtask chaos`
//! takes 200); the seed of a run is printed, and `CORACLE_CHAOS_SEED` repeats its choices.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]
#![allow(clippy::print_stdout, reason = "the seed of a run is printed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_integration_tests::random::{Random, number};
use coracle_integration_tests::victims::{Victim, children, command_line};
use coracle_integration_tests::{Executables, example_image, sys};
use support::{Fixture, LIMIT, pod};

/// Pods that were hit wait for the kubelet's back-off, which doubles from ten seconds.
const SETTLE: Duration = Duration::from_secs(240);
/// An image that nobody runs, so that only its load is at stake.
const LOADED: &str = "example.coracle/loaded:1";

/// A node under attack.
struct Chaos {
    fixture: Fixture,
    random: Random,
    victim: Victim,
    /// The beginning of the names of this test's pods.
    prefix: String,
    wanted: BTreeSet<String>,
    /// The processes of the pods that nobody touches.
    stay: BTreeMap<String, u32>,
    made: u64,
    killed: u64,
    archive: PathBuf,
}

impl Chaos {
    fn start(victim: Victim, seed: u64) -> Self {
        let prefix = format!("{victim:?}").to_lowercase();
        let fixture = Fixture::start(&format!("chaos-{prefix}"));
        let archive = fixture.node.disk.join("loaded.tar");
        example_image::write_as(LOADED, 400, &Executables::of_this_build().example, &archive).unwrap();
        let (wanted, stay) = (BTreeSet::new(), BTreeMap::new());
        let random = Random::new(seed);
        let mut chaos = Self { fixture, random, victim, prefix, wanted, stay, made: 0, killed: 0, archive };
        for number in 0..4 {
            let name = format!("{}-stay{number}x", chaos.prefix);
            chaos.put(&name, number == 0);
        }
        chaos.fixture.node.wait("the first pods run", LIMIT, |node| Ok(node.running()? == 4)).unwrap();
        chaos.stay = chaos.processes().unwrap();
        chaos
    }

    fn put(&mut self, name: &str, on_bridge: bool) {
        let mark = format!("/marks/{name}");
        let volumes = format!(
            "    volumeMounts: [{{name: marks, mountPath: /marks}}]\n  volumes:\n  - {{name: marks, hostPath: {{path: {}}}}}\n",
            self.fixture.marks.display()
        );
        let text = pod(name, &["mark", &mark], &volumes);
        let text = if on_bridge { text.replace("hostNetwork: true", "hostNetwork: false") } else { text };
        self.fixture.put(&format!("{name}.yaml"), &text);
        self.wanted.insert(name.to_owned());
    }

    /// Lets a few pods come and go.
    fn churn(&mut self) {
        for _ in 0..=self.random.below(3) {
            let transient: Vec<String> =
                self.wanted.iter().filter(|name| name.contains("come")).cloned().collect();
            if transient.len() > 5 || (!transient.is_empty() && self.random.below(2) == 0) {
                let name = self.random.one_of(&transient).unwrap();
                self.fixture.remove(&format!("{name}.yaml"));
                self.wanted.remove(&name);
            } else {
                let name = format!("{}-come{}x", self.prefix, self.made);
                self.made += 1;
                let on_bridge = self.random.below(4) == 0;
                self.put(&name, on_bridge);
            }
        }
    }

    fn strike(&mut self) {
        match self.victim {
            Victim::Agent => {
                std::thread::sleep(Duration::from_millis(self.random.below(400)));
                self.fixture.node.kill_agent().unwrap();
                self.fixture.node.start_agent().unwrap();
                self.killed += 1;
            }
            Victim::Shim => {
                std::thread::sleep(Duration::from_millis(self.random.below(400)));
                self.kill_one(Duration::from_secs(2));
            }
            // These live for a moment, so one is waited for.
            Victim::Maker => self.kill_one(Duration::from_secs(2)),
            Victim::Worker => self.load(),
        }
    }

    /// Kills one of the victims that comes within this time, at a random moment of its life.
    fn kill_one(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let mut found = self.victim.find(&self.fixture.node);
            found.retain(|pid| !self.is_spared(*pid));
            let Some(pid) = self.random.one_of(&found) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let line = command_line(pid);
            if self.victim != Victim::Shim {
                std::thread::sleep(Duration::from_millis(self.random.below(25)));
            }
            // Still the same: what has ended meanwhile was not there to be killed.
            if !line.is_empty() && command_line(pid) == line && sys::kill(pid).is_ok() {
                self.killed += 1;
                return;
            }
        }
    }

    /// Shims of the pods that must keep their processes.
    fn is_spared(&self, pid: u32) -> bool {
        self.victim == Victim::Shim
            && children(pid).iter().any(|child| self.stay.values().any(|stay| stay == child))
    }

    /// Loads an image while its worker or unpacker is killed; the next load makes up for it.
    fn load(&mut self) {
        let mut load = Command::new(Executables::of_this_build().coracle)
            .args(["images", "load"])
            .arg(&self.archive)
            .arg("--state-dir")
            .arg(&self.fixture.node.state)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let before = self.killed;
        self.kill_one(Duration::from_secs(2));
        let is_loaded = load.wait().unwrap().success();
        assert!(is_loaded || self.killed > before, "a load failed although nobody was killed");
        self.fixture.node.ask(&["images", "load", &self.archive.to_string_lossy()]).unwrap();
        assert!(self.fixture.node.ask(&["images", "ls"]).unwrap().contains("example.coracle/loaded"));
        self.fixture.node.ask(&["images", "rm", LOADED]).unwrap();
        for folder in ["tmp", "ingest"] {
            let folder = self.fixture.node.disk.join("data/images").join(folder);
            let left: Vec<_> = std::fs::read_dir(&folder).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "left of a killed load: {left:?}");
        }
    }

    /// The processes of each pod that should run, or what is wrong with them.
    fn processes(&self) -> Result<BTreeMap<String, u32>, String> {
        let mut all = BTreeMap::new();
        for name in &self.wanted {
            match self.fixture.node.processes_with(&format!("/marks/{name}")).as_slice() {
                [pid] => all.insert(name.clone(), *pid),
                others => return Err(format!("{name} has processes {others:?}")),
            };
        }
        let everything = self.fixture.node.processes_with(&format!("/marks/{}-", self.prefix));
        if everything.len() == self.wanted.len() {
            Ok(all)
        } else {
            Err(format!("{} processes for {} pods", everything.len(), self.wanted.len()))
        }
    }

    /// Waits until every pod that is asked for runs, each with one process, and holds the untouched to theirs.
    fn settle(&mut self, when: &str) {
        let wanted = self.wanted.len();
        let settled = self.fixture.node.wait("the node settles", SETTLE, |node| {
            Ok(node.running()? == wanted && node.pods()?.len() == wanted)
        });
        settled.unwrap_or_else(|error| panic!("{when}: {error}"));
        let deadline = Instant::now() + SETTLE;
        let now = loop {
            match self.processes() {
                Ok(now) => break now,
                Err(error) if Instant::now() > deadline => panic!("{when}: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        for (name, pid) in &self.stay {
            assert_eq!(now.get(name), Some(pid), "{when}: {name} was restarted");
        }
    }
}

fn attack(victim: Victim) {
    let seed = number("CORACLE_CHAOS_SEED", u64::from(std::process::id()) * 2_654_435_761 + 1);
    let moments = number("CORACLE_CHAOS_MOMENTS", 8);
    println!("victim {victim:?}, seed {seed}, {moments} moments");
    let mut chaos = Chaos::start(victim, seed);
    for moment in 0..moments {
        chaos.churn();
        chaos.strike();
        // Every fourth time all must have come to rest; else the next kill meets whatever is under way.
        if moment % 4 == 3 || moment + 1 == moments {
            chaos.settle(&format!("moment {moment}, seed {seed}"));
            println!("moment {moment}: {} killed, {} pods run", chaos.killed, chaos.wanted.len());
        }
    }
    // A moment in which no victim was there is none; most must have been some.
    assert!(chaos.killed * 2 >= moments, "only {} kills in {moments} moments", chaos.killed);
    chaos.fixture.finish();
}

#[test]
fn no_container_is_lost_or_doubled_when_the_agent_is_killed() {
    attack(Victim::Agent);
}

#[test]
fn killed_shims_take_only_their_own_pods_which_start_again() {
    attack(Victim::Shim);
}

#[test]
fn what_killed_makers_held_is_made_again() {
    attack(Victim::Maker);
}

#[test]
fn killed_image_workers_leave_nothing_and_are_made_up_for() {
    attack(Victim::Worker);
}
