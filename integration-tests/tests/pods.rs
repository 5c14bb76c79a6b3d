//! Pods from a folder as a user meets them: run, told, changed, stopped, with nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use coracle_integration_tests::node::Options;
use coracle_integration_tests::repository;
use coracle_integration_tests::terminal::{SIZE, Screen};
use support::{Fixture, LIMIT, is_running, pod};

#[test]
fn the_example_pods_run_and_everything_can_be_asked() {
    let mut fixture = Fixture::start("examples");
    for entry in std::fs::read_dir(repository().join("examples/pods")).unwrap() {
        let path = entry.unwrap().path();
        fixture.put(path.file_name().unwrap().to_str().unwrap(), &std::fs::read_to_string(&path).unwrap());
    }
    fixture.wait_pod("counter", "the counter runs", is_running);
    let web = fixture.wait_pod("web", "the web server is ready", is_running);
    let job = fixture.wait_pod("job", "the job completes", |pod| pod["status"]["phase"] == "Succeeded");
    let ended = &job["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["reason"].as_str(), ended["message"].as_str()), (Some("Completed"), Some("done\n")));
    assert!(web["status"]["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.")), "{web}");

    let table = fixture.node.ask(&["pods"]).unwrap();
    assert!(table.lines().next().unwrap().starts_with("NAMESPACE"), "{table}");
    assert!(table.contains("Completed") && table.contains("Running"), "{table}");
    assert!(fixture.node.ask(&["logs", "web"]).unwrap().contains("serving on port 8080"));
    let images = fixture.node.ask(&["images", "ls"]).unwrap();
    assert!(images.contains("example.coracle/example"), "{images}");
    let events = fixture.node.ask(&["events"]).unwrap();
    for reason in ["Pulled", "Created", "Started"] {
        assert!(events.contains(reason), "{reason} is missing in:\n{events}");
    }
    fixture.finish();
}

#[test]
fn a_container_that_fails_is_restarted_with_back_off() {
    let mut fixture = Fixture::start("restarts");
    fixture.put("fails.yaml", &pod("fails", &["exit", "3"], ""));
    let failed = fixture.wait_pod("fails", "the container is backed off", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let last = &failed["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(3), Some("Error")), "{failed}");
    fixture.finish();
}

#[test]
fn a_memory_hog_is_killed_and_told() {
    let mut fixture = Fixture::start("oom");
    let limits = "    resources: {limits: {memory: 8Mi}}\n  restartPolicy: Never\n";
    fixture.put("hog.yaml", &pod("hog", &["fill", "64"], limits));
    let hog = fixture.wait_pod("hog", "the hog is killed", |pod| pod["status"]["phase"] == "Failed");
    let ended = &hog["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (ended["exitCode"].as_i64(), ended["reason"].as_str()),
        (Some(137), Some("OOMKilled")),
        "{hog}"
    );
    fixture.finish();
}

#[test]
fn pods_outlive_the_agent_and_are_adopted() {
    let mut fixture = Fixture::start("adoption");
    fixture.put("steady.yaml", &pod("steady", &["count", "1"], ""));
    let before = fixture.wait_pod("steady", "it runs", is_running);
    let process = fixture.node.processes_with("count");
    // The record of a change that came close upon another is written a moment later.
    let record =
        fixture.node.state.join(format!("pods/{}.json", before["metadata"]["uid"].as_str().unwrap()));
    let is_recorded =
        |_: &_| Ok(std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"Running\"")));
    fixture.node.wait("the record is written", LIMIT, is_recorded).unwrap();
    fixture.node.kill_agent().unwrap();
    let lines = |fixture: &Fixture| fixture.node.ask(&["logs", "steady"]).unwrap().lines().count();
    // With no agent, the log is read by the records, and it goes on.
    let first = lines(&fixture);
    let deadline = std::time::Instant::now() + LIMIT;
    while lines(&fixture) <= first {
        assert!(std::time::Instant::now() < deadline, "the log stands still");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    fixture.node.start_agent().unwrap();
    let after = fixture.wait_pod("steady", "it is adopted", is_running);
    let id = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&before), id(&after));
    assert_eq!(process, fixture.node.processes_with("count"));
    fixture.finish();
}

#[test]
fn settings_change_in_a_running_pod() {
    let mut fixture = Fixture::start("settings");
    let settings = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{value: {value}}}\n")
    };
    fixture.put("settings.yaml", &settings("first"));
    let mounts = "    volumeMounts: [{name: settings, mountPath: /settings}]\n  volumes: [{name: settings, configMap: {name: settings}}]\n";
    fixture.put("reader.yaml", &pod("reader", &["sleep"], mounts));
    let pod = fixture.wait_pod("reader", "it runs", is_running);
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    let file =
        fixture.node.disk.join(format!("pods/pods/{uid}/volumes/kubernetes.io~configmap/settings/value"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "first");
    fixture.put("settings.yaml", &settings("second"));
    fixture
        .node
        .wait("the file changes", LIMIT, |_| Ok(std::fs::read_to_string(&file)? == "second"))
        .unwrap();
    let same = fixture.wait_pod("reader", "it still runs", is_running);
    assert_eq!(same["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0), 0);
    fixture.finish();
}

#[test]
fn commands_run_in_a_pod_and_ports_are_forwarded_to_it() {
    let mut fixture = Fixture::start("streams");
    fixture.put("web.yaml", &pod("web", &["serve", "8087"], ""));
    fixture.put("counter.yaml", &pod("counter", &["count", "1"], ""));
    fixture.wait_pod("web", "it runs", is_running);
    fixture.wait_pod("counter", "it counts", is_running);
    let node = &fixture.node;

    let ended = node.command(&["exec", "web", "--", "/example", "exit", "7"]).status().unwrap();
    assert_eq!(ended.code(), Some(7));
    assert!(node.ask(&["exec", "web", "--", "/example", "get", "8087"]).unwrap().contains("hello from"));
    let absent = node.ask(&["exec", "web", "--", "/no/such/program"]).unwrap_err().to_string();
    assert!(absent.contains("/no/such/program"), "{absent}");
    let mut echo = node.command(&["exec", "-i", "web", "--", "/example", "echo"]);
    let mut echo = echo.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let said: Vec<u8> = (0..3_000_000_u32).map(|number| (number / 11) as u8).collect();
    let (mut stdin, told) = (echo.stdin.take().unwrap(), said.clone());
    let teller = std::thread::spawn(move || stdin.write_all(&told));
    let heard = echo.wait_with_output().unwrap();
    teller.join().unwrap().unwrap();
    assert!(heard.status.success() && heard.stdout == said, "{} bytes came back", heard.stdout.len());

    let mut attach = node.command(&["attach", "counter"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(attach.stdout.take().unwrap()).read_line(&mut line).unwrap();
    attach.kill().unwrap();
    attach.wait().unwrap();
    assert!(line.chars().any(|letter| letter.is_ascii_digit()), "{line:?}");

    let mut forward = node.command(&["port-forward", "web", ":8087"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split(' ').nth(2).unwrap();
    let threads: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            std::thread::spawn(move || {
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).map(|_| answer)
            })
        })
        .collect();
    let answers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    forward.kill().unwrap();
    forward.wait().unwrap();
    for answer in answers {
        assert!(answer.as_ref().is_ok_and(|answer| answer.contains("hello from")), "{answer:?}");
    }
    fixture.finish();
}

#[test]
fn a_terminal_is_led_on_with_keys_size_and_exit_code() {
    let mut fixture = Fixture::start("terminals");
    let busybox = "    volumeMounts: [{name: busybox, mountPath: /busybox, readOnly: true}]\n  \
         volumes: [{name: busybox, hostPath: {path: /bin/busybox, type: File}}]\n";
    fixture.put("counter.yaml", &pod("counter", &["count", "1"], busybox));
    fixture.wait_pod("counter", "it counts", is_running);
    let node = &fixture.node;

    let mut shell = Screen::open(&node.command(&["exec", "-it", "counter", "--", "/busybox", "sh"])).unwrap();
    shell.wait_for("#").unwrap();
    // The size comes beside what is typed, not before it.
    shell.press("until /busybox stty size | /busybox grep '33 101'; do /busybox sleep 0.1; done\n").unwrap();
    shell.wait_for(&format!("\n{SIZE}")).unwrap();
    // Keys are the command's: an interrupt reaches the shell there and does not end what is here.
    shell.press("trap 'echo interrupted-$((40 + 2))' INT; echo armed-$((40 + 2))\n").unwrap();
    shell.wait_for("armed-42").unwrap();
    shell.press("\u{3}").unwrap();
    shell.wait_for("interrupted-42").unwrap();
    shell.press("exit 9\n").unwrap();
    assert_eq!(shell.end().unwrap(), Some(9));

    // The container has no terminal: ours stays as it is, and an interrupt ends the command here.
    let mut attached = Screen::open(&node.command(&["attach", "-it", "counter"])).unwrap();
    attached.wait_for("Unable to use a TTY - container main did not allocate one").unwrap();
    attached.wait_for("\n").unwrap();
    attached.press("\u{3}").unwrap();
    assert_eq!(attached.end().unwrap(), Some(128 + 2));
    fixture.finish();
}

#[test]
fn a_volume_that_outgrows_its_limit_evicts_the_pod() {
    let mut fixture = Fixture::start("eviction");
    let volumes = "    volumeMounts: [{name: data, mountPath: /data}]\n  initContainers:\n  - name: fill\n    \
         image: example.coracle/example:1\n    args: [write, /data/file, more than one byte]\n    \
         volumeMounts: [{name: data, mountPath: /data}]\n  volumes: [{name: data, emptyDir: {sizeLimit: \"1\"}}]\n";
    fixture.put("full.yaml", &pod("full", &["sleep"], volumes));
    let evicted = fixture.wait_pod("full", "the pod is evicted", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(evicted["status"]["reason"], "Evicted", "{evicted}");
    let message = evicted["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("Usage of EmptyDir volume \"data\" exceeds the limit"), "{message}");
    fixture.finish();
}

#[test]
fn a_pod_of_the_folder_has_users_of_its_own() {
    // Our own runtime: whether another has them is its own affair.
    let mut fixture = Fixture::start_with("users", Options::default());
    let manifest = pod("own", &["count", "7"], "  hostUsers: false\n").replace("  hostNetwork: true\n", "");
    fixture.put("own.yaml", &manifest);
    let own = fixture.wait_pod("own", "it runs", is_running);
    let pid = fixture.node.processes_with("count")[0];
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    let ids: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(ids[0] == 0 && ids[1] >= 65536 && ids[1].is_multiple_of(65536) && ids[2] == 65536, "{map}");
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/gid_map")).unwrap(), map);
    let kept =
        fixture.node.disk.join(format!("pods/pods/{}/userns", own["metadata"]["uid"].as_str().unwrap()));
    assert!(std::fs::read_to_string(&kept).unwrap().contains(&format!("\"hostId\":{}", ids[1])));
    fixture.remove("own.yaml");
    fixture.node.wait("its users are given back", LIMIT, |_| Ok(!kept.exists())).unwrap();
    fixture.finish();
}

#[test]
fn pods_of_the_folder_run_while_no_server_answers_the_first_join() {
    let flags = [
        "--server=https://192.0.2.1:6443",
        "--token=abcdef.0123456789abcdef",
        "--ca-cert-hash=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ];
    let options = Options { flags: flags.map(str::to_owned).to_vec(), ..Options::default() };
    let mut fixture = Fixture::start_with("alone", options);
    fixture.put("waits.yaml", &pod("waits", &["sleep"], ""));
    fixture.wait_pod("waits", "the pod runs before the node has joined", is_running);
    let ids = |fixture: &Fixture| {
        fixture.node.pods().unwrap()[0]["status"]["containerStatuses"][0]["containerID"].clone()
    };
    let before = ids(&fixture);
    fixture.node.kill_agent().unwrap();
    fixture.node.start_agent().unwrap();
    fixture.wait_pod("waits", "the next agent has adopted it", is_running);
    assert_eq!(ids(&fixture), before, "the pod was restarted");
    // Whether the cluster wants a pod is not known, so that none ends unless somebody says so here, and what it
    // leaves on disk stays for the agent that knows.
    fixture.node.ask(&["stop-pods"]).unwrap();
}
