//! What can be wrong between a node and a real cluster: tokens, authorities, servers, clocks, names, objects. Each gives
//! one clear error that says what to do, and harms nothing else.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves it out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]
#![allow(clippy::print_stdout, reason = "what a user would read is printed")]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use coracle_bootstrap::{JoinConfig, Source, WallClock};
use coracle_integration_tests::cluster::{self, Cluster};
use coracle_integration_tests::images::EXAMPLE;
use coracle_integration_tests::node::pss_kib;
use coracle_integration_tests::{Executables, target_dir};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const LIMIT: Duration = Duration::from_secs(180);
/// What the agent may grow by while an object of a megabyte changes every second.
const GROWTH_KIB: u64 = 12 * 1024;

/// A cluster, and a folder for nodes that try to join it.
struct World {
    cluster: Cluster,
    folder: PathBuf,
}

impl World {
    fn start(name: &str) -> Self {
        let folder = target_dir().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self { cluster: Cluster::of_test(name, &[]).unwrap(), folder }
    }

    /// `coracle join` with these flags, which fails; what it printed.
    fn refused(&self, name: &str, flags: &[String]) -> String {
        let mut command = Command::new(Executables::of_this_build().coracle);
        command.arg("join").args(flags);
        command.arg(format!("--data-dir={}", self.folder.join(name).display()));
        command.arg(format!("--config={}", self.folder.join(format!("{name}.yaml")).display()));
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success(), "{name}: joined: {text}");
        let errors = text.lines().filter(|line| line.starts_with("coracle: ")).count();
        assert!(errors == 1 && text.trim().lines().count() == 1, "{name}: one error:\n{text}");
        let left = std::fs::read_dir(self.folder.join(name).join("pki")).map_or(0, Iterator::count);
        assert!(
            left == 0 || !self.folder.join(name).join("pki/kubeconfig").exists(),
            "{name}: it holds credentials"
        );
        println!("{name}: {}", text.trim());
        text
    }

    fn flags(&self, server: &str, token: &str, pin: &str) -> Vec<String> {
        vec![
            format!("--server={server}"),
            format!("--token={token}"),
            format!("--ca-cert-hash={pin}"),
            "--hostname-override=other".to_owned(),
        ]
    }

    /// Creates a bootstrap token that ends so many seconds from now.
    fn create_token(&self, id: &str, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let at = now.checked_add_signed(seconds).unwrap();
        let shown = Command::new("date").args(["-u", "-d", &format!("@{at}"), "+%FT%TZ"]).output().unwrap();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}")},
            "stringData": {"token-id": id, "token-secret": "0123456789abcdef",
                "expiration": String::from_utf8(shown.stdout).unwrap().trim(),
                "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
                "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"}});
        self.cluster.api.create(SECRETS, &secret).unwrap();
        format!("{id}.0123456789abcdef")
    }

    fn end(self) {
        let folder = self.folder.clone();
        self.cluster.down().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}

fn assert_says(told: &str, words: &[&str]) {
    for word in words {
        assert!(told.contains(word), "not {word:?} in: {told}");
    }
}

#[test]
fn a_join_that_cannot_be_says_why_and_what_to_do() {
    let world = World::start("bad-join");
    let join = world.cluster.join.clone();
    let (server, pin) = (join.server.as_str(), join.ca_cert_hash.as_str());

    let told = world.refused("unknown-token", &world.flags(server, "zzzzzz.0123456789abcdef", pin));
    assert_says(&told, &["token zzzzzz", "expired", "kubeadm token create"]);
    let expired = world.create_token("expird", 3);
    let info = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    let is_signed = |api: &coracle_integration_tests::cluster::api::Api| {
        Ok(api.get(info)?["data"]["jws-kubeconfig-expird"].is_string())
    };
    let _ = world.cluster.wait("the token is signed", Duration::from_secs(3), is_signed, String::new);
    let is_over = |api: &coracle_integration_tests::cluster::api::Api| Ok(!is_signed(api)?);
    world.cluster.wait("the token has expired", LIMIT, is_over, String::new).unwrap();
    let told = world.refused("expired-token", &world.flags(server, &expired, pin));
    assert_says(&told, &["token expird", "expired", "kubeadm token create"]);
    let id = join.token.split('.').next().unwrap();
    let told = world.refused("wrong-secret", &world.flags(server, &format!("{id}.ffffffffffffffff"), pin));
    assert_says(&told, &["second half of token", "check the token"]);

    let other = format!("sha256:{}", "ab".repeat(32));
    let told = world.refused("other-authority", &world.flags(server, &join.token, &other));
    assert_says(&told, &[&other, pin, "--ca-cert-hash"]);

    // The registry speaks plain HTTP, a kubelet TLS under an authority of its own.
    let host = world.cluster.network.control_plane();
    let told = world.refused("plain-http", &world.flags(&format!("https://{host}:5000"), &join.token, pin));
    assert_says(&told, &["does not speak TLS", "check the port"]);
    let kubelet = world.cluster.network.node(0);
    let told =
        world.refused("other-service", &world.flags(&format!("https://{kubelet}:10250"), &join.token, pin));
    assert_says(&told, &["10250", "not as a Kubernetes API server"]);
    let told = world.refused("nobody", &world.flags(&format!("https://{host}:9"), &join.token, pin));
    assert_says(&told, &["refused"]);

    let mut taken = world.flags(server, &join.token, pin);
    taken[3] = "--hostname-override=ours".to_owned();
    let told = world.refused("name-taken", &taken);
    assert_says(&told, &["\"ours\"", "Ready", "another name"]);
    world.end();
}

/// The library is asked, because a machine's clock is everybody's.
#[test]
fn a_clock_that_is_off_is_told_at_the_join_and_at_a_start() {
    let world = World::start("bad-clock");
    let join = world.cluster.join.clone();
    let offsets: [(&str, WallClock); 3] = [
        ("1970", WallClock::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(180))),
        ("behind", WallClock::new(|| SystemTime::now() - Duration::from_secs(3600))),
        ("ahead", WallClock::new(|| SystemTime::now() + Duration::from_secs(3600))),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = |config: &JoinConfig| {
        let error = runtime.block_on(coracle_bootstrap::join(config)).unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(next) = source {
            text = format!("{text}: {next}");
            source = next.source();
        }
        println!("{text}");
        text
    };
    for (name, clock) in offsets {
        let source = Source::Token {
            token: join.token.parse().unwrap(),
            ca_hashes: vec![join.ca_cert_hash.parse().unwrap()],
        };
        let mut config = JoinConfig::new(format!("{name}-node"), world.folder.join(name), source);
        config.servers = vec![join.server.parse().unwrap()];
        // A good join first, so that credentials are held.
        runtime.block_on(coracle_bootstrap::join(&config)).unwrap();
        config.clock = clock.clone();
        let text = told(&JoinConfig { pki: world.folder.join(format!("{name}-fresh")), ..config.clone() });
        assert_says(&text, &["the clock says", "set the clock"]);
        let text = told(&JoinConfig { source: Source::Held, servers: Vec::new(), ..config });
        assert_says(&text, &["the clock says", "set the clock"]);
    }
    world.end();
}

fn sleeper(name: &str, more: &Value) -> Value {
    let mut container =
        json!({"name": "main", "image": EXAMPLE, "imagePullPolicy": "IfNotPresent", "args": ["sleep"]});
    let mut spec = json!({"nodeName": "ours", "terminationGracePeriodSeconds": 1});
    for (key, value) in more["container"].as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    for (key, value) in more["spec"].as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec["containers"] = json!([container]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn is_ready(pod: &Value) -> bool {
    cluster::is_true(pod, "Ready")
}

/// A ConfigMap of a megabyte that changes every second, which a pod has mounted.
#[test]
fn a_large_object_that_changes_every_second_costs_bounded_memory() {
    let world = World::start("large-object");
    let big = |turn: usize| json!({"data": {"turn": turn.to_string(), "fill": "x".repeat(1_000_000)}});
    let mut map = big(0);
    map["metadata"] = json!({"name": "big"});
    world.cluster.api.create(MAPS, &map).unwrap();
    let more = json!({
        "container": {"volumeMounts": [{"name": "big", "mountPath": "/big"}]},
        "spec": {"volumes": [{"name": "big", "configMap": {"name": "big"}}]},
    });
    world.cluster.api.create(PODS, &sleeper("reader", &more)).unwrap();
    let shown = || world.cluster.node("ours").unwrap().last_words();
    let path = format!("{PODS}/reader");
    world.cluster.wait("the reader is ready", LIMIT, |api| Ok(is_ready(&api.get(&path)?)), shown).unwrap();

    let machine = &world.cluster.node("ours").unwrap().machine;
    let agent = machine.pid_of("coracle").unwrap();
    let uid = world.cluster.api.get(&path).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let before = pss_kib(agent);
    let (mut highest, turns) = (before, 40);
    for turn in 1..=turns {
        world.cluster.api.merge(&format!("{MAPS}/big"), &big(turn)).unwrap();
        let next = std::time::Instant::now() + Duration::from_secs(1);
        while std::time::Instant::now() < next {
            highest = highest.max(pss_kib(agent));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    println!("agent: {before} KiB before, at most {highest} KiB while it changed");
    let file =
        format!("/proc/{agent}/root/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~configmap/big/turn");
    let arrives =
        |_: &_| Ok(std::fs::read_to_string(&file).ok().as_deref() == Some(turns.to_string().as_str()));
    world.cluster.wait("the last change is in the pod", LIMIT, arrives, shown).unwrap();
    let after = pss_kib(agent);
    println!("agent: {after} KiB afterwards");
    assert!(highest < before + GROWTH_KIB, "{before} KiB grew to {highest}");
    world.end();
}
