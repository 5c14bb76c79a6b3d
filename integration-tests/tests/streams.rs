//! `kubectl exec`, `attach`, `cp`, `port-forward`, `logs -f` and `debug` through a real API server, on nodes of ours.
//!
//! Run by `cargo xtask cluster-test`, which builds the peers first; a plain `cargo test` leaves them out.
//! `CORACLE_COPY_MIB` says how much is copied each way, 500 if not given.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_integration_tests::cluster::{Cluster, Kind, Options};
use coracle_integration_tests::images::{self, Set};
use coracle_integration_tests::node::pss_kib;
use coracle_integration_tests::peers::Peers;
use coracle_integration_tests::terminal::on_terminal;
use coracle_integration_tests::{Executables, target_dir};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
const LIMIT: Duration = Duration::from_secs(180);
/// So many connections are forwarded side by side.
const CONNECTIONS: usize = 100;
/// What streams may add to the agent's memory.
const STREAMS_KIB: u64 = 16 * 1024;

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster with one node that has the pod `web`.
struct World {
    cluster: Cluster,
}

fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "command": ["sh", "-c", script]})
}

impl World {
    fn start(name: &str, kind: &Kind) -> Self {
        images::write(&Peers::new(), Set::Conformance, None).unwrap();
        let mut cluster = Cluster::start(&Options::of_test(name)).unwrap();
        cluster.add_node("one", kind).unwrap();
        let serve = "mkdir /www; head -c 200000 /dev/urandom > /www/file; busybox httpd -f -p 8080 -h /www";
        let count = "i=0; while :; do i=$((i+1)); echo line $i of a log that is rotated now and then; \
                     [ $((i % 50)) != 0 ] || sleep 0.1; done";
        let mut terminal = container("terminal", "exec sh");
        (terminal["stdin"], terminal["tty"]) = (true.into(), true.into());
        let spec = json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [container("main", serve), container("counter", count), terminal],
        });
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec});
        cluster.api.create(PODS, &pod).unwrap();
        let world = Self { cluster };
        world.wait("the pod is ready", |pod| {
            let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
            pod["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(ready))
        });
        world
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) {
        let path = format!("{PODS}/web");
        let shown = || self.cluster.node("one").unwrap().last_words();
        self.cluster.wait(what, LIMIT, |api| Ok(is_so(&api.get(&path)?)), shown).unwrap();
    }

    fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = self.cluster.kubectl().unwrap();
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The exit code, and all that was printed; `input` is its standard input.
    fn ask(&self, words: &[&str], input: &[u8]) -> (Option<i32>, String) {
        finish(self.kubectl(words), input)
    }

    /// A `kubectl` on a terminal of its own.
    fn terminal(&self, words: &[&str]) -> Command {
        on_terminal(&self.kubectl(words))
    }

    fn agent(&self) -> u32 {
        self.cluster.node("one").unwrap().machine.pid_of("coracle").unwrap()
    }
}

fn finish(mut command: Command, input: &[u8]) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A terminal that hangs up before its command has read all would be a different test.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
        stdin
    });
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = err.read_to_end(&mut text);
        text
    });
    let stdin = writer.join().unwrap();
    let is_terminal = command.get_program() == "script";
    let kept = is_terminal.then_some(stdin);
    let mut text = Vec::new();
    out.read_to_end(&mut text).unwrap();
    let status = child.wait().unwrap();
    drop(kept);
    text.extend(errors.join().unwrap());
    (status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// How often the API server has led a request for streams on as WebSocket, which nodes that declare it take.
fn led_on(world: &World) -> u64 {
    let metrics = world.cluster.ask(&["get", "--raw", "/metrics"]).unwrap();
    let lines = metrics.lines().filter(|line| line.contains("proxied_to_kubelet"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn commands(world: &World) {
    let (code, said) = world.ask(&["exec", "web", "-c", "main", "--", "sh", "-c", "echo out; exit 7"], b"");
    assert!(code == Some(7) && said.starts_with("out\n"), "{code:?} {said}");
    let text = "a line\n".repeat(100_000);
    let (code, said) = world.ask(&["exec", "-i", "web", "-c", "main", "--", "cat"], text.as_bytes());
    assert!(code == Some(0) && said == text, "{code:?}, {} bytes of {}", said.len(), text.len());
    let words = ["exec", "-it", "web", "-c", "main", "--", "sh"];
    // The size comes beside what is typed, not before it.
    let typed = "for i in $(seq 300); do [ \"$(stty size)\" != '33 101' ] || break; sleep 0.1; done; stty size; tty; exit 9\n";
    let (code, said) = finish(world.terminal(&words), typed.as_bytes());
    assert!(code == Some(9) && said.contains("33 101") && said.contains("/dev/pts/"), "{code:?} {said}");
    let (code, said) = world.ask(&["exec", "web", "-c", "none", "--", "ls"], b"");
    assert!(code == Some(1) && said.contains("container none is not valid"), "{code:?} {said}");
    let (code, said) = world.ask(&["exec", "web", "-c", "main", "--", "/no/such"], b"");
    assert!(code != Some(0) && said.contains("no such file"), "{code:?} {said}");
}

fn attachments(world: &World) {
    let mut attach = world.terminal(&["attach", "-it", "web", "-c", "terminal"]);
    let mut attached = Running(attach.stderr(Stdio::null()).spawn().unwrap());
    attached.0.stdin.as_mut().unwrap().write_all(b"echo is-$((40 + 2))\n").unwrap();
    let mut lines = BufReader::new(attached.0.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    let answered = lines.any(|line| {
        said.push(line.unwrap());
        said.last().is_some_and(|line| line.contains("is-42"))
    });
    assert!(answered, "the container's terminal says {said:?}");
}

/// Copies a file there and back while the agent's memory is watched.
fn copies(world: &World) {
    let mib: u64 = std::env::var("CORACLE_COPY_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(500);
    let folder = target_dir().join(format!("copies-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (there, back) = (folder.join("there"), folder.join("back"));
    let made = Command::new("head").args(["-c", &format!("{mib}M"), "/dev/urandom"]).output();
    std::fs::write(&there, made.unwrap().stdout).unwrap();
    let sum = |path: &Path| {
        let output = Command::new("sha256sum").stdin(std::fs::File::open(path).unwrap()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (agent, before) = (world.agent(), pss_kib(world.agent()));
    let (most, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(pss_kib(agent), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let [there, back] = [&there, &back].map(|path| path.display().to_string());
        for words in [["cp", &there, "web:/tmp/copy"], ["cp", "web:/tmp/copy", &back]] {
            let begun = Instant::now();
            let (code, said) = world.ask(&[&words[..], &["-c", "main"]].concat(), b"");
            over.store(code != Some(0), Ordering::Relaxed);
            assert_eq!(code, Some(0), "{words:?}: {said}");
            println!("{mib} MiB in {:.1} s: kubectl {}", begun.elapsed().as_secs_f64(), words.join(" "));
        }
        over.store(true, Ordering::Relaxed);
    });
    let same = sum(&there) == sum(&back);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(same, "what came back is not what went there");
    let most = most.into_inner();
    println!("agent: {before} KiB before, {most} KiB at most");
    assert!(most < before + STREAMS_KIB, "{most} KiB while copying, {before} before");
}

/// So many commands that write as fast as they may, to clients that read a little and then no more.
fn slow_readers(world: &World) {
    let (agent, before) = (world.agent(), pss_kib(world.agent()));
    let mut clients: Vec<Running> = (0..64)
        .map(|_| {
            let mut kubectl = world.kubectl(&["exec", "web", "-c", "main", "--", "yes"]);
            // What a client that ends has to say is seen with the test's own words.
            Running(kubectl.stdin(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap())
        })
        .collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let mut some = [0; 4096];
        let read = client.0.stdout.as_mut().unwrap().read_exact(&mut some);
        read.unwrap_or_else(|error| panic!("client {number}: {error}"));
    }
    let begun = Instant::now();
    let mut most = 0;
    while begun.elapsed() < Duration::from_secs(10) {
        most = pss_kib(agent).max(most);
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("64 slow readers: agent {before} KiB before, {most} KiB at most");
    assert!(most < before + STREAMS_KIB, "{most} KiB with slow readers, {before} before");
    drop(clients);
    let node = world.cluster.node("one").unwrap();
    let shown = || node.last_words();
    let writers = |_: &_| Ok(!node.machine.run(&["ps", "-eo", "args"])?.lines().any(|line| line == "yes"));
    world.cluster.wait("the writers are gone", LIMIT, writers, shown).unwrap();
}

fn forwards(world: &World) {
    let mut forward = world.kubectl(&["port-forward", "pod/web", ":8080"]);
    let mut forward = Running(forward.stderr(Stdio::null()).spawn().unwrap());
    let mut line = String::new();
    let mut said = BufReader::new(forward.0.stdout.take().unwrap());
    said.read_line(&mut line).unwrap();
    // It tells of every connection, and ends if nobody reads that.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let address = line.split(' ').nth(2).unwrap().to_owned();
    let (_, file) = world.ask(&["exec", "web", "-c", "main", "--", "sha256sum", "/www/file"], b"");
    // All are open before the first one asks.
    let streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let threads: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                stream.write_all(b"GET /file HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
                answer.split_off(head + 4)
            })
        })
        .collect();
    let mut sums = BTreeSet::new();
    for thread in threads {
        let body = thread.join().unwrap();
        assert_eq!(body.len(), 200_000);
        let mut sum = Command::new("sha256sum");
        sum.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut sum = sum.spawn().unwrap();
        sum.stdin.take().unwrap().write_all(&body).unwrap();
        sums.insert(String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap());
    }
    assert_eq!(sums.len(), 1, "connections got mixed up");
    assert_eq!(sums.first().unwrap().split(' ').next(), file.split(' ').next());
}

/// Follows the log until it has been rotated twice, with no line lost or doubled.
fn follows(world: &World) {
    let mut logs = world.kubectl(&["logs", "-f", "web", "-c", "counter"]);
    let mut logs = Running(logs.stderr(Stdio::null()).spawn().unwrap());
    let lines = BufReader::new(logs.0.stdout.take().unwrap()).lines();
    let number = |line: &str| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    let node = world.cluster.node("one").unwrap();
    let rotated = || node.machine.run(&["sh", "-c", "ls /var/log/pods/*/counter | wc -l"]).unwrap();
    let (mut last, begun) = (None, Instant::now());
    for line in lines {
        let now = number(&line.unwrap());
        assert!(last.is_none_or(|last| last + 1 == now), "line {now} comes after {last:?}");
        last = Some(now);
        if now.is_multiple_of(2000) && rotated().trim().parse::<u32>().unwrap() >= 3 {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "the log was not rotated");
    }
    panic!("the log broke off after {last:?}");
}

fn debugs(world: &World) {
    let script = "cat /proc/1/cmdline | tr '\\0' ' '; echo; exit 5";
    let image = format!("--image={IMAGE}");
    let words = ["debug", "web", &image, "--target=main", "-c", "debugger", "--", "sh", "-c", script];
    let (code, said) = world.ask(&words, b"");
    assert_eq!(code, Some(0), "{said}");
    world.wait("the debugger has ended", |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 5
    });
    let (_, log) = world.ask(&["logs", "web", "-c", "debugger"], b"");
    assert!(log.contains("httpd -f -p 8080"), "process 1 of the target is {log:?}");
}

fn all(name: &str, kind: &Kind) {
    let world = World::start(name, kind);
    commands(&world);
    attachments(&world);
    forwards(&world);
    debugs(&world);
    slow_readers(&world);
    copies(&world);
    follows(&world);
    assert!(led_on(&world) >= 5, "{} requests came as WebSocket", led_on(&world));
    world.cluster.down().unwrap();
}

fn flags() -> Vec<String> {
    ["--container-log-max-size=256Ki", "--container-log-max-files=10"].map(str::to_owned).to_vec()
}

#[test]
fn streams_of_our_own_runtime() {
    all("streams", &Kind::Coracle { executables: Executables::of_this_build(), flags: flags() });
}

/// A pod with a user namespace, and volumes that show the owners it expects.
fn has_user_namespaces(world: &World) {
    let mut main = container(
        "main",
        "cat /proc/self/uid_map; stat -c 'owner %u' /scratch /var/run/secrets/kubernetes.io/serviceaccount/token; \
         touch /scratch/made /made; id -u; echo done; sleep 1000",
    );
    main["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
    let spec = json!({
        "hostUsers": false, "terminationGracePeriodSeconds": 1, "containers": [main],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    });
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mapped"}, "spec": spec});
    world.cluster.api.create(PODS, &pod).unwrap();
    let mut log = String::new();
    world
        .cluster
        .wait(
            "the pod says what it sees",
            LIMIT,
            |_| {
                log = world.ask(&["logs", "mapped"], b"").1;
                Ok(log.contains("done"))
            },
            || world.cluster.node("one").unwrap().last_words(),
        )
        .unwrap();
    let mapping: Vec<&str> = log.lines().next().unwrap_or_default().split_whitespace().collect();
    assert!(mapping.len() == 3 && mapping[0] == "0" && mapping[1] != "0", "{log}");
    assert_eq!(log.lines().filter(|line| *line == "owner 0").count(), 2, "{log}");
    assert!(!log.contains("denied"), "{log}");
}

#[test]
fn a_stock_kubelet_on_our_runtime() {
    let world =
        World::start("kubelet", &Kind::KubeletOnCoracle { executables: Executables::of_this_build() });
    commands(&world);
    attachments(&world);
    forwards(&world);
    debugs(&world);
    has_user_namespaces(&world);
    world.cluster.down().unwrap();
}

#[test]
fn streams_of_containerd() {
    let kind = Kind::CoracleOnContainerd { executables: Executables::of_this_build(), flags: flags() };
    all("streams-containerd", &kind);
}
