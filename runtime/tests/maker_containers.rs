//! The maker, held against real containers: what runs in them, what confines them, what is said when they cannot run.

#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap, in its helpers too")]

#[path = "maker_containers/harness.rs"]
mod harness;

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use coracle_cri::v1;
use coracle_runtime::spec::NamespaceRef;
use harness::Container;
use v1::security_profile::ProfileType;

fn profile(kind: ProfileType, file: &Path) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: file.to_string_lossy().into_owned(),
    })
}

fn runtime_default() -> Option<v1::SecurityProfile> {
    profile(ProfileType::RuntimeDefault, Path::new(""))
}

fn env(pairs: &[(&str, &str)]) -> Vec<v1::KeyValue> {
    pairs.iter().map(|(key, value)| v1::KeyValue { key: (*key).into(), value: (*value).into() }).collect()
}

#[test]
fn a_container_lives_and_ends_with_its_exit_code() {
    let mut container = Container::new("sleep 0.2; exit 7");
    container.create().unwrap();
    let state = |container: &Container| -> serde_json::Value {
        serde_json::from_slice(&container.maker(&["state", &container.id]).stdout).unwrap()
    };
    assert_eq!(state(&container)["status"], "created");
    assert_eq!(state(&container)["pid"], container.pid.unwrap());
    container.start();
    assert_eq!(state(&container)["status"], "running");
    assert!(
        !container.maker(&["delete", &container.id]).status.success(),
        "a running container is not deleted"
    );
    assert_eq!(container.wait().code, 7);
    assert_eq!(state(&container)["status"], "stopped");
    assert!(!container.cgroup_dirs().is_empty());
    assert!(container.maker(&["delete", &container.id]).status.success());
    assert_eq!(container.cgroup_dirs(), Vec::<std::path::PathBuf>::new());
    let gone = container.maker(&["state", &container.id]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("does not exist"));
    assert!(container.maker(&["delete", "--force", &container.id]).status.success());
}

#[test]
fn environment_and_directory_are_as_told() {
    let mut container = Container::new("cat /proc/1/environ; echo; pwd; ls -ld /made/for/it");
    container.image_env = vec!["A=image".into(), "B=image".into(), "PATH=/bin".into()];
    container.config.envs = env(&[("B", "pod"), ("C-d", "x=y"), ("EMPTY", "")]);
    container.config.working_dir = "/made/for/it".into();
    let ended = container.run();
    for line in ["A=image", "B=pod", "C-d=x=y", "EMPTY=", "HOME=/root", "HOSTNAME=pod-host", "PATH=/bin"] {
        assert!(ended.out.split(['\0', '\n']).any(|out| out == line), "{line} in {}", ended.out);
    }
    assert!(ended.out.contains("\n/made/for/it\n") && ended.code == 0, "{ended:?}");
}

#[test]
fn capabilities_are_the_default_set_or_what_the_pod_says() {
    let status = "grep -E 'Cap|NoNew' /proc/self/status";
    let plain = Container::new(status).run().out;
    assert!(
        plain.contains("CapEff:\t00000000a80425fb") && plain.contains("CapBnd:\t00000000a80425fb"),
        "{plain}"
    );
    assert!(plain.contains("CapInh:\t0000000000000000") && plain.contains("NoNewPrivs:\t0"), "{plain}");

    let mut some = Container::new(status);
    some.security().capabilities = Some(v1::Capability {
        drop_capabilities: vec!["ALL".into()],
        add_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..Default::default()
    });
    some.security().no_new_privs = true;
    some.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    let some = some.run().out;
    // A user that is not root keeps them only in the bounding set: no ambient ones were asked for.
    assert!(
        some.contains("CapEff:\t0000000000000400") || some.contains("CapEff:\t0000000000000000"),
        "{some}"
    );
    assert!(some.contains("CapBnd:\t0000000000000400") && some.contains("NoNewPrivs:\t1"), "{some}");

    let mut ambient = Container::new(status);
    ambient.security().capabilities = Some(v1::Capability {
        add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..Default::default()
    });
    ambient.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    let ambient = ambient.run().out;
    assert!(
        ambient.contains("CapAmb:\t0000000000000400") && ambient.contains("CapEff:\t0000000000000400"),
        "{ambient}"
    );
}

#[test]
fn seccomp_confines_the_container_and_what_is_executed_in_it() {
    let script = "grep ^Seccomp: /proc/self/status; unshare -U true && echo may-unshare; echo end; sleep 60";
    let open = Container::new(script).running();
    open.wait_for("end");
    assert!(
        open.output().contains("Seccomp:\t0") && open.output().contains("may-unshare"),
        "{}",
        open.output()
    );

    for no_new_privs in [false, true] {
        let mut confined = Container::new(script);
        confined.security().seccomp = runtime_default();
        confined.security().no_new_privs = no_new_privs;
        let confined = confined.running();
        confined.wait_for("end");
        let out = confined.output();
        assert!(out.contains("Seccomp:\t2") && !out.contains("may-unshare"), "{out}");
        let exec =
            confined.exec("grep ^Seccomp: /proc/self/status; unshare -U true && echo may-unshare; exit 5");
        let out = String::from_utf8_lossy(&exec.stdout);
        assert!(out.contains("Seccomp:\t2") && !out.contains("may-unshare"), "{out}");
        assert_eq!(exec.status.code(), Some(5));
    }
}

#[test]
fn a_seccomp_profile_of_a_file_is_obeyed() {
    let mut container = Container::new("mkdir /x; echo code $?; touch /y && echo touched");
    let file = container.dir.path().join("profile.json");
    fs::write(
        &file,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64","SCMP_ARCH_ARM"],
            "syscalls":[{"names":["mkdir","mkdirat","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#,
    )
    .unwrap();
    container.security().seccomp = profile(ProfileType::Localhost, &file);
    let ended = container.run();
    assert!(ended.out.contains("No space left") && ended.out.contains("code 1\n"), "{ended:?}");
    assert!(ended.out.contains("touched"), "{ended:?}");
}

#[test]
fn paths_are_masked_and_read_only() {
    let mut container = Container::new(
        "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/hostname; touch /file; echo end $?",
    );
    container.security().readonly_rootfs = true;
    container.security().masked_paths =
        vec!["/proc/keys".into(), "/sys/firmware".into(), "/proc/none".into()];
    container.security().readonly_paths = vec!["/proc/sys".into()];
    let ended = container.run();
    assert!(ended.out.starts_with("0\n0\n") && ended.out.contains("end 1"), "{ended:?}");
    assert_eq!(ended.out.matches("Read-only file system").count(), 2, "{ended:?}");
}

#[test]
fn cgroups_are_read_only_unless_privileged() {
    let script = "D=/sys/fs/cgroup/pids; test -d $D || D=/sys/fs/cgroup; \
                  for f in /sys/fs/cgroup /sys/fs/cgroup/*; do touch $f/x 2>/dev/null && echo wrote $f; done; \
                  mkdir $D/made-$HOSTNAME 2>/dev/null && echo made && rmdir $D/made-$HOSTNAME; \
                  cat $D/cgroup.procs; echo end";
    let plain = Container::new(script).run().out;
    assert!(!plain.contains("wrote") && !plain.contains("made") && plain.contains("1\n"), "{plain}");
    let mut privileged = Container::new(script);
    privileged.security().privileged = true;
    assert!(privileged.run().out.contains("made"));
}

#[test]
fn devices_are_those_of_the_pod() {
    let script = "ls /dev; head -c 3 /dev/zero | wc -c; mknod /blk b 7 0 && head -c 1 /blk; echo end; \
                  head -c 2 /dev/lots/zero | wc -c; stat -c %a /dev/lots/zero";
    let mut container = Container::new(script);
    container.config.devices = vec![v1::Device {
        container_path: "/dev/lots/zero".into(),
        host_path: "/dev/zero".into(),
        permissions: "r".into(),
    }];
    let out = container.run().out;
    assert!(out.contains("urandom") && out.contains("\n3\n") && out.contains("end\n2\n666"), "{out}");
    assert!(out.contains("Operation not permitted"), "{out}");

    let mut privileged =
        Container::new("ls /dev | wc -l; grep CapEff /proc/self/status; mount | grep -c ' ro,'");
    privileged.security().privileged = true;
    let out = privileged.run().out;
    let count: usize = out.lines().next().unwrap().parse().unwrap();
    let host = fs::read_dir("/dev").unwrap().count();
    assert!(count + 8 > host, "{count} of {host}");
    assert!(out.contains("000001ff"), "{out}");
}

#[test]
fn the_hosts_dev_as_a_mount_stays_as_it_is() {
    let before: Vec<_> = listing("/dev");
    let mut container = Container::new(
        "ls /dev/null /dev/full; readlink /dev/ptmx; ls /dev/pts | wc -l; touch /dev/shm/x; echo end",
    );
    container.security().privileged = true;
    container.config.mounts =
        vec![v1::Mount { container_path: "/dev".into(), host_path: "/dev".into(), ..Default::default() }];
    let ended = container.run();
    let _ = fs::remove_file("/dev/shm/x");
    assert!(ended.out.contains("/dev/null") && ended.out.contains("end") && ended.code == 0, "{ended:?}");
    assert_eq!(listing("/dev"), before);
}

fn listing(dir: &str) -> Vec<String> {
    let entry = |entry: fs::DirEntry| {
        format!("{:?} {:?} {:?}", entry.path(), entry.file_type().unwrap(), fs::read_link(entry.path()).ok())
    };
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| entry(e.unwrap())).collect();
    all.sort();
    all
}

#[test]
fn users_and_groups_come_from_the_image_or_the_pod() {
    let mut image = Container::new("id; echo via-stdout >> /dev/stdout; echo $HOME");
    image.image_user = "app".into();
    let out = image.run().out;
    assert!(out.contains("uid=1000(app) gid=1001(app) groups=44(media),1001(app)"), "{out}");
    assert!(out.contains("via-stdout") && out.contains("/home/app"), "{out}");

    let mut pod = Container::new("id");
    pod.security().run_as_user = Some(v1::Int64Value { value: 4242 });
    pod.security().run_as_group = Some(v1::Int64Value { value: 4343 });
    pod.security().supplemental_groups = vec![99];
    let out = pod.run().out;
    assert!(out.contains("uid=4242 gid=4343 groups=99,4343"), "{out}");
}

#[test]
fn limits_reach_the_cgroup_and_can_be_changed() {
    let mut container = Container::new("sleep 60");
    let resources = container.resources();
    resources.memory_limit_in_bytes = 32 << 20;
    resources.cpu_shares = 512;
    resources.cpu_quota = 20_000;
    resources.cpu_period = 100_000;
    resources.cpuset_cpus = "0".into();
    resources.oom_score_adj = 700;
    resources.hugepage_limits = vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }];
    let container = container.running();
    let read = |file: &str| {
        let dirs = container.cgroup_dirs();
        let path = dirs.iter().map(|dir| dir.join(file)).find(|path| path.exists()).expect(file);
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(read("memory.limit_in_bytes"), (32 << 20).to_string());
    assert_eq!(read("cpu.shares"), "512");
    assert_eq!(read("cpu.cfs_quota_us"), "20000");
    assert_eq!(read("cpuset.cpus"), "0");
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", container.pid.unwrap())).unwrap();
    assert_eq!(score.trim(), "700");

    let file = container.dir.path().join("update.json");
    fs::write(
        &file,
        r#"{"memory":{"limit":67108864,"swap":67108864},"cpu":{"shares":256,"quota":50000,"period":100000}}"#,
    )
    .unwrap();
    let update = container.maker(&["update", "--resources", file.to_str().unwrap(), &container.id]);
    assert!(update.status.success(), "{}", String::from_utf8_lossy(&update.stderr));
    assert_eq!(
        (read("memory.limit_in_bytes"), read("cpu.shares")),
        ((64 << 20).to_string(), "256".to_owned())
    );
}

#[test]
fn too_much_memory_kills_the_container() {
    let mut container =
        Container::new("head -c 100000000 /dev/zero | tail -c 100000000 | wc -c; exit ${PIPESTATUS:-3}");
    container.config.command =
        ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"].map(String::from).to_vec();
    container.resources().memory_limit_in_bytes = 16 << 20;
    assert_eq!(container.run().code, 137);
}

#[test]
fn scores_and_limits_that_may_not_rise_are_lowered_with_a_word() {
    let mut container = Container::new("cat /proc/self/oom_score_adj; grep 'open files' /proc/self/limits");
    container.edit = |spec| {
        let mut process = spec.process().clone().unwrap();
        process.set_oom_score_adj(Some(-998));
        let limit = serde_json::from_value(serde_json::json!([
            {"type": "RLIMIT_NOFILE", "hard": 100_000_000_u64, "soft": 1234}
        ]));
        process.set_rlimits(Some(limit.unwrap()));
        spec.set_process(Some(process));
    };
    container.create().unwrap();
    container.start();
    let log = fs::read_to_string(container.dir.path().join("log.json")).unwrap();
    let ended = container.wait();
    assert!(ended.out.contains("1234"), "{ended:?}");
    // With the capability both are simply set.
    let held = fs::read_to_string("/proc/self/status").unwrap();
    let effective = held.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    if u64::from_str_radix(effective, 16).unwrap() & (1 << 24) == 0 {
        assert!(
            log.contains("oom_score_adj -998 needs CAP_SYS_RESOURCE") && log.contains("RLIMIT_NOFILE"),
            "{log}"
        );
    } else {
        assert!(ended.out.contains("-998"), "{ended:?}");
    }
}

#[test]
fn a_terminal_is_handed_over_the_console_socket() {
    let mut container = Container::new("tty; test -t 0 && test -t 1 && echo on-a-terminal; echo $TERM");
    container.config.tty = true;
    let socket = container.dir.path().join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let spec = container.spec();
    fs::write(container.bundle().join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    let refused = container.create_as_written(&[]).unwrap_err();
    assert!(refused.contains("console"), "{refused}");
    container.create_as_written(&["--console-socket", socket.to_str().unwrap()]).unwrap();
    let master = receive(&listener);
    container.start();
    assert_eq!(container.wait().code, 0);
    let mut said = String::new();
    // The other end is gone with the container: reading ends with EIO after what was said.
    let _ = fs::File::from(master).read_to_string(&mut said);
    assert!(
        said.contains("/dev/pts/0") && said.contains("on-a-terminal") && said.contains("xterm"),
        "{said:?}"
    );
}

fn receive(listener: &UnixListener) -> std::os::fd::OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut name)], &mut control, RecvFlags::empty()).unwrap();
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    rights.expect("a descriptor came along")
}

#[test]
fn processes_are_executed_in_the_container() {
    let mut container = Container::new("touch /up; sleep 60");
    container.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    container.config.envs = env(&[("FROM", "container")]);
    container.image_env = vec!["PATH=/bin".into()];
    let container = container.running();
    let exec = container
        .exec("id -u; echo $FROM; hostname; cat /proc/self/cgroup; ps | wc -l; grep Cap /proc/self/status");
    let out = String::from_utf8_lossy(&exec.stdout);
    assert!(out.starts_with("1000\ncontainer\n"), "{out}");
    assert!(out.contains("CapBnd:\t00000000a80425fb"), "{out}");

    let missing = container.maker(&["exec", &container.id, "nosuchcmd"]);
    assert_eq!(missing.status.code(), Some(255));
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(
        said.contains(r#"exec failed: unable to start container process: exec: "nosuchcmd": executable file not found in $PATH"#),
        "{said}"
    );

    let process = container.dir.path().join("process.json");
    let spec = serde_json::json!({"user": {"uid": 0, "gid": 0, "additionalGids": [7]}, "args": ["sh", "-c", "sleep 0.5; exit 9"],
        "env": ["PATH=/bin"], "cwd": "/etc", "terminal": false});
    fs::write(&process, spec.to_string()).unwrap();
    let pid_file = container.dir.path().join("exec.pid");
    let mut command = container.command();
    command
        .args(["exec", "--process"])
        .arg(&process)
        .arg("--pid-file")
        .arg(&pid_file)
        .args(["--detach", &container.id]);
    assert!(command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap().success());
    let pid: i32 = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    let all: Vec<i32> =
        serde_json::from_slice(&container.maker(&["ps", "--format", "json", &container.id]).stdout).unwrap();
    assert!(all.contains(&pid), "{pid} is in the container's cgroup with {all:?}");
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let (_, status) =
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(9), "the detached process became our child");
}

#[test]
fn namespaces_are_joined_by_path() {
    let mut holder = std::process::Command::new("unshare")
        .args(["-u", "-i", "-n", "sh", "-c", "hostname held && echo ready && exec sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    holder.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    let mut container = Container::new("hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc");
    let path = |kind: &str| NamespaceRef::Path(format!("/proc/{}/ns/{kind}", holder.id()).into());
    container.namespaces.uts = path("uts");
    container.namespaces.net = path("net");
    container.namespaces.ipc = path("ipc");
    let link =
        |kind: &str| fs::read_link(format!("/proc/{}/ns/{kind}", holder.id())).unwrap().display().to_string();
    let want = format!("held\n{}\n{}\n", link("net"), link("ipc"));
    let ended = container.run();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(ended.out, want);
}

#[test]
fn signals_pause_and_resume() {
    let container = Container::new(
        "trap 'echo got-term' TERM; trap 'exit 3' USR1; echo up; while :; do sleep 0.05; done",
    );
    let mut container = container.running();
    container.wait_for("up");
    assert!(container.maker(&["kill", &container.id, "TERM"]).status.success());
    container.wait_for("got-term");
    assert!(container.maker(&["pause", &container.id]).status.success());
    let state = container.maker(&["state", &container.id]);
    assert!(String::from_utf8_lossy(&state.stdout).contains("paused"));
    assert!(!container.exec("true").status.success(), "nothing is executed in a paused container");
    assert!(container.maker(&["resume", &container.id]).status.success());
    let pids: Vec<i32> =
        serde_json::from_slice(&container.maker(&["ps", "--format", "json", &container.id]).stdout).unwrap();
    assert!(pids.contains(&container.pid.unwrap()));
    assert!(container.maker(&["kill", &container.id, "SIGUSR1"]).status.success());
    assert_eq!(container.wait().code, 3);
    let again = container.maker(&["kill", &container.id, "9"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("container not running"));
}

#[test]
fn a_deleted_container_takes_all_its_processes_along() {
    let mut container =
        Container::new("for i in 1 2 3 4 5; do (setsid sleep 600 &) ; done; echo up; sleep 600");
    container.namespaces.pid = NamespaceRef::Host;
    let mut container = container.running();
    container.wait_for("up");
    let dirs = container.cgroup_dirs();
    assert!(container.maker(&["delete", "--force", &container.id]).status.success());
    assert_eq!(container.wait().code, 137);
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

#[test]
fn a_killed_maker_leaves_nothing_that_a_forced_delete_does_not_remove() {
    let container = Container::new("sleep 600");
    fs::write(container.bundle().join("config.json"), serde_json::to_vec(&container.spec()).unwrap())
        .unwrap();
    for round in 0..40 {
        let mut command = container.command();
        command.args(["create", "--bundle"]).arg(container.bundle()).arg(&container.id);
        let mut maker =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The moment is what is varied, so this is the one sleep of a fixed time.
        std::thread::sleep(std::time::Duration::from_micros(round * 1500));
        let _ = maker.kill();
        maker.wait().unwrap();
        let deleted = container.maker(&["delete", "--force", &container.id]);
        assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
        assert_eq!(container.cgroup_dirs(), Vec::<std::path::PathBuf>::new(), "round {round}");
        let state = container.dir.path().join("state");
        let left: Vec<_> =
            fs::read_dir(&state).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, Vec::<std::path::PathBuf>::new(), "round {round}");
    }
    let bundle = container.bundle().display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&bundle), "{table}");
}

#[test]
fn what_cannot_run_is_told_and_leaves_nothing() {
    for (command, words) in [
        (vec!["nosuchcmd"], r#"exec: "nosuchcmd": executable file not found in $PATH"#),
        (vec!["/no/such"], r#"exec: "/no/such": stat /no/such: no such file or directory"#),
        (vec!["/etc/passwd"], r#"exec: "/etc/passwd": permission denied"#),
        (vec!["/etc"], r#"exec: "/etc": is a directory"#),
    ] {
        let mut container = Container::new("");
        container.config.command = command.iter().map(|word| (*word).to_owned()).collect();
        let said = container.create().unwrap_err();
        assert!(said.contains(words), "{said}");
        assert!(
            said.contains("unable to start container process: error during container init: exec:"),
            "{said}"
        );
        let log = fs::read_to_string(container.dir.path().join("log.json")).unwrap();
        let line: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(line["level"], "error");
        assert!(line["msg"].as_str().unwrap().contains(words));
        assert_eq!(container.cgroup_dirs(), Vec::<std::path::PathBuf>::new());
        assert_eq!(fs::read_dir(container.dir.path().join("state")).unwrap().count(), 0);
    }
}

#[test]
fn a_file_of_another_format_is_told_in_the_containers_own_log() {
    let mut container = Container::new("");
    let file = container.rootfs().join("bin/odd");
    fs::write(&file, "\x7fELF but not really").unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    container.config.command = vec!["/bin/odd".into()];
    let ended = container.run();
    assert_eq!((ended.code, ended.out.trim()), (255, "exec /bin/odd: exec format error"));
}

#[test]
fn broken_bundles_and_double_ids_are_refused() {
    let mut container = Container::new("sleep 60");
    let missing = container.create_as_written(&[]).unwrap_err();
    assert!(missing.contains("config.json") && missing.contains("No such file"), "{missing}");
    fs::write(container.bundle().join("config.json"), "{").unwrap();
    assert!(container.create_as_written(&[]).unwrap_err().contains("config.json is not valid"));
    container.create().unwrap();
    assert!(container.create_as_written(&[]).unwrap_err().contains("already exists"));
}

#[test]
fn mounts_are_shared_as_the_pod_says() {
    let host = tempfile::tempdir().unwrap();
    let mount =
        |args: &[&str]| assert!(std::process::Command::new("mount").args(args).status().unwrap().success());
    let dir = host.path().to_str().unwrap();
    mount(&["-t", "tmpfs", "tmpfs", dir]);
    mount(&["--make-shared", dir]);
    for name in ["private", "slave", "shared"] {
        fs::create_dir(host.path().join(name)).unwrap();
    }
    let mut container = Container::new(
        "mount -t tmpfs tmpfs /shared/from-inside; echo mounted; while ! test -e /go; do sleep 0.02; done; \
         ls /private/late /slave/late /shared/late; echo end",
    );
    container.security().privileged = true;
    let of = |name: &str, propagation: v1::MountPropagation| v1::Mount {
        container_path: format!("/{name}"),
        host_path: dir.to_owned(),
        propagation: propagation.into(),
        ..Default::default()
    };
    container.config.mounts = vec![
        of("private", v1::MountPropagation::PropagationPrivate),
        of("slave", v1::MountPropagation::PropagationHostToContainer),
        of("shared", v1::MountPropagation::PropagationBidirectional),
    ];
    fs::create_dir(host.path().join("from-inside")).unwrap();
    fs::create_dir(host.path().join("late")).unwrap();
    let mut container = container.running();
    container.wait_for("mounted");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let seen = table.contains(&format!("{dir}/from-inside"));
    mount(&["-t", "tmpfs", "tmpfs", &format!("{dir}/late")]);
    fs::write(host.path().join("late/file"), "").unwrap();
    fs::write(container.rootfs().join("go"), "").unwrap();
    let ended = container.wait();
    drop(container);
    for path in [format!("{dir}/late"), format!("{dir}/from-inside"), dir.to_owned()] {
        let _ = std::process::Command::new("umount").args(["-l", &path]).stderr(Stdio::null()).status();
    }
    assert!(seen, "a shared mount of the container is seen on the host");
    let ends: Vec<_> = ended.out.split("late:").map(|part| part.contains("file")).collect();
    assert_eq!(ends, [false, false, true, true], "{}", ended.out);
}

#[test]
fn sysctls_and_hooks_are_applied() {
    let mut container = Container::new(
        "cat /proc/sys/kernel/shm_rmid_forced; cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
    );
    container.edit = |spec| {
        let mut linux = spec.linux().clone().unwrap();
        let values = [("kernel.shm_rmid_forced", "1"), ("net.ipv4.ip_unprivileged_port_start", "7")];
        linux.set_sysctl(Some(values.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()));
        let dir = spec.root().as_ref().unwrap().path().parent().unwrap().display().to_string();
        spec.set_linux(Some(linux));
        let hook = |name: &str| serde_json::json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("cat > {dir}/{name}")]}]);
        let hooks = serde_json::json!({"createRuntime": hook("hook-create"), "poststop": hook("hook-stop")});
        spec.set_hooks(Some(serde_json::from_value(hooks).unwrap()));
    };
    let bundle = container.bundle();
    let dir = tempfile::tempdir().unwrap();
    container.create().unwrap();
    container.start();
    let ended = container.wait();
    assert_eq!(ended.out, "1\n7\n");
    assert!(container.maker(&["delete", &container.id]).status.success());
    for name in ["hook-create", "hook-stop"] {
        let state: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join(name)).unwrap()).unwrap();
        assert_eq!(state["id"], container.id.as_str(), "{name}");
    }
    drop(dir);
}

#[test]
fn a_limit_without_its_controller_is_left_out_with_a_word() {
    let mut container = Container::new("echo ran");
    container.edit = |spec| {
        let mut linux = spec.linux().clone().unwrap();
        let limits = serde_json::json!({"devices": [{"allow": false, "access": "rwm"}],
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}], "memory": {"limit": 33_554_432}});
        linux.set_resources(Some(serde_json::from_value(limits).unwrap()));
        spec.set_linux(Some(linux));
    };
    let host = coracle_runtime::spec::host::HostFacts::gather().unwrap();
    container.create().unwrap();
    container.start();
    let log = fs::read_to_string(container.dir.path().join("log.json")).unwrap_or_default();
    assert_eq!(container.wait().out, "ran\n");
    for controller in ["memory", "hugetlb"] {
        let told = log.contains(&format!("cgroup controller {controller} is not available"));
        assert_eq!(told, !host.has_controller(controller), "{controller}: {log}");
    }
}

/// This host has its controllers on v1. With those out of sight, a mount namespace has cgroup v2 alone, with what is
/// left of controllers there: the same containers must run, confined by the device program.
#[test]
fn the_same_holds_on_cgroup_v2() {
    let tests = std::env::current_exe().unwrap();
    let script = "mount --make-rprivate / && umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && \
                  exec \"$0\" --skip the_same_holds --skip limits_reach --skip too_much_memory";
    let output =
        std::process::Command::new("unshare").args(["-m", "sh", "-c", script]).arg(tests).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("test result: ok"), "{said}");
}

#[test]
fn runc_takes_the_same_spec() {
    let mut container =
        Container::new("id; grep -E 'CapEff|Seccomp:' /proc/self/status; pwd; mount | wc -l; exit 4");
    container.maker = vec!["runc".into()];
    container.security().seccomp = runtime_default();
    container.image_user = "app".into();
    container.config.working_dir = "/made".into();
    container.resources().cpu_shares = 300;
    let ended = container.run();
    assert!(ended.out.contains("uid=1000") && ended.out.contains("Seccomp:\t2"), "{ended:?}");
    assert_eq!(ended.code, 4);
}
