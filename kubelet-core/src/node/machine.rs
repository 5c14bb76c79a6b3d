//! What a node says of its machine: ids, processors, memory, disks, addresses.
//!
//! An edge: reads `/proc`, `/sys` and a few files. [`MachineFacts`] are read once at the start, [`Readings`] every
//! time the node's state is looked at; both are a handful of small reads. Nothing here keeps state.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pressure::{Observation, Observations, Signal};
use crate::node_ips::NodeIps;

/// What does not change while the machine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MachineFacts {
    /// Processors that are online.
    pub(crate) cores: u32,
    /// Bytes of memory.
    pub(crate) memory: i64,
    /// Bytes of swap.
    pub(crate) swap: i64,
    /// Page size in bytes and number of pages, of each size of huge pages.
    pub(crate) huge_pages: Vec<(i64, i64)>,
    /// `/etc/machine-id`.
    pub(crate) machine_id: String,
    /// The firmware's UUID, or the machine id.
    pub(crate) system_uuid: String,
    /// New with every boot.
    pub(crate) boot_id: String,
    /// As `uname -r` prints it.
    pub(crate) kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub(crate) os_image: String,
    /// As Go names it: `amd64`, `arm64`, `arm`.
    pub(crate) architecture: String,
}

impl MachineFacts {
    /// Looks at the machine. What cannot be read is empty or zero, as for a kubelet.
    pub(crate) fn read() -> Self {
        let meminfo = text("/proc/meminfo");
        Self {
            cores: online_processors(),
            memory: kibibytes(&meminfo, "MemTotal:"),
            swap: kibibytes(&meminfo, "SwapTotal:"),
            huge_pages: huge_pages(),
            machine_id: first_of(&["/etc/machine-id", "/var/lib/dbus/machine-id"]),
            system_uuid: first_of(&[
                "/sys/class/dmi/id/product_uuid",
                "/proc/device-tree/system-id",
                "/proc/device-tree/vm,uuid",
                "/etc/machine-id",
            ]),
            boot_id: first_of(&["/proc/sys/kernel/random/boot_id"]),
            kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
            os_image: os_image(&first_of(&["/etc/os-release", "/usr/lib/os-release"])),
            architecture: go_architecture(std::env::consts::ARCH).to_owned(),
        }
    }
}

/// What changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readings {
    /// For the signals of pressure.
    pub(crate) observations: Observations,
    /// Addresses, primary first; empty while the node has none.
    pub(crate) addresses: Arc<[IpAddr]>,
    /// Bytes of the file system with the pods' folders.
    pub(crate) storage: Option<i64>,
}

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The pods' folders.
    pub(crate) root_dir: PathBuf,
    /// The images; that of the pods' folders if not known.
    pub(crate) image_dir: Option<PathBuf>,
    /// The node's addresses.
    pub(crate) node_ips: NodeIps,
}

impl Readings {
    /// Looks at the machine now.
    pub(crate) fn read(places: &Places) -> Self {
        let mut observations = Observations::new();
        let meminfo = text("/proc/meminfo");
        let total = kibibytes(&meminfo, "MemTotal:");
        if total > 0 {
            // The working set of the root cgroup is what is used without the file cache that is not.
            let available =
                kibibytes(&meminfo, "MemFree:").saturating_add(kibibytes(&meminfo, "Inactive(file):"));
            let seen = Observation { available: available.min(total), capacity: total };
            observations.insert(Signal::MemoryAvailable, seen);
        }
        let nodefs = disk(&places.root_dir);
        let imagefs = places.image_dir.as_deref().and_then(disk).or(nodefs);
        if let Some((bytes, inodes)) = nodefs {
            observations.insert(Signal::NodefsAvailable, bytes);
            observations.extend(inodes.map(|inodes| (Signal::NodefsInodesFree, inodes)));
        }
        if let Some((bytes, inodes)) = imagefs {
            observations.insert(Signal::ImagefsAvailable, bytes);
            observations.extend(inodes.map(|inodes| (Signal::ImagefsInodesFree, inodes)));
        }
        observations.extend(process_ids().map(|ids| (Signal::PidAvailable, ids)));
        Self {
            observations,
            addresses: places.node_ips.look(),
            storage: nodefs.map(|(bytes, _)| bytes.capacity),
        }
    }
}

/// Bytes of the file system with this folder, which need not be made yet.
pub(crate) fn storage(root_dir: &Path) -> Option<i64> {
    disk(root_dir).map(|(bytes, _)| bytes.capacity)
}

/// Bytes and inodes of a file system; one without a number of inodes (btrfs) has none that run out.
fn disk(path: &Path) -> Option<(Observation, Option<Observation>)> {
    let existing = path.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok())?;
    let amount = |blocks: u64| i64::try_from(blocks.saturating_mul(existing.f_frsize)).unwrap_or(i64::MAX);
    let count = |inodes: u64| i64::try_from(inodes).unwrap_or(i64::MAX);
    let bytes = Observation { available: amount(existing.f_bavail), capacity: amount(existing.f_blocks) };
    let inodes = Observation { available: count(existing.f_ffree), capacity: count(existing.f_files) };
    Some((bytes, (existing.f_files > 0).then_some(inodes)))
}

/// Process ids that are left, of how many: threads that exist are in `/proc/loadavg`.
pub(crate) fn process_ids() -> Option<Observation> {
    let number = |path: &str| text(path).trim().parse::<i64>().ok();
    let capacity = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    let loadavg = text("/proc/loadavg");
    let running: i64 = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Observation { available: capacity - running, capacity })
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The first of the files that says something, without white space and the NUL of the device tree.
fn first_of(paths: &[&str]) -> String {
    let read = |path: &&str| {
        let text = text(path);
        let trimmed = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!trimmed.is_empty()).then(|| trimmed.to_owned())
    };
    paths.iter().find_map(read).unwrap_or_default()
}

/// A line of `/proc/meminfo` in bytes.
pub(crate) fn kibibytes(meminfo: &str, name: &str) -> i64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

fn online_processors() -> u32 {
    let listed = count_of_list(text("/sys/devices/system/cpu/online").trim());
    if listed > 0 {
        return listed;
    }
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// How many numbers a list such as `0-3,5` names.
fn count_of_list(list: &str) -> u32 {
    let count = |part: &str| -> Option<u32> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    list.split(',').filter_map(count).sum()
}

fn huge_pages() -> Vec<(i64, i64)> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let page = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let size: i64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        Some((size * 1024, count))
    };
    let mut pages: Vec<(i64, i64)> = entries.filter_map(Result::ok).filter_map(page).collect();
    pages.sort_unstable();
    pages
}

fn os_image(release: &str) -> String {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    match name.map(|name| name.trim_matches(['"', '\''])) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "Linux".to_owned(),
    }
}

fn go_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_tables_are_read() {
        assert_eq!(count_of_list("0-3,5"), 5);
        assert_eq!(count_of_list("0"), 1);
        assert_eq!(kibibytes("MemTotal:   16 kB\nInactive(file): 2 kB\n", "Inactive(file):"), 2048);
        assert_eq!(os_image("ID=debian\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_image(""), "Linux");
        assert_eq!(go_architecture("aarch64"), "arm64");
    }

    #[test]
    fn this_machine_has_what_every_machine_has() {
        let facts = MachineFacts::read();
        assert!(facts.cores > 0 && facts.memory > 0, "{facts:?}");
        assert!(!facts.boot_id.is_empty() && !facts.kernel_version.is_empty());
        let places = Places {
            root_dir: "/nonexistent/coracle".into(),
            image_dir: None,
            node_ips: NodeIps::given([IpAddr::from([192, 0, 2, 7])]),
        };
        let readings = Readings::read(&places);
        assert_eq!(*readings.addresses, [IpAddr::from([192, 0, 2, 7])]);
        let memory = readings.observations[&Signal::MemoryAvailable];
        assert!(memory.available > 0 && memory.available <= memory.capacity);
        assert_eq!(readings.storage, readings.observations.get(&Signal::NodefsAvailable).map(|o| o.capacity));
    }
}
