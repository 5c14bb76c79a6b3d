//! CRI logs: long lines, fast writers, full disks, rotation, what comes after the end.

use std::fs;
use std::process::Command;

use coracle_shim::protocol::{method, shim};

use crate::harness::{Client, Sandbox, eventually, log_lines};

#[test]
fn long_lines_and_ends_without_newline_are_parts() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "head -c 40000 /dev/zero | tr '\\0' x 2>/dev/null || /bin/busybox head -c 40000 /dev/zero | /bin/busybox tr '\\0' x; echo; echo -n end");
    sandbox.wait("c");
    let lines = eventually("the whole log", || {
        let lines = sandbox.log("c");
        if lines.last().is_some_and(|line| line.ends_with("end")) {
            Ok(lines)
        } else {
            Err(format!("{}", lines.len()))
        }
    });
    let shape: Vec<(&str, usize)> = lines.iter().map(|line| (&line[..9], line.len() - 9)).collect();
    assert_eq!(
        shape,
        [("stdout P ", 16384), ("stdout P ", 16384), ("stdout F ", 40000 - 32768), ("stdout P ", 3)]
    );
}

#[test]
fn a_fast_writer_loses_nothing_and_costs_no_memory() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "seq 1 1000000");
    assert_eq!(sandbox.wait("c"), 0);
    let lines = sandbox.log("c");
    assert_eq!(lines.len(), 1_000_000);
    for (line, n) in lines.iter().zip(1..) {
        assert_eq!(line, &format!("stdout F {n}"));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.pid)).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 8 * 1024, "{peak} kB at its peak");
}

/// A file system of 256 KiB.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["-l"]).arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_drops_counts_tells_and_the_container_runs_on() {
    let mut sandbox = Sandbox::new();
    let disk = SmallDisk::mount(sandbox.path("disk"));
    let log = disk.0.join("c.log");
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 128 << 10]).unwrap();
    let mut watcher = Client::connect(&sandbox.socket);
    let fifo_free = sandbox.path("go");
    let script = "seq 1 100000; echo done > /tmp/x; while [ ! -e /proc/1/root/tmp/x ]; do :; done; \
        trap 'echo after; exit 6' TERM; while :; do sleep 0.05; done";
    let bundle = sandbox.bundle("c", script, |_| ());
    let address = format!("cri://{}", log.display());
    sandbox.create_with("c", &bundle, |request| request.stdout = address.clone()).unwrap();
    sandbox.start("c");
    let news = watcher.call::<method::WatchLogs>(&shim::WatchLogsRequest::default()).unwrap();
    assert!(news.refusing[0].error.contains("No space left") && news.resumed.is_empty(), "{news:?}");
    let dropped = eventually("the log refuses", || {
        let info = sandbox.info().containers.remove(0);
        if !fs::read_to_string(&log).unwrap().ends_with('\n') {
            // Met in the middle: what the disk took of a line is being taken back.
            return Err("the last line is torn".into());
        }
        let written: usize = log_lines(&log).iter().map(|line| line.len() - "stdout F ".len()).sum();
        let total: usize = (1..=100_000).map(|n: u32| n.to_string().len()).sum();
        if info.log_bytes_dropped as usize + written == total && info.log_error.contains("No space left") {
            Ok(info.log_bytes_dropped)
        } else {
            Err(format!("{info:?}, {written} of {total} written"))
        }
    });
    drop(fifo_free);
    fs::remove_file(ballast).unwrap();
    sandbox.kill("c", "", libc::SIGTERM, false).unwrap();
    let known = shim::WatchLogsRequest { refusing: vec!["c".into()] };
    let news = watcher.call::<method::WatchLogs>(&known).unwrap();
    assert!(news.refusing.is_empty() && news.resumed[0].bytes_dropped == dropped, "{news:?}");
    assert_eq!(sandbox.wait("c"), 6);
    let lines = log_lines(&log);
    let [.., note, after] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(note.contains(&format!("{dropped} bytes of output dropped: No space left")), "{note}");
    assert_eq!(after, "stdout F after");
    assert_eq!(sandbox.info().containers[0].log_error, "");
    let told = fs::read_to_string(sandbox.path("shim.log")).unwrap();
    assert!(told.contains("output is dropped") && told.contains("takes output again"), "{told}");
}

#[test]
fn a_renamed_log_is_opened_anew() {
    let mut sandbox = Sandbox::new();
    sandbox.run("c", "trap 'echo two; exit 0' TERM; echo one; while :; do sleep 0.05; done");
    eventually("the first line", || {
        if sandbox.log("c") == ["stdout F one"] { Ok(()) } else { Err("none".into()) }
    });
    let (log, old) = (sandbox.log_path("c"), sandbox.path("old.log"));
    fs::rename(&log, &old).unwrap();
    sandbox.client.call::<method::ReopenLog>(&shim::ReopenLogRequest { id: "c".into() }).unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "");
    sandbox.kill("c", "", libc::SIGTERM, false).unwrap();
    sandbox.wait("c");
    assert_eq!(
        (log_lines(&old), sandbox.log("c")),
        (vec!["stdout F one".into()], vec!["stdout F two".into()])
    );
}

#[test]
fn a_log_that_cannot_be_opened_fails_the_creation() {
    let mut sandbox = Sandbox::new();
    let bundle = sandbox.bundle("c", "exit 0", |_| ());
    for (address, words) in [
        ("cri:///no/such/folder/0.log", "/no/such/folder/0.log for stdout: No such file"),
        ("binary:///bin/logger", "scheme"),
        ("relative", "not absolute"),
        ("/no/such/fifo", "/no/such/fifo for stdout: No such file"),
    ] {
        let error = sandbox.create_with("c", &bundle, |request| request.stdout = address.into()).unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
}

#[test]
fn who_holds_the_pipe_delays_nothing_and_is_still_heard() {
    let mut sandbox = Sandbox::new();
    // The holder of the pipe is outside the container's PID namespace only through a shared one.
    let bundle = sandbox.bundle("keeper", "while :; do sleep 0.1; done", |_| ());
    sandbox.create_with("keeper", &bundle, |_| ()).unwrap();
    let keeper = sandbox.start("keeper");
    let bundle = sandbox.bundle("c", "(sleep 0.3; echo late; sleep 600) & echo first; exit 4", |config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "pid" {
                namespace["path"] = format!("/proc/{keeper}/ns/pid").into();
            }
        }
        // Its own cgroup is left, so that the shim's kill of the rest does not reach it.
        config["process"]["noNewPrivileges"] = true.into();
    });
    let address = sandbox.log_address("c");
    sandbox.create_with("c", &bundle, |request| request.stdout = address).unwrap();
    sandbox.start("c");
    let start = std::time::Instant::now();
    assert_eq!(sandbox.wait("c"), 4);
    assert!(start.elapsed() < std::time::Duration::from_secs(10));
    assert_eq!(sandbox.log("c")[0], "stdout F first");
    sandbox.delete("c", "").unwrap();
}
