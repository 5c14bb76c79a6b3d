//! Our shim under containerd, containerd's shim under our runtime, and what containers of `coracle cri` may be given:
//! `cargo xtask shim-test` builds the peers and runs them; a plain `cargo test` leaves them out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]
#![allow(clippy::print_stdout, reason = "a test of memory says what it measured")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_integration_tests::containerd::Release;
use coracle_integration_tests::cri::{Runtime, Stand};
use coracle_integration_tests::images::{self, Set};
use coracle_integration_tests::node::pss_kib;
use coracle_integration_tests::peers::Peers;
use coracle_integration_tests::terminal::{SIZE, Screen};
use coracle_integration_tests::{Executables, example_image};
use serde_json::{Value, json};

/// Where a container's configuration is written, in the machine.
const CONTAINER: &str = "/var/lib/node/container.json";
const LIMIT: Duration = Duration::from_secs(60);

/// A stand with the example image.
struct World {
    stand: Stand,
    image: &'static str,
}

impl World {
    fn start(runtime: Runtime) -> Self {
        let executables = Executables::of_this_build();
        if let Runtime::CoracleWith(..) = &runtime {
            images::write(&Peers::new(), Set::Basic, Some(&executables.example)).unwrap();
            let world = Self { stand: Stand::start(runtime).unwrap(), image: images::EXAMPLE };
            world.ask(&["pull", images::EXAMPLE]);
            return world;
        }
        let stand = Stand::start(runtime).unwrap();
        let archive = stand.machine.folder.join("lib/node/example.tar");
        example_image::write(&executables.example, &archive).unwrap();
        stand.import(&PathBuf::from("/var/lib/node/example.tar")).unwrap();
        Self { stand, image: example_image::NAME }
    }

    fn ask(&self, words: &[&str]) -> String {
        self.stand
            .crictl(words)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.stand.last_words()))
            .trim()
            .to_owned()
    }

    fn file(&self, name: &str, value: &Value) -> String {
        self.stand.write(name, &value.to_string()).unwrap();
        format!("/var/lib/node/{name}")
    }

    fn run_pod(&self, handler: &str) -> (String, String) {
        let config = self.pod(&json!({}));
        (self.ask(&["runp", "--runtime", handler, &config]), config)
    }

    /// The file of a pod with this part of its configuration.
    fn pod(&self, linux: &Value) -> String {
        std::fs::create_dir_all(self.stand.machine.folder.join("log/pod")).unwrap();
        let config = json!({
            "metadata": {"name": "pod", "namespace": "default", "uid": "u1", "attempt": 0},
            "log_directory": "/var/log/pod", "linux": linux,
        });
        self.file("pod.json", &config)
    }

    /// A pod with a user namespace, by containers of their own PID namespaces or of one that they share.
    fn expect_user_namespaces(&self, handler: &str) {
        for pid in [1, 0] {
            let linux = users_of_its_own(pid);
            let config = self.pod(&linux);
            let pod = self.ask(&["runp", "--runtime", handler, &config]);
            let words =
                self.creation((&pod, &config), "other-users", &["count", "1"], &json!({"linux": linux}));
            let id = self.ask(&words);
            self.ask(&["start", &id]);
            self.wait("output", || self.lines_of("other-users") > 1);
            let inner = self.inspect(&id)["info"]["pid"].as_u64().unwrap();
            let map = self.stand.machine.run(&["cat", &format!("/proc/{inner}/uid_map")]).unwrap();
            assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
            assert_eq!(
                self.ask(&["exec", "--sync", &id, "/example", "open", "/etc/group"]),
                "/etc/group is open"
            );
            self.ask(&["stopp", &pod]);
            self.ask(&["rmp", &pod]);
        }
    }

    fn expect_no_user_namespaces(&self, handler: &str) {
        let config = self.pod(&users_of_its_own(1));
        let refused = self.stand.crictl(&["runp", "--runtime", handler, &config]).unwrap_err();
        assert!(refused.to_string().contains("leave hostUsers out"), "{refused:#}");
    }

    fn run_container(&self, pod: (&str, &str), name: &str, arguments: &[&str]) -> String {
        let id = self.ask(&self.creation(pod, name, arguments, &json!({})));
        self.ask(&["start", &id]);
        id
    }

    /// The words that create a container, with these fields of its configuration besides.
    fn creation<'a>(
        &self,
        pod: (&'a str, &'a str),
        name: &str,
        arguments: &[&str],
        further: &Value,
    ) -> [&'a str; 5] {
        let mut config = json!({
            "metadata": {"name": name, "attempt": 0}, "image": {"image": self.image}, "args": arguments,
            "log_path": format!("{name}.log"), "stdin": arguments == ["echo"],
            "linux": {"resources": {"memory_limit_in_bytes": 32 << 20}},
        });
        for (key, value) in further.as_object().unwrap() {
            config[key] = value.clone();
        }
        let config = self.file("container.json", &config);
        assert_eq!(config, CONTAINER);
        ["create", "--no-pull", pod.0, CONTAINER, pod.1]
    }

    fn inspect(&self, id: &str) -> Value {
        serde_json::from_str(&self.ask(&["inspect", id])).unwrap()
    }

    fn log(&self, name: &str) -> String {
        let path = self.stand.machine.folder.join("log/pod").join(format!("{name}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what} does not happen\n{}", self.stand.last_words());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes of the machine whose program has this name, as the host counts.
    fn processes(&self, name: &str) -> Vec<u32> {
        let program = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let word = line.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            String::from_utf8_lossy(&word).ends_with(name)
        };
        let mut pids: Vec<u32> = self.stand.machine.processes().into_iter().map(|(pid, _)| pid).collect();
        pids.retain(program);
        pids
    }

    /// The runtime may have as many open files as is possible, its containers as many as it was started with.
    fn expect_limits_of_open_files(&self, container: &str) {
        let limits = |pid: u64| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
            line.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(":")
        };
        let runtime = self.stand.machine.pid_of("coracle").unwrap();
        assert_eq!(limits(runtime.into()), "4096:4096");
        let inner = self.inspect(container)["info"]["pid"].as_u64().unwrap();
        let container = self.stand.machine.run(&["cat", &format!("/proc/{inner}/limits")]).unwrap();
        let line = container.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1024", "4096"]);
    }

    fn lines_of(&self, name: &str) -> usize {
        self.log(name).lines().count()
    }

    fn mounts(&self) -> String {
        self.stand.machine.run(&["cat", "/proc/mounts"]).unwrap()
    }
}

/// The part of a pod's or a container's configuration that asks for a user namespace.
fn users_of_its_own(pid: u32) -> Value {
    let mapping = json!([{"host_id": 200_000, "container_id": 0, "length": 65_536}]);
    let users = json!({"mode": 0, "uids": mapping, "gids": mapping});
    json!({"security_context": {"namespace_options": {"pid": pid, "userns_options": users}}})
}

fn under_containerd(release: Release) {
    const SHIM: &str = "containerd-shim-coracle-v1";
    let world = World::start(Runtime::ContainerdWithShim(release, Executables::of_this_build()));
    let (pod, config) = world.run_pod("coracle");
    let counter = world.run_container((&pod, &config), "counter", &["count", "1"]);
    let echo = world.run_container((&pod, &config), "echo", &["echo"]);
    let shims = world.processes(SHIM);
    assert_eq!(shims.len(), 1, "a pod has one shim");
    println!("PSS of the shim of three containers: {} KiB", pss_kib(shims[0]));

    world.wait("output", || world.lines_of("counter") > 1);
    assert!(world.ask(&["logs", &counter]).starts_with("0\n1"), "{}", world.log("counter"));
    assert_eq!(
        world.ask(&["exec", "--sync", &counter, "/example", "open", "/etc/passwd"]),
        "/etc/passwd is open"
    );
    let failed = world.stand.crictl(&["exec", "--sync", &counter, "/example", "exit", "7"]).unwrap_err();
    assert!(failed.to_string().contains('7'), "{failed:#}");
    let stats: Value = serde_json::from_str(&world.ask(&["stats", "-o", "json", "--id", &counter])).unwrap();
    let used = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
    assert!(used.as_str().is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 0), "{stats}");
    world.ask(&["update", "--memory", "67108864", &counter]);

    // A container that takes more than it may is told as such.
    let hog = world.run_container((&pod, &config), "hog", &["fill", "64"]);
    world.wait("the hog's end", || world.inspect(&hog)["status"]["reason"] == "OOMKilled");

    // containerd dies, the pod does not notice.
    let pid = world.inspect(&counter)["info"]["pid"].as_u64().unwrap();
    world.stand.machine.kill_service("containerd").unwrap();
    assert_eq!(world.processes(SHIM), shims);
    world.stand.machine.start_service_again("containerd").unwrap();
    world.wait("containerd again", || world.stand.crictl(&["version"]).is_ok());
    assert_eq!(world.inspect(&counter)["info"]["pid"].as_u64(), Some(pid));
    let lines = world.lines_of("counter");
    world.wait("output goes on", || world.lines_of("counter") > lines + 1);
    assert_eq!(
        world.ask(&["exec", "--sync", &counter, "/example", "open", "/etc/group"]),
        "/etc/group is open"
    );

    world.ask(&["stop", "--timeout", "5", &counter]);
    let status = world.inspect(&counter);
    assert_eq!(status["status"]["state"], "CONTAINER_EXITED", "{status}");
    world.ask(&["rm", &counter]);

    // The shim is killed: containerd has `delete` end what is left.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(shims[0].cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    world.wait("the echo ends", || world.inspect(&echo)["status"]["state"] == "CONTAINER_EXITED");
    world.ask(&["stopp", &pod]);
    world.ask(&["rmp", &pod]);

    // In order, and nothing is left.
    let (pod, config) = world.run_pod("coracle");
    let id = world.run_container((&pod, &config), "second", &["exit", "3"]);
    world.wait("its end", || world.inspect(&id)["status"]["exitCode"] == 3);
    world.ask(&["stopp", &pod]);
    world.ask(&["rmp", &pod]);
    world.wait("the shim's end", || world.processes(SHIM).is_empty());
    world.wait("the containers' end", || world.processes("/example").is_empty());
    let sockets = world.stand.machine.run(&["ls", "/run/containerd/s"]).unwrap();
    assert_eq!(sockets.trim(), "");
    let mounts = world.mounts();
    assert!(!mounts.contains("io.containerd.runtime.v2.task"), "{mounts}");
}

#[test]
fn our_shim_under_the_newest_containerd() {
    under_containerd(Release::Newest);
}

#[test]
fn our_shim_under_debians_containerd() {
    under_containerd(Release::Debian);
}

/// A pod on our runtime with a handler of containerd's, and kills of both sides.
fn under_coracle(release: Release, handler: &str) {
    let shim = "containerd-shim-runc-v2";
    let flags = vec![format!("--runtime-handler={handler}")];
    let world = World::start(Runtime::CoracleWith(Executables::of_this_build(), flags));
    let status = world.ask(&["info"]);
    assert!(status.contains("\"name\": \"other\""), "{status}");
    match release {
        Release::Newest => world.expect_user_namespaces("other"),
        // runc 1.1 says nothing of what it can.
        Release::Debian => world.expect_no_user_namespaces("other"),
    }
    world.wait("the shims' end", || world.processes(shim).is_empty());
    // The other shim's first task is one for the sandbox, also where containers have PID namespaces of their own.
    let alone = world.pod(&json!({"security_context": {"namespace_options": {"pid": 1}}}));
    let pod = world.ask(&["runp", "--runtime", "other", &alone]);
    assert_eq!(world.processes("coracle-shim").len(), 2, "one of ours, and the sandbox's own task");
    world.ask(&["stopp", &pod]);
    world.ask(&["rmp", &pod]);
    world.wait("the shims' end", || world.processes("coracle-shim").is_empty());
    let (pod, config) = world.run_pod("other");
    let counter = world.run_container((&pod, &config), "counter", &["count", "1"]);
    let shims = world.processes(shim);
    assert_eq!(shims.len(), 1, "a pod has one shim");
    assert_eq!(world.processes("coracle-shim").len(), 2, "one of ours, and the holder of the PID namespace");
    world.wait("output", || world.lines_of("counter") > 1);
    assert!(world.ask(&["logs", &counter]).starts_with("0\n1"), "{}", world.log("counter"));
    assert_eq!(
        world.ask(&["exec", "--sync", &counter, "/example", "open", "/etc/passwd"]),
        "/etc/passwd is open"
    );
    let failed = world.stand.crictl(&["exec", "--sync", &counter, "/example", "exit", "7"]).unwrap_err();
    assert!(failed.to_string().contains('7'), "{failed:#}");
    assert!(world.ask(&["exec", &counter, "/example", "open", "/etc/group"]).contains("is open"));
    world.ask(&["update", "--memory", "67108864", &counter]);
    // Debian's is built by a Go that raises its own limit and lets its children have that.
    if release == Release::Newest {
        world.expect_limits_of_open_files(&counter);
    }
    let hog = world.run_container((&pod, &config), "hog", &["fill", "64"]);
    world.wait("the hog's end", || world.inspect(&hog)["status"]["reason"] == "OOMKilled");

    // The runtime dies; output goes on to the log, and the next one adopts the pod.
    let pid = world.inspect(&counter)["info"]["pid"].as_u64().unwrap();
    let brief = world.run_container((&pod, &config), "brief", &["exit", "3"]);
    world.stand.machine.kill_service("coracle").unwrap();
    let lines = world.lines_of("counter");
    world.wait("output goes on without a runtime", || world.lines_of("counter") > lines + 1);
    world.stand.machine.start_service_again("coracle").unwrap();
    world.wait("coracle again", || world.stand.crictl(&["version"]).is_ok());
    assert_eq!(world.processes(shim), shims);
    assert_eq!(world.inspect(&counter)["info"]["pid"].as_u64(), Some(pid));
    world.wait("an end meanwhile", || world.inspect(&brief)["status"]["exitCode"] == 3);
    assert_eq!(
        world.ask(&["exec", "--sync", &counter, "/example", "open", "/etc/group"]),
        "/etc/group is open"
    );

    world.ask(&["stop", "--timeout", "5", &counter]);
    assert_eq!(world.inspect(&counter)["status"]["state"], "CONTAINER_EXITED");
    world.ask(&["rm", &counter]);

    // The other shim is killed: its containers end, and the pod goes without a trace.
    let second = world.run_container((&pod, &config), "second", &["sleep"]);
    let dead = rustix::process::Pid::from_raw(shims[0].cast_signed()).unwrap();
    rustix::process::kill_process(dead, rustix::process::Signal::KILL).unwrap();
    world.wait("its end", || world.inspect(&second)["status"]["state"] == "CONTAINER_EXITED");
    world.ask(&["stopp", &pod]);
    world.ask(&["rmp", &pod]);
    let (pod, config) = world.run_pod("other");
    world.run_container((&pod, &config), "third", &["sleep"]);
    world.ask(&["stopp", &pod]);
    world.ask(&["rmp", &pod]);
    world.wait("the shims' end", || {
        world.processes(shim).is_empty() && world.processes("coracle-shim").is_empty()
    });
    world.wait("the containers' end", || world.processes("/example").is_empty());
    let folders =
        ["s", "containers", "sandboxes", "maker", "foreign"].map(|name| format!("/run/coracle/{name}"));
    let mut find = vec!["find"];
    find.extend(folders.iter().map(String::as_str));
    find.extend(["-mindepth", "1", "!", "-path", "/run/coracle/foreign/k8s.io"]);
    let left = world.stand.machine.run(&find).unwrap();
    assert_eq!(left, "", "{}", world.stand.last_words());
    let mounts = world.mounts();
    assert!(!mounts.contains("/run/coracle/containers"), "{mounts}");
}

#[test]
fn containerds_shim_under_our_runtime() {
    let runc = Peers::new().program("runc").unwrap();
    let handler = format!("other=io.containerd.runc.v2,BinaryName={}", runc.display());
    under_coracle(Release::Newest, &handler);
}

#[test]
fn the_shim_of_debians_containerd_under_our_runtime() {
    let handler =
        "other=io.containerd.runc.v2,Path=/usr/bin/containerd-shim-runc-v2,BinaryName=/usr/sbin/runc";
    under_coracle(Release::Debian, handler);
}

#[test]
fn another_maker_under_our_shim() {
    let runc = Peers::new().program("runc").unwrap();
    let flags = vec![format!("--runtime-handler=other={}", runc.display())];
    let world = World::start(Runtime::CoracleWith(Executables::of_this_build(), flags));
    world.expect_user_namespaces("other");
    let (pod, config) = world.run_pod("other");
    let id = world.run_container((&pod, &config), "counter", &["count", "1"]);
    world.wait("output", || world.lines_of("counter") > 1);
    world.expect_limits_of_open_files(&id);
    let state = world.stand.machine.run(&["ls", &format!("/run/coracle/maker/{id}")]).unwrap();
    assert!(state.contains("state.json"), "runc has made it: {state}");
    assert_eq!(world.ask(&["exec", "--sync", &id, "/example", "open", "/etc/group"]), "/etc/group is open");
    world.ask(&["stopp", &pod]);
    world.ask(&["rmp", &pod]);
    let refused = world.stand.crictl(&["runp", "--runtime", "nobody", &config]).unwrap_err();
    assert!(refused.to_string().contains("no runtime for"), "{refused:#}");
}

#[test]
fn devices_of_vendors_images_as_volumes_and_metrics() {
    let world = World::start(Runtime::CoracleWith(Executables::of_this_build(), Vec::new()));
    let specification = json!({
        "cdiVersion": "0.6.0", "kind": "vendor.test/device",
        "devices": [{"name": "one", "containerEdits": {
            "deviceNodes": [{"path": "/dev/vendor-one", "hostPath": "/dev/null"}],
            "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/vendor", "options": ["ro", "rbind"]}]}}],
    });
    let path = world.file("vendor.json", &specification);
    world.stand.machine.run(&["install", "-D", &path, "/run/cdi/vendor.json"]).unwrap();
    let (pod, config) = world.run_pod("");
    let pod_of = (pod.as_str(), config.as_str());
    let run = |name: &str, arguments: &[&str], further: &Value| {
        let id = world.ask(&world.creation(pod_of, name, arguments, further));
        world.ask(&["start", &id]);
        world.wait("its end", || world.inspect(&id)["status"]["state"] == "CONTAINER_EXITED");
        world.ask(&["logs", &id])
    };
    let refused = |further: &Value| {
        let words = world.creation(pod_of, "refused", &["sleep"], further);
        world.stand.crictl(&words).unwrap_err().to_string()
    };

    let one = json!({"CDI_devices": [{"name": "vendor.test/device=one"}]});
    assert_eq!(run("device", &["open", "/dev/vendor-one"], &one), "/dev/vendor-one is open");
    let by_annotation = json!({"annotations": {"cdi.k8s.io/x": "vendor.test/device=one"}});
    assert_eq!(run("mount", &["open", "/vendor"], &by_annotation), "/vendor is open");
    let unknown = refused(&json!({"CDI_devices": [{"name": "vendor.test/device=two"}]}));
    assert!(unknown.contains("unresolvable CDI devices vendor.test/device=two"), "{unknown}");

    let volume =
        json!({"mounts": [{"container_path": "/model", "readonly": true, "image": {"image": world.image}}]});
    assert_eq!(run("volume", &["open", "/model/example"], &volume), "/model/example is open");
    run("write", &["write", "/model/new", "x"], &volume);
    assert!(world.log("write").contains("Read-only file system"), "{}", world.log("write"));
    let etc = json!({"mounts": [{
        "container_path": "/part", "readonly": true, "image": {"image": world.image}, "image_sub_path": "etc"}]});
    assert_eq!(run("part", &["open", "/part/passwd"], &etc), "/part/passwd is open");
    let writable = json!({"mounts": [{"container_path": "/model", "image": {"image": world.image}}]});
    let writable = refused(&writable);
    assert!(writable.contains("ImageVolumeMountFailed: readonly must be true"), "{writable}");

    let counter = world.run_container(pod_of, "counter", &["count", "1"]);
    let descriptors = world.ask(&["metricdescs"]);
    assert!(descriptors.contains("container_memory_working_set_bytes"), "{descriptors}");
    let metrics = world.ask(&["metricsp"]);
    assert!(metrics.contains(&counter) && metrics.contains("container_cpu_usage_seconds_total"), "{metrics}");

    world.ask(&["stopp", &pod]);
    world.ask(&["rmp", &pod]);
    let mounts = world.mounts();
    assert!(!mounts.contains("/run/coracle/containers"), "{mounts}");
    let left = world.stand.machine.run(&["find", "/run/coracle/containers", "-mindepth", "1"]).unwrap();
    assert_eq!(left, "");
}

#[test]
fn crictl_on_our_runtime() {
    let world = World::start(Runtime::CoracleWith(Executables::of_this_build(), Vec::new()));
    let (pod, config) = world.run_pod("");
    let pod_of = (pod.as_str(), config.as_str());
    let counter = world.run_container(pod_of, "counter", &["count", "1"]);
    let echo = world.run_container(pod_of, "echo", &["echo"]);
    let busybox =
        json!({"mounts": [{"host_path": "/bin/busybox", "container_path": "/busybox", "readonly": true}]});
    let server = world.ask(&world.creation(pod_of, "server", &["serve", "8087", "words"], &busybox));
    world.ask(&["start", &server]);

    let lines = |words: &[&str]| world.ask(words).lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(lines(&["pods", "-q"]), BTreeSet::from([pod.clone()]));
    assert_eq!(lines(&["ps", "-q"]), BTreeSet::from([counter.clone(), echo.clone(), server.clone()]));
    assert!(world.ask(&["ps"]).contains("counter"));
    let images = world.ask(&["images"]);
    assert!(images.contains("registry.k8s.io/coracle/example"), "{images}");
    world.wait("usage", || {
        let told: Value = serde_json::from_str(&world.ask(&["stats", "-o", "json"])).unwrap();
        let used = |stats: &Value| stats["memory"]["workingSetBytes"]["value"] != "0";
        told["stats"].as_array().is_some_and(|all| all.len() == 3 && all.iter().all(used))
    });
    let usage = world.ask(&["statsp", "-o", "json"]);
    let usage: Value = serde_json::from_str(&usage).unwrap();
    assert_eq!(usage["stats"][0]["attributes"]["id"], pod.as_str(), "{usage}");

    let crictl = |words: &[&str]| world.stand.crictl_command(words).unwrap();
    let mut shell = Screen::open(&crictl(&["exec", "-it", &server, "/busybox", "sh"])).unwrap();
    shell.wait_for("#").unwrap();
    shell.press("until /busybox stty size | /busybox grep '33 101'; do /busybox sleep 0.1; done\n").unwrap();
    shell.wait_for(&format!("\n{SIZE}")).unwrap();
    shell.press("exit 0\n").unwrap();
    assert_eq!(shell.end().unwrap(), Some(0));
    let mut attached = Screen::open(&crictl(&["attach", "-i", &echo])).unwrap();
    attached.press("loud\n").unwrap();
    // Once as typed, and once from the container.
    attached.wait_for("loud").unwrap();
    attached.wait_for("loud").unwrap();
    drop(attached);
    let mut forward = Screen::open(&crictl(&["port-forward", &pod, "18087:8087"])).unwrap();
    forward.wait_for("Forwarding from 127.0.0.1:18087").unwrap();
    let example = Executables::of_this_build().example.display().to_string();
    for _ in 0..3 {
        let answer = world.stand.machine.run(&[&example, "get", "18087"]).unwrap();
        assert!(answer.contains("words"), "{answer}");
    }
    drop(forward);
    world.ask(&["stopp", &pod]);
    world.ask(&["rmp", &pod]);
}
