//! Malformed requests to the runtime behind its socket: no panic, nothing left, a clear error, and a good pod afterwards.
//!
//! The test executes itself again inside a mount and a network namespace of its own. `$CORACLE_TEST_MALFORMED` sets
//! how many requests are sent, `$CORACLE_TEST_SEED` repeats a run.
#![allow(clippy::print_stdout, reason = "the seed of a run is printed")]
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

#[path = "service_malformed/client.rs"]
mod client;
#[path = "service_malformed/documents.rs"]
mod documents;
#[path = "service_malformed/mutation.rs"]
mod mutation;
#[path = "service_malformed/requests.rs"]
mod requests;
mod service_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::Client;
use coracle_cri::server::Listener;
use coracle_cri::v1::*;
use coracle_cri::{Code, RuntimeService as _, Status};
use coracle_runtime::BridgeNetwork;
use coracle_runtime::testing::{LayerCompression, Tarball, TestImage};
use futures_util::StreamExt as _;
use mutation::{Random, mutate};
use requests::Alive;
use service_support::{Node, until};

/// Requests between two looks at what is left.
const BATCH: usize = 250;
/// Requests that are under way at once.
const SIDE: usize = 8;
/// The longest that a wrong request is waited for; one that asks to wait forever is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
fn patience(method: &str) -> Duration {
    // Events come until the client leaves.
    if method.ends_with("Events") { Duration::from_millis(100) } else { PATIENCE }
}

/// The longest message of an error. A kubelet puts it into an event.
const LONGEST: usize = 4 << 10;
/// What may be held more after all of it than after the first part, for the allocator's sake.
const GROWTH_KIB: u64 = 24 << 10;

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        shown(panic);
    }));
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// What this process holds: open files, and resident memory in KiB.
fn held() -> (usize, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.split_whitespace().next().unwrap().parse().unwrap();
    (fs::read_dir("/proc/self/fd").unwrap().count(), resident)
}

/// Everything of a name that the requests made up, wherever a path may have led.
fn strays(node: &Node, mark: &str) -> Vec<PathBuf> {
    let mut roots =
        vec!["/".into(), "/tmp".into(), "/run".into(), "/proc/sys".into(), std::env::current_dir().unwrap()];
    roots.extend(node.dir.path().ancestors().map(Path::to_owned));
    let mut found: Vec<PathBuf> = roots.iter().flat_map(|root| service_support::entries(root)).collect();
    let hierarchies = service_support::cgroup_trees();
    found.extend(hierarchies.iter().flat_map(|root| service_support::entries(root)));
    found.retain(|path| path.to_string_lossy().contains(mark));
    found.sort();
    found.dedup();
    found
}

/// Errors are for people: they say something, in a line that fits. What is wrong with this one.
fn wrong(method: &str, error: &Status) -> Option<String> {
    let message = error.message();
    let broken = ["h2 protocol error", "transport error", "connection error", "panicked"];
    let problem = match () {
        // gRPC's own word for a call that does not exist is its code.
        () if message.is_empty() && error.code() != Code::Unimplemented => "without a word".to_owned(),
        () if message.len() > LONGEST => format!("of {} bytes", message.len()),
        () if broken.iter().any(|word| message.contains(word)) => "of a broken connection".to_owned(),
        () => return None,
    };
    Some(format!("{method}: an error {problem}: {:.300}", format!("{error:?}")))
}

/// A pod with a container, for requests that need one.
async fn alive(node: &Node, name: &str) -> Alive {
    let pod = node.sandbox(name);
    let sandbox = node.run_sandbox(&pod).await;
    let container = node.run(&sandbox, &pod, "main", "echo up; while :; do sleep 1; done").await;
    Alive { sandbox, container }
}

/// Requests to one pod; then all pods are removed. Answers are counted by code.
async fn batch(
    node: &Node,
    client: &Client,
    mark: &str,
    random: &mut Random,
    counts: &mut BTreeMap<(String, i32), usize>,
) {
    let alive = alive(node, "alive").await;
    let mut requests = Vec::new();
    for number in 0..BATCH {
        let fresh = format!("fresh-{number}");
        let all = match random.below(4) {
            0 => self::requests::makers(node.dir.path(), &node.cgroup, &alive, &fresh),
            _ => self::requests::all(node.dir.path(), &node.cgroup, &alive, &fresh),
        };
        let (method, good) = &all[random.below(all.len())];
        requests.push((method.clone(), mutate(good, mark, random)));
    }
    let answers = futures_util::stream::iter(requests).map(|(method, request)| async move {
        // What is made is started, since most of a container's settings are read then.
        let answer = client.call(&method, request, patience(&method)).await;
        let mut problem = None;
        if method.ends_with("/CreateContainer")
            && let Some(Ok(made)) = &answer
        {
            let start = "/runtime.v1.RuntimeService/StartContainer";
            if let Some(Err(error)) = client.call(start, made.clone(), PATIENCE).await {
                problem = wrong(start, &error);
            }
        }
        (method, answer, problem)
    });
    let mut answers = answers.buffer_unordered(SIDE);
    let mut problems = Vec::new();
    while let Some((method, answer, problem)) = answers.next().await {
        problems.extend(problem);
        let code = match answer {
            Some(Ok(_)) => Code::Ok,
            Some(Err(error)) => {
                problems.extend(wrong(&method, &error));
                error.code()
            }
            None => Code::DeadlineExceeded,
        };
        *counts.entry((method, i32::from(code))).or_default() += 1;
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    for sandbox in node.runtime().list_pod_sandbox(Default::default()).await.unwrap().items {
        node.remove_sandbox(&sandbox.id).await;
    }
}

/// What the malformed requests are made of is taken as it is; else nothing would be learnt from them.
async fn good_requests(node: &Node, client: &Client) {
    let alive = alive(node, "alive").await;
    for (method, request) in requests::all(node.dir.path(), &node.cgroup, &alive, "fresh") {
        if let Some(Err(error)) = client.call(&method, request, patience(&method)).await {
            let is_meant = matches!(error.code(), Code::NotFound | Code::Unimplemented | Code::Unavailable);
            assert!(is_meant, "{method}: {error:?}");
        }
    }
    for sandbox in node.runtime().list_pod_sandbox(Default::default()).await.unwrap().items {
        node.remove_sandbox(&sandbox.id).await;
    }
}

async fn good_pod(node: &Node) {
    let config = NetworkConfig { pod_cidr: "10.196.0.0/16".into() };
    let config = RuntimeConfig { network_config: Some(config) };
    let request = UpdateRuntimeConfigRequest { runtime_config: Some(config) };
    node.runtime().update_runtime_config(request).await.unwrap();
    let mut pod = node.sandbox("good");
    let security = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options =
        Some(service_support::namespaces(NamespaceMode::Pod, NamespaceMode::Container));
    let sandbox = node.run_sandbox(&pod).await;
    let id = node.run(&sandbox, &pod, "main", "echo served; sleep 100").await;
    node.log_has(&id, "served").await;
    assert_eq!(node.exec(&id, &["cat", "/etc/hostname"]).await.exit_code, 0);
    node.remove_sandbox(&sandbox).await;
}

async fn send_all(node: &Node, socket: &Path, total: usize, seed: u64) {
    let mark = format!("stray{}q", std::process::id());
    let mut random = Random::new(seed);
    let mut counts = BTreeMap::new();
    let mut first = None;
    let batches = total.div_ceil(BATCH);
    good_requests(node, &Client::connect(socket).await).await;
    for number in 0..batches {
        let client = Client::connect(socket).await;
        batch(node, &client, &mark, &mut random, &mut counts).await;
        let path = socket.to_owned();
        random = tokio::task::spawn_blocking(move || {
            client::send_garbage(&path, &mut random);
            random
        })
        .await
        .unwrap();
        drop(client);
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a panic in batch {number}, seed {seed}");
        until("nothing to be left", || async { node.leftovers().is_empty().then_some(()) }).await;
        assert_eq!(strays(node, &mark), Vec::<PathBuf>::new(), "batch {number}, seed {seed}");
        // What is made at the first need is made by now.
        if number == batches / 4 {
            first = Some(held());
        }
    }
    for ((method, code), count) in &counts {
        let code = Code::from(*code);
        println!("{method} {code:?}: {count}");
    }
    let accepted: usize =
        counts.iter().filter(|((_, code), _)| *code == i32::from(Code::Ok)).map(|(_, count)| count).sum();
    let all: usize = counts.values().sum();
    println!("{all} requests, {accepted} of them accepted");
    assert!(accepted * 4 < all * 3, "most of the requests are to be wrong");
    let first = first.unwrap();
    until("connections to be closed", || async { (held().0 <= first.0 + 2).then_some(()) }).await;
    let last = held();
    println!("open files and resident KiB after a quarter {first:?}, after all {last:?}");
    assert!(last.1 <= first.1 + GROWTH_KIB, "memory grew from {first:?} to {last:?}");
}

/// Executes this test again in a mount and a network namespace of its own; true in there.
fn isolated(test: &str) -> bool {
    if std::env::var_os("CORACLE_TEST_NETNS").is_some() {
        count_panics();
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    command.env("CORACLE_TEST_NETNS", "1").env("CORACLE_SHIM", service_support::shim());
    assert!(command.status().unwrap().success(), "the test failed in its namespaces");
    false
}

fn seed() -> u64 {
    let seed = number("CORACLE_TEST_SEED", u64::from(std::process::id()));
    println!("seed {seed}");
    seed
}

#[tokio::test]
async fn malformed_requests_get_an_error_and_leave_nothing() {
    if !isolated("malformed_requests_get_an_error_and_leave_nothing") {
        return;
    }
    let total = usize::try_from(number("CORACLE_TEST_MALFORMED", 2_500)).unwrap();
    let seed = seed();
    let network = BridgeNetwork { bridge: "cormal0".into(), subnet: "10.196.0.0/16".into() };
    let node = Node::with(|config| config.cni.default = Some(network)).await;
    let socket = node.dir.path().join("cri.sock");
    let listener = Listener::bind(&socket).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = node.runtime().clone();
    let server = tokio::spawn(listener.serve(served.clone(), served, async {
        let _ = stopped.await;
    }));
    send_all(&node, &socket, total, seed).await;
    good_pod(&node).await;
    drop(stop);
    server.await.unwrap().unwrap();
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    node.finish().await;
}

/// A container of an image that was taken: whatever its config says meets the rest of the runtime.
async fn run_image(node: &Node, sandbox: &str, pod: &PodSandboxConfig, image: &str) -> Result<(), Status> {
    let mut config = service_support::script_container(pod, "main", "");
    config.image = Some(ImageSpec { image: image.into(), ..Default::default() });
    config.command = Vec::new();
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(config),
        sandbox_config: Some(pod.clone()),
    };
    let id = node.runtime().create_container(request).await?.container_id;
    let started = node.runtime().start_container(StartContainerRequest { container_id: id.clone() }).await;
    node.runtime().remove_container(RemoveContainerRequest { container_id: id }).await?;
    started.map(drop)
}

#[tokio::test]
async fn malformed_images_get_an_error_and_leave_nothing() {
    if !isolated("malformed_images_get_an_error_and_leave_nothing") {
        return;
    }
    let total = number("CORACLE_TEST_MALFORMED_IMAGES", 200);
    let mut random = Random::new(seed());
    let network = BridgeNetwork { bridge: "cormal1".into(), subnet: "10.196.0.0/16".into() };
    let node = Node::with(|config| config.cni.default = Some(network)).await;
    let pod = node.sandbox("images");
    let sandbox = node.run_sandbox(&pod).await;
    let busybox = fs::read("/bin/busybox").unwrap();
    let tar = Tarball::new().dir("bin").executable("bin/true", &busybox).finish();
    let image = TestImage::new().layer(&tar, LayerCompression::Gzip).config(serde_json::json!({
        "Env": ["PATH=/bin"], "Entrypoint": ["/bin/true"], "Cmd": ["a"], "User": "1000:1000", "WorkingDir": "/tmp",
        "StopSignal": "SIGTERM", "Labels": {"a": "b"}, "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}},
    }));
    let kept = node.dir.path().join("kept");
    image.write_layout(&kept, "registry.test/kept:1").unwrap();
    node.runtime().images().load(&kept, |_| {}).await.unwrap();
    run_image(&node, &sandbox, &pod, "registry.test/kept:1").await.unwrap();
    let (mut taken, mut ran) = (0, 0);
    for number in 0..total {
        let dir = node.dir.path().join("odd");
        documents::write(&image, "registry.test/odd:1", &dir, &mut random);
        match node.runtime().images().load(&dir, |_| {}).await {
            Ok(images) => {
                taken += 1;
                for image in images {
                    let outcome = run_image(&node, &sandbox, &pod, &image.id).await;
                    if let Err(error) = &outcome {
                        assert_eq!(wrong("CreateContainer", error), None, "image {number}");
                    }
                    ran += usize::from(outcome.is_ok());
                    if !image.repo_tags.contains(&"registry.test/kept:1".to_owned()) {
                        node.runtime().images().remove(&image.id).await.unwrap();
                    }
                }
            }
            Err(error) => {
                let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let said = format!("{error}: {why}");
                assert!(
                    said.len() > 10 && said.len() <= LONGEST && !said.contains("panicked"),
                    "{number}: {said:.500}"
                );
            }
        }
        fs::remove_dir_all(&dir).unwrap();
    }
    println!("{total} images, {taken} of them taken, {ran} containers ran");
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    for folder in ["tmp", "ingest"] {
        let left = service_support::entries(&node.config.root.join("images").join(folder));
        assert!(left.is_empty(), "{left:?}");
    }
    run_image(&node, &sandbox, &pod, "registry.test/kept:1").await.unwrap();
    node.remove_sandbox(&sandbox).await;
    good_pod(&node).await;
    node.finish().await;
}
