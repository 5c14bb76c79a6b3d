//! Judges the cgroup controllers: which limits of pods this kernel can hold.

use super::Finding;

/// What the kernel says of cgroups.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// `/proc/cgroups`: a line per controller with its hierarchy, count and whether it is enabled.
    pub table: String,
    /// `/proc/mounts`.
    pub mounts: String,
    /// `cgroup.controllers` of the root of the unified hierarchy, if it is mounted.
    pub unified: Option<String>,
    /// Whether the machine has huge pages to give away.
    pub huge_pages: bool,
    /// Why the kernel takes no programs that decide about devices, if it takes none.
    pub no_device_programs: Option<String>,
}

impl Facts {
    pub(super) fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mounts = read("/proc/mounts");
        let unified = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| read(&format!("{path}/cgroup.controllers")))
        });
        let pools = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let is_filled = |pool: std::fs::DirEntry| {
            std::fs::read_to_string(pool.path().join("nr_hugepages")).is_ok_and(|count| count.trim() != "0")
        };
        Self {
            table: read("/proc/cgroups"),
            mounts,
            unified,
            huge_pages: pools.into_iter().any(is_filled),
            no_device_programs: coracle_runtime::maker::kernel_filters_devices()
                .err()
                .map(|error| error.to_string()),
        }
    }

    /// Mounted alone on version 1, or offered by the unified hierarchy.
    fn has(&self, controller: &str) -> bool {
        let on_v1 = self.mounts.lines().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words.get(2) == Some(&"cgroup")
                && words.get(3).is_some_and(|options| options.split(',').any(|option| option == controller))
        });
        let on_v2 =
            self.unified.as_ref().is_some_and(|list| list.split_whitespace().any(|name| name == controller));
        on_v1 || on_v2
    }

    /// Whether limits are written to version 2: with a controller on version 1, they are written there.
    fn is_unified(&self) -> bool {
        let is_v1 = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            words.get(2) == Some(&"cgroup") && words.get(3).is_some_and(|options| !options.contains("name="))
        };
        self.unified.is_some() && !self.mounts.lines().any(is_v1)
    }

    /// In the kernel, but turned off at boot.
    fn is_disabled(&self, controller: &str) -> bool {
        self.table.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.first() == Some(&controller) && words.get(3) == Some(&"0")
        })
    }
}

/// Findings on what is missing.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    if facts.unified.is_none() && !facts.mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup")) {
        return vec![Finding::error(
            "no cgroup file system is mounted, so no pod's processes can be held together",
            "mount -t cgroup2 none /sys/fs/cgroup (systemd does it at boot)",
        )];
    }
    let mut findings = Vec::new();
    let mut needed = vec![
        ("memory", "pods run without memory limits, and one pod can take all memory of the node"),
        ("cpu", "pods run without CPU limits and shares"),
        ("pids", "pods run without process limits, and a fork bomb harms the node"),
    ];
    if facts.huge_pages {
        needed.push(("hugetlb", "one pod can take all huge pages of the node"));
    }
    if !facts.is_unified() {
        needed.push(("devices", "containers can make and open every device of the node"));
        needed.push(("freezer", "containers cannot be paused, and a fork bomb may outrun its end"));
    } else if let Some(error) = &facts.no_device_programs {
        findings.push(Finding::error(
            format!("the kernel takes no device programs on cgroups ({error}), so no container can be made"),
            "use a kernel built with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL",
        ));
    }
    for (controller, follows) in needed {
        if facts.has(controller) {
            continue;
        }
        let cure = match (controller, facts.is_disabled(controller)) {
            ("memory", true) => {
                "add `cgroup_enable=memory cgroup_memory=1` to the kernel's command line (Raspberry Pi OS: \
                 the one line of /boot/firmware/cmdline.txt, before 2023 /boot/cmdline.txt) and reboot"
                    .to_owned()
            }
            (_, true) => {
                format!("remove `cgroup_disable={controller}` from the kernel's command line and reboot")
            }
            (_, false)
                if facts.table.lines().any(|line| line.split_whitespace().next() == Some(controller)) =>
            {
                format!(
                    "mount the controller, on version 1: mount -t cgroup -o {controller} cgroup /sys/fs/cgroup/{controller}"
                )
            }
            _ => format!("use a kernel built with {}", option(controller)),
        };
        findings.push(Finding::warning(
            format!("the {controller} cgroup controller is missing: {follows}"),
            cure,
        ));
    }
    findings
}

fn option(controller: &str) -> &'static str {
    match controller {
        "memory" => "CONFIG_MEMCG",
        "cpu" => "CONFIG_CGROUP_SCHED and CONFIG_CFS_BANDWIDTH",
        "hugetlb" => "CONFIG_CGROUP_HUGETLB",
        "devices" => "CONFIG_CGROUP_DEVICE",
        "freezer" => "CONFIG_CGROUP_FREEZER",
        _ => "CONFIG_CGROUP_PIDS",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raspberry_pi_oss_default_is_told_with_its_cure() {
        let facts = Facts {
            table: "#subsys_name hierarchy num_cgroups enabled\ncpu 0 1 1\nmemory 0 1 0\npids 0 1 1\n".into(),
            mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n".into(),
            unified: Some("cpuset cpu io pids\n".into()),
            ..Facts::default()
        };
        let findings = judge(&facts);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].what.contains("memory") && findings[0].cure.contains("cgroup_enable=memory"));
    }

    #[test]
    fn controllers_may_sit_on_version_1() {
        let facts = Facts {
            table: String::new(),
            mounts: ["cpu,cpuacct", "memory", "pids", "devices", "freezer"]
                .map(|name| format!("cgroup /sys/fs/cgroup/{name} cgroup rw,relatime,{name} 0 0\n"))
                .concat(),
            ..Facts::default()
        };
        assert_eq!(judge(&facts), []);
    }

    #[test]
    fn devices_are_kept_by_a_controller_or_by_programs() {
        let table = "devices 0 1 1\n".to_owned();
        let v1 = Facts {
            table: table.clone(),
            mounts: "cgroup /sys/fs/cgroup/all cgroup rw,memory,cpu,pids,freezer 0 0\n".into(),
            ..Facts::default()
        };
        let told = judge(&v1);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].what.contains("devices") && told[0].cure.contains("mount -t cgroup -o devices"));
        let v2 = Facts {
            mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n".into(),
            unified: Some("cpu memory pids\n".into()),
            no_device_programs: Some("Invalid argument".into()),
            ..Facts::default()
        };
        let told = judge(&v2);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].severity, super::super::Severity::Error);
        assert!(told[0].cure.contains("CONFIG_CGROUP_BPF"));
    }

    #[test]
    fn huge_pages_need_their_controller_where_there_are_some() {
        let facts = |huge_pages| Facts {
            mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n".into(),
            unified: Some("cpu memory pids\n".into()),
            huge_pages,
            ..Facts::default()
        };
        assert_eq!(judge(&facts(false)), []);
        assert!(judge(&facts(true))[0].cure.contains("CONFIG_CGROUP_HUGETLB"));
    }

    #[test]
    fn no_cgroups_at_all_is_an_error() {
        assert_eq!(judge(&Facts::default())[0].severity, super::super::Severity::Error);
    }
}
