//! Pod cgroups on this machine's own hierarchies, under a root of the test's own; names and limits by table.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::*;

fn pod(uid: &str, container: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": uid}, "spec": {"containers": [container]}
    }))
    .unwrap()
}

fn limited() -> Value {
    json!({"name": "c", "resources": {"requests": {"cpu": "250m", "memory": "32Mi"},
        "limits": {"cpu": "500m", "memory": "64Mi"}}})
}

/// Groups under a root that goes with the test.
struct Fixture {
    cgroups: PodCgroups,
    root: String,
}

impl Fixture {
    fn new(test: &str) -> Self {
        Self::with(test, CgroupDriver::Cgroupfs)
    }

    fn with(test: &str, driver: CgroupDriver) -> Self {
        let root = format!("/coracle_test_{test}_{}", std::process::id());
        let facts = HostFacts {
            cgroup_v2: sys::is_cgroup2(Path::new("/sys/fs/cgroup")).unwrap(),
            ..HostFacts::default()
        };
        let config = PodCgroupConfig {
            enforced: None,
            root: root.clone(),
            driver,
            pids_limit: Some(77),
            enforce_cpu_limits: true,
            cpu_period_us: 100_000,
        };
        Self { cgroups: PodCgroups::new(config, &facts).unwrap(), root }
    }

    fn dirs(&self, relative: &str) -> Vec<PathBuf> {
        // Under the systemd driver each part is the name of a whole slice, which GroupName makes of it.
        let name = GroupName::new(&format!("{}/{relative}", self.root));
        self.cgroups.dirs(&name).into_iter().filter(|dir| dir.is_dir()).collect()
    }

    /// The value of a file in whichever hierarchy has it.
    fn read(&self, relative: &str, v1_file: &str, v2_file: &str) -> Option<String> {
        let file = if matches!(self.cgroups.hierarchy, Hierarchy::V2 { .. }) { v2_file } else { v1_file };
        let texts = self.dirs(relative).into_iter().map(|dir| std::fs::read_to_string(dir.join(file)));
        texts.flatten().next().map(|text| text.trim().to_owned())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        for dir in self.dirs("") {
            let removed = remove_tree(&dir, deadline);
            assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
        }
    }
}

#[test]
fn names_are_folders_or_slices() {
    let name = |class, driver| GroupName::new("/").child(KUBEPODS).tier(class).child("pod1-2").path(driver);
    for (class, driver, path) in [
        (QosClass::Guaranteed, CgroupDriver::Cgroupfs, "/kubepods/pod1-2"),
        (QosClass::Burstable, CgroupDriver::Cgroupfs, "/kubepods/burstable/pod1-2"),
        (QosClass::BestEffort, CgroupDriver::Cgroupfs, "/kubepods/besteffort/pod1-2"),
        (QosClass::Guaranteed, CgroupDriver::Systemd, "/kubepods.slice/kubepods-pod1_2.slice"),
        (
            QosClass::Burstable,
            CgroupDriver::Systemd,
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
        ),
    ] {
        assert_eq!(name(class, driver), path);
    }
    let rooted = GroupName::new("/a/b").child("kubepods");
    assert_eq!(rooted.path(CgroupDriver::Cgroupfs), "/a/b/kubepods");
    assert_eq!(rooted.path(CgroupDriver::Systemd), "/a.slice/a-b.slice/a-b-kubepods.slice");
}

#[test]
fn a_pods_group_has_its_limits_and_goes_with_its_processes() {
    let fixture = Fixture::new("limits");
    let pod = pod("u1", limited());
    fixture.cgroups.ensure(&pod).unwrap();
    let group = "kubepods/burstable/podu1";
    assert_eq!(fixture.cgroups.parent(&pod), format!("{}/{group}", fixture.root));
    let is_v2 = matches!(fixture.cgroups.hierarchy, Hierarchy::V2 { .. });
    assert_eq!(fixture.read(group, "pids.max", "pids.max").unwrap(), "77");
    assert_eq!(fixture.read(group, "memory.limit_in_bytes", "memory.max").unwrap(), (64 << 20).to_string());
    let shares = fixture.read(group, "cpu.shares", "cpu.weight").unwrap();
    assert_eq!(shares, if is_v2 { "35" } else { "256" });
    let quota = fixture.read(group, "cpu.cfs_quota_us", "cpu.max").unwrap();
    assert_eq!(quota, if is_v2 { "50000 100000" } else { "50000" });
    let tier = fixture.read("kubepods/burstable", "cpu.shares", "cpu.weight").unwrap();
    assert_eq!(tier, shares, "the tier has what its pods request together");

    // A group that a killed agent left without its limits gets them from the next.
    for dir in fixture.dirs(group) {
        let _ = std::fs::write(dir.join("pids.max"), "5");
    }
    fixture.cgroups.ensure(&pod).unwrap();
    assert_eq!(fixture.read(group, "pids.max", "pids.max").unwrap(), "5", "once set they are left alone");
    fixture.cgroups.known().clear();
    fixture.cgroups.ensure(&pod).unwrap();
    assert_eq!(fixture.read(group, "pids.max", "pids.max").unwrap(), "77");

    // A leftover process in a container's group.
    let mut leftover = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
    for dir in fixture.dirs(group) {
        let container = dir.join("container");
        std::fs::create_dir(&container).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = std::fs::read_to_string(dir.join(file)) {
                std::fs::write(container.join(file), value.trim()).unwrap();
            }
        }
        std::fs::write(container.join("cgroup.procs"), leftover.id().to_string()).unwrap();
    }
    // What a runtime makes where no controller limits pods.
    if let Hierarchy::V1 { all, .. } = &fixture.cgroups.hierarchy {
        for point in all {
            std::fs::create_dir_all(point.join(fixture.root.trim_start_matches('/')).join(group)).unwrap();
        }
    }
    // A dead child of the test would stay in its group until it is waited for.
    let waiter = std::thread::spawn(move || leftover.wait().unwrap());
    assert!(fixture.cgroups.remove("u1").is_empty());
    assert!(!waiter.join().unwrap().success());
    assert!(fixture.dirs(group).is_empty());
    assert!(fixture.cgroups.remove("u1").is_empty(), "twice is once");
}

#[test]
fn best_effort_pods_have_the_least_share_and_no_limit() {
    let fixture = Fixture::new("besteffort");
    fixture.cgroups.ensure(&pod("u2", json!({"name": "c"}))).unwrap();
    let group = "kubepods/besteffort/podu2";
    let is_v2 = matches!(fixture.cgroups.hierarchy, Hierarchy::V2 { .. });
    let least = if is_v2 { "1" } else { "2" };
    assert_eq!(fixture.read(group, "cpu.shares", "cpu.weight").unwrap(), least);
    assert_eq!(fixture.read("kubepods/besteffort", "cpu.shares", "cpu.weight").unwrap(), least);
    let quota = fixture.read(group, "cpu.cfs_quota_us", "cpu.max").unwrap();
    assert_eq!(quota, if is_v2 { "max 100000" } else { "-1" });
    assert!(fixture.cgroups.remove("u2").is_empty());
}

#[test]
fn without_controllers_there_is_a_name_and_nothing_to_do() {
    let config = PodCgroupConfig {
        enforced: None,
        root: "/".into(),
        driver: CgroupDriver::Cgroupfs,
        pids_limit: None,
        enforce_cpu_limits: true,
        cpu_period_us: 100_000,
    };
    let hierarchy = Hierarchy::V1 { mounts: Vec::new(), all: Vec::new() };
    let cgroups = PodCgroups {
        config,
        hierarchy,
        hugepage_sizes: vec![2 << 20],
        systemd: None,
        known: Mutex::default(),
        is_top_limited: AtomicBool::new(false),
        is_failure_told: AtomicBool::new(false),
    };
    let pod = pod("u3", limited());
    cgroups.ensure(&pod).unwrap();
    assert_eq!(cgroups.parent(&pod), "/kubepods/burstable/podu3");
    assert!(cgroups.remove("u3").is_empty());
}

#[test]
fn settings_leave_out_what_is_not_limited() {
    let limits = qos::PodCgroupLimits { cpu_shares: 2, cpu_period: 100_000, ..Default::default() };
    assert_eq!(write::settings(&limits, None, &[]), [write::Setting::CpuShares(2)]);
    let limits = qos::PodCgroupLimits {
        cpu_shares: 5,
        cpu_quota: Some(-1),
        cpu_period: 100_000,
        memory: Some(9),
        hugepages: [(2 << 20, 4)].into(),
    };
    assert_eq!(
        write::settings(&limits, Some(3), &[2 << 20, 1 << 30]),
        [
            write::Setting::CpuShares(5),
            write::Setting::CpuQuota { quota: -1, period: 100_000 },
            write::Setting::Memory(9),
            write::Setting::Pids(3),
            write::Setting::HugePages { page_size: 2 << 20, limit: 4 },
            write::Setting::HugePages { page_size: 1 << 30, limit: 0 },
        ]
    );
}

#[test]
fn under_systemd_each_group_is_a_slice_with_its_limits_as_properties() {
    let mut fixture = Fixture::with("systemd", CgroupDriver::Systemd);
    let dir = tempfile::Builder::new().prefix("coracle-busctl-").tempdir().unwrap();
    let (busctl, log) = (dir.path().join("busctl"), dir.path().join("log"));
    // Stands in for systemd: notes the call, and refuses what it is told to.
    let script = format!(
        "#!/bin/sh\nshift 7\necho \"$*\" >> {log}\ncase \"$*\" in *refused*) echo no such bus >&2; exit 1;; esac\n",
        log = log.display()
    );
    std::fs::write(&busctl, script).unwrap();
    std::fs::set_permissions(&busctl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fixture.cgroups.systemd = Some(Systemd::new(&busctl));

    fixture.cgroups.ensure(&pod("u-9", limited())).unwrap();
    assert!(!fixture.dirs("kubepods/burstable/podu-9").is_empty());
    assert!(fixture.cgroups.remove("u-9").is_empty());
    let calls = std::fs::read_to_string(&log).unwrap();
    let root = fixture.root.trim_start_matches('/');
    let slice = format!("{root}-kubepods-burstable-podu_9.slice");
    let start = |unit: &str| {
        format!(
            "StartTransientUnit ssa(sv)a(sa(sv)) {unit} replace 2 Description s Pods of Coracle \
             DefaultDependencies b false 0"
        )
    };
    let mut calls: Vec<&str> = calls.lines().collect();
    let all_pods = calls.remove(1);
    assert!(
        all_pods.starts_with(&format!("SetUnitProperties sba(sv) {root}-kubepods.slice true 1 TasksMax t ")),
        "{all_pods}"
    );
    assert_eq!(calls[0], start(&format!("{root}-kubepods.slice")));
    assert_eq!(calls[1], start(&format!("{root}-kubepods-burstable.slice")));
    assert_eq!(calls[2], start(&slice));
    let cpu =
        if matches!(fixture.cgroups.hierarchy, Hierarchy::V2 { .. }) { "CPUWeight" } else { "CPUShares" };
    assert!(
        calls[3].starts_with(&format!("SetUnitProperties sba(sv) {slice} true 4 {cpu} t ")),
        "{}",
        calls[3]
    );
    assert!(calls[3].ends_with(" t 67108864 TasksMax t 77"), "{}", calls[3]);
    assert_eq!(calls[5], format!("StopUnit ss {slice} replace"));

    let refused = fixture.cgroups.ensure(&pod("refused", limited())).unwrap_err().to_string();
    assert!(
        refused.starts_with("systemd, which --cgroup-driver=systemd needs, does not set up "),
        "{refused}"
    );
    assert!(refused.ends_with(": no such bus"), "{refused}");
}

/// What becomes more is there for a container that starts anew; what becomes less waits for the containers.
#[test]
fn a_pod_that_asks_for_more_has_it_before_its_containers_and_gives_after_them() {
    let fixture = Fixture::new("resize");
    let with = |memory: &str, cpu: &str| {
        let amounts = json!({"cpu": cpu, "memory": memory});
        pod("uid-r", json!({"name": "c", "resources": {"requests": amounts, "limits": amounts}}))
    };
    let group = "kubepods/poduid-r";
    let memory = |fixture: &Fixture| fixture.read(group, "memory.limit_in_bytes", "memory.max").unwrap();
    let quota = |fixture: &Fixture| {
        let text = fixture.read(group, "cpu.cfs_quota_us", "cpu.max").unwrap();
        text.split(' ').next().unwrap().to_owned()
    };
    let small = with("64Mi", "500m");
    fixture.cgroups.ensure(&small).unwrap();
    assert_eq!((memory(&fixture).as_str(), quota(&fixture).as_str()), ("67108864", "50000"));
    fixture.cgroups.ensure(&with("128Mi", "250m")).unwrap();
    assert_eq!((memory(&fixture).as_str(), quota(&fixture).as_str()), ("134217728", "50000"));
    let (before, now) = (fixture.cgroups.limits(&small), with("32Mi", "1"));
    fixture.cgroups.resize(&now, &before, Extent::Raise).unwrap();
    assert_eq!(quota(&fixture), "100000");
    assert_eq!(memory(&fixture), "67108864");
    fixture.cgroups.resize(&now, &before, Extent::All).unwrap();
    assert_eq!(memory(&fixture), "33554432");
    assert!(fixture.cgroups.memory_use(&now).is_some());
    assert!(fixture.cgroups.remove("uid-r").is_empty());
}
