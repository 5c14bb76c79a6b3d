//! What of a node's leftovers goes: dead containers, sandboxes, images.
//!
//! Called by the collector; pure: takes what was observed, returns IDs. The rules are the kubelet's
//! (`kuberuntime_gc.go`, `image_gc_manager.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcPolicy {
    /// Dead containers kept of each container of a pod that is still wanted, newest first.
    pub max_per_pod_container: usize,
    /// Dead containers kept on the whole node; `None` for no bound.
    pub max_containers: Option<usize>,
    /// Dead containers younger than this are left alone.
    pub min_container_age: Duration,
    /// Percentage of the images' file system from which images are removed.
    pub image_high_percent: u8,
    /// Percentage down to which they are.
    pub image_low_percent: u8,
    /// Images seen for less than this are not removed: they may be about to be used.
    pub min_image_age: Duration,
    /// Images unused for longer than this are removed whatever the disk; `None` for never.
    pub max_image_age: Option<Duration>,
}

impl Default for GcPolicy {
    /// The kubelet's defaults.
    fn default() -> Self {
        Self {
            max_per_pod_container: 1,
            max_containers: None,
            min_container_age: Duration::ZERO,
            image_high_percent: 85,
            image_low_percent: 80,
            min_image_age: Duration::from_secs(120),
            max_image_age: None,
        }
    }
}

/// What a container is doing, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// Created or exited.
    Dead,
    /// Nobody knows; it may run.
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct SeenContainer {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) pod_uid: String,
    pub(super) sandbox_id: String,
    /// Wall time in nanoseconds.
    pub(super) created_at: i64,
    pub(super) life: Life,
}

#[derive(Clone, Debug)]
pub(super) struct SeenSandbox {
    pub(super) id: String,
    pub(super) pod_uid: String,
    /// Wall time in nanoseconds.
    pub(super) created_at: i64,
    pub(super) is_ready: bool,
}

/// A container to remove.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ContainerRemoval {
    pub(super) id: String,
    /// It may run and is stopped first.
    pub(super) stop_first: bool,
}

/// UIDs of pods that are wanted or still being ended.
pub(super) type Known = BTreeSet<Arc<str>>;

/// Dead containers that go, oldest first.
pub(super) fn containers(
    seen: &[SeenContainer],
    known: &Known,
    policy: &GcPolicy,
    now_wall_nanos: i64,
) -> Vec<ContainerRemoval> {
    let min_age = i64::try_from(policy.min_container_age.as_nanos()).unwrap_or(i64::MAX);
    let mut units: BTreeMap<(&str, &str), Vec<&SeenContainer>> = BTreeMap::new();
    for container in seen.iter().filter(|container| container.life != Life::Running) {
        // A wall clock that was set back makes ages negative; such a container is kept until it is not.
        if now_wall_nanos.saturating_sub(container.created_at) >= min_age {
            units.entry((&container.pod_uid, &container.name)).or_default().push(container);
        }
    }
    let mut removed: Vec<&SeenContainer> = Vec::new();
    for ((uid, _), unit) in &mut units {
        let count = if known.contains(*uid) { policy.max_per_pod_container } else { 0 };
        removed.extend(beyond_newest(unit, count));
    }
    units.retain(|_, unit| !unit.is_empty());
    if let Some(max) = policy.max_containers {
        let total = |units: &BTreeMap<_, Vec<&SeenContainer>>| units.values().map(Vec::len).sum::<usize>();
        if total(&units) > max {
            let each = (max / units.len()).max(1);
            for unit in units.values_mut() {
                removed.extend(beyond_newest(unit, each));
            }
            let mut rest: Vec<&SeenContainer> = units.into_values().flatten().collect();
            removed.extend(beyond_newest(&mut rest, max));
        }
    }
    removed.sort_by_key(|container| container.created_at);
    let removal = |container: &SeenContainer| ContainerRemoval {
        id: container.id.clone(),
        stop_first: container.life == Life::Unknown,
    };
    removed.into_iter().map(removal).collect()
}

/// Takes away all but the newest `count`.
fn beyond_newest<'s>(unit: &mut Vec<&'s SeenContainer>, count: usize) -> Vec<&'s SeenContainer> {
    unit.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| b.id.cmp(&a.id)));
    unit.split_off(count.min(unit.len()))
}

/// Sandboxes that go, oldest first: those that neither run nor hold a container, except the newest of a pod
/// that is still wanted.
pub(super) fn sandboxes(seen: &[SeenSandbox], containers: &[SeenContainer], known: &Known) -> Vec<String> {
    let occupied: BTreeSet<&str> = containers.iter().map(|container| container.sandbox_id.as_str()).collect();
    let mut pods: BTreeMap<&str, Vec<&SeenSandbox>> = BTreeMap::new();
    for sandbox in seen {
        pods.entry(&sandbox.pod_uid).or_default().push(sandbox);
    }
    let mut removed: Vec<&SeenSandbox> = Vec::new();
    for (uid, mut sandboxes) in pods {
        sandboxes.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| b.id.cmp(&a.id)));
        let kept = usize::from(known.contains(uid));
        let idle = |sandbox: &&SeenSandbox| !sandbox.is_ready && !occupied.contains(sandbox.id.as_str());
        removed.extend(sandboxes.into_iter().skip(kept).filter(idle));
    }
    removed.sort_by_key(|sandbox| sandbox.created_at);
    removed.into_iter().map(|sandbox| sandbox.id.clone()).collect()
}

/// An image and what is remembered of it. Times are since boot.
#[derive(Clone, Debug)]
pub(super) struct SeenImage {
    pub(super) id: String,
    pub(super) size: u64,
    pub(super) in_use: bool,
    pub(super) pinned: bool,
    pub(super) first_detected: Duration,
    pub(super) last_used: Option<Duration>,
}

/// Space of the file system that holds the images, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// All of it.
    pub capacity: u64,
    /// What is left for images.
    pub available: u64,
}

impl DiskUsage {
    /// How full it is, rounded up as the kubelet rounds.
    pub fn percent(&self) -> u8 {
        if self.capacity == 0 {
            return 100;
        }
        let free = u128::from(self.available.min(self.capacity)) * 100 / u128::from(self.capacity);
        100 - u8::try_from(free).unwrap_or(100)
    }
}

/// Images to remove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ImagePlan {
    /// Too old, whatever the disk.
    pub(super) aged: Vec<String>,
    /// How much to free beyond that; zero if the disk is not full.
    pub(super) bytes_to_free: u64,
    /// Where it may come from, in order, with sizes.
    pub(super) candidates: Vec<(String, u64)>,
}

/// Which images go, the longest unused first.
pub(super) fn images(seen: &[SeenImage], disk: DiskUsage, policy: &GcPolicy, now: Duration) -> ImagePlan {
    let mut free: Vec<&SeenImage> = seen.iter().filter(|image| !image.in_use && !image.pinned).collect();
    free.sort_by_key(|image| (image.last_used, image.first_detected, image.id.clone()));
    let is_aged = |image: &&SeenImage| {
        let since = image.last_used.unwrap_or(image.first_detected);
        policy.max_image_age.is_some_and(|limit| now.saturating_sub(since) > limit)
    };
    let (aged, rest): (Vec<_>, Vec<_>) = free.into_iter().partition(is_aged);
    let mut plan =
        ImagePlan { aged: aged.iter().map(|image| image.id.clone()).collect(), ..Default::default() };
    if disk.percent() < policy.image_high_percent {
        return plan;
    }
    let wanted = u128::from(disk.capacity) * u128::from(100 - policy.image_low_percent.min(100)) / 100;
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    plan.bytes_to_free = wanted.saturating_sub(disk.available);
    let is_settled = |image: &&SeenImage| now.saturating_sub(image.first_detected) >= policy.min_image_age;
    plan.candidates =
        rest.into_iter().filter(is_settled).map(|image| (image.id.clone(), image.size)).collect();
    plan
}

/// When to look at the disk again, if nothing happens before: often when it is nearly full, hardly ever when
/// it is not. Whatever fills a disk by ten percent in an hour on these machines is no image.
pub(super) fn next_disk_check(disk: DiskUsage, policy: &GcPolicy) -> Duration {
    let near = disk.percent().saturating_add(10) >= policy.image_high_percent;
    Duration::from_secs(if near { 300 } else { 3600 })
}

/// UID of the pod that a folder of logs belongs to: `namespace_name_uid`.
pub(super) fn uid_of_log_folder(name: &str) -> Option<&str> {
    let mut parts = name.split('_');
    let uid = parts.nth(2)?;
    (parts.next().is_none() && !uid.is_empty()).then_some(uid)
}

/// ID of the container whose log a link in `/var/log/containers` shows: `pod_namespace_container-id.log`.
pub(super) fn id_of_log_link(name: &str) -> Option<&str> {
    let (_, id) = name.strip_suffix(".log")?.rsplit_once('-')?;
    (!id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000_000_000;

    fn known(uids: &[&str]) -> Known {
        uids.iter().map(|uid| Arc::from(*uid)).collect()
    }

    fn container(text: &str) -> SeenContainer {
        let parts: Vec<&str> = text.split(' ').collect();
        let life = match parts[3] {
            "running" => Life::Running,
            "unknown" => Life::Unknown,
            _ => Life::Dead,
        };
        SeenContainer {
            id: parts[0].into(),
            pod_uid: parts[1].into(),
            sandbox_id: format!("sandbox-of-{}", parts[1]),
            name: parts[2].into(),
            created_at: parts[4].parse::<i64>().unwrap() * MINUTE,
            life,
        }
    }

    /// `id uid container state minute` each; what is removed comes back as IDs.
    fn removed(seen: &[&str], known_uids: &[&str], policy: &GcPolicy) -> Vec<String> {
        let seen: Vec<_> = seen.iter().map(|text| container(text)).collect();
        let plan = containers(&seen, &known(known_uids), policy, 100 * MINUTE);
        plan.into_iter().map(|r| if r.stop_first { format!("{} stop", r.id) } else { r.id }).collect()
    }

    #[test]
    fn one_dead_container_of_each_is_kept_and_none_of_pods_that_are_gone() {
        let policy = GcPolicy::default();
        for (seen, known_uids, expected) in [
            (&["a p c dead 1", "b p c dead 2", "d p c dead 3"][..], &["p"][..], &["a", "b"][..]),
            (&["a p c dead 1", "b p d dead 2"], &["p"], &[]),
            (&["a p c dead 1", "b p c running 2"], &["p"], &[]),
            (&["a p c dead 1", "b q c dead 2"], &["q"], &["a"]),
            (&["a p c running 1"], &[], &[]),
            (&["a p c unknown 1"], &[], &["a stop"]),
            (&["a p c unknown 1", "b p c dead 2"], &["p"], &["a stop"]),
        ] {
            assert_eq!(removed(seen, known_uids, &policy), expected, "{seen:?}");
        }
        let young = GcPolicy { min_container_age: Duration::from_secs(60 * 60), ..policy };
        assert_eq!(removed(&["a p c dead 30", "b q c dead 50"], &[], &young), ["a"]);
        let none = GcPolicy { max_per_pod_container: 0, ..policy };
        assert_eq!(removed(&["a p c dead 1"], &["p"], &none), ["a"]);
    }

    #[test]
    fn a_bound_for_the_node_takes_evenly_and_then_the_oldest() {
        let policy = GcPolicy { max_per_pod_container: 3, max_containers: Some(2), ..GcPolicy::default() };
        let seen = ["a p c dead 1", "b p c dead 2", "d p c dead 3", "e q c dead 4", "f r c dead 5"];
        assert_eq!(removed(&seen, &["p", "q", "r"], &policy), ["a", "b", "d"]);
        assert_eq!(removed(&seen[..2], &["p"], &policy), Vec::<String>::new());
    }

    #[test]
    fn only_the_newest_sandbox_of_a_wanted_pod_is_kept() {
        let sandbox = |id: &str, uid: &str, created_at: i64, is_ready: bool| SeenSandbox {
            id: id.into(),
            pod_uid: uid.into(),
            created_at,
            is_ready,
        };
        let seen = [
            sandbox("old", "p", 1, false),
            sandbox("older-and-ready", "p", 0, true),
            sandbox("new", "p", 2, false),
            sandbox("gone", "q", 1, false),
            sandbox("gone-and-ready", "q", 2, true),
            sandbox("sandbox-of-r", "r", 1, false),
        ];
        let containers = [container("a r c dead 1")];
        assert_eq!(sandboxes(&seen, &containers, &known(&["p"])), ["old", "gone"]);
        assert_eq!(sandboxes(&seen, &[], &known(&["p"])), ["old", "gone", "sandbox-of-r"]);
    }

    fn image(id: &str, size: u64, first: u64, last: Option<u64>) -> SeenImage {
        SeenImage {
            id: id.into(),
            size,
            in_use: false,
            pinned: false,
            first_detected: Duration::from_secs(first),
            last_used: last.map(Duration::from_secs),
        }
    }

    #[test]
    fn images_go_when_the_disk_is_full_the_longest_unused_first() {
        let now = Duration::from_secs(1000);
        let seen = [
            image("used-late", 10, 0, Some(900)),
            image("never-used", 20, 5, None),
            image("used-early", 30, 0, Some(100)),
            image("just-pulled", 40, 950, None),
            SeenImage { in_use: true, ..image("in-use", 50, 0, Some(1000)) },
            SeenImage { pinned: true, ..image("pinned", 60, 0, None) },
        ];
        let policy = GcPolicy::default();
        let plan = |available| images(&seen, DiskUsage { capacity: 1000, available }, &policy, now);
        assert_eq!(plan(160), ImagePlan::default(), "84 % are not yet full");
        assert_eq!(plan(150).bytes_to_free, 50);
        let order: Vec<_> = plan(150).candidates.into_iter().map(|(id, _)| id).collect();
        assert_eq!(order, ["never-used", "used-early", "used-late"]);
        assert_eq!(plan(0).bytes_to_free, 200);
        let aging = GcPolicy { max_image_age: Some(Duration::from_secs(500)), ..policy };
        let aged = images(&seen, DiskUsage { capacity: 1000, available: 900 }, &aging, now);
        assert_eq!(aged.aged, ["never-used", "used-early"]);
        assert_eq!(aged.candidates, []);
    }

    #[test]
    fn fullness_is_rounded_up_and_decides_when_to_look_again() {
        for (capacity, available, percent) in
            [(1000, 1000, 0), (1000, 151, 85), (1000, 150, 85), (0, 0, 100), (10, 20, 0)]
        {
            assert_eq!(DiskUsage { capacity, available }.percent(), percent);
        }
        let next = |available| next_disk_check(DiskUsage { capacity: 100, available }, &GcPolicy::default());
        assert_eq!((next(26), next(25)), (Duration::from_secs(3600), Duration::from_secs(300)));
    }

    #[test]
    fn folders_and_links_of_logs_name_their_owners() {
        assert_eq!(uid_of_log_folder("default_web_uid-1"), Some("uid-1"));
        for name in ["default_web", "a_b_c_d", "a_b_", "lost+found"] {
            assert_eq!(uid_of_log_folder(name), None, "{name}");
        }
        assert_eq!(id_of_log_link("web_default_my-app-0a1b.log"), Some("0a1b"));
        for name in ["web_default_app-.log", "web_default_app-0a1b", "x.log"] {
            assert_eq!(id_of_log_link(name), None, "{name}");
        }
    }
}
