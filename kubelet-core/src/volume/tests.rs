//! Volumes on a real file system, as root: each test in a folder of its own that is unmounted at its end.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::api::{ConfigMap, Secret};
use crate::sys;

/// A folder for a pod; whatever a test mounts there goes with it, also when the test fails.
struct PodDir(TempDir);

impl PodDir {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("coracle-volume-").tempdir().unwrap())
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("pod")
    }
}

impl Drop for PodDir {
    fn drop(&mut self) {
        assert!(tear_down(&self.path()).is_empty() || std::thread::panicking());
    }
}

#[derive(Default)]
struct Objects(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    maps: BTreeMap<String, Arc<ConfigMap>>,
    secrets: BTreeMap<String, Arc<Secret>>,
}

impl Objects {
    fn put_map(&self, name: &str, value: Value) {
        let map = serde_json::from_value(value).unwrap();
        self.0.lock().unwrap().maps.insert(name.into(), Arc::new(map));
    }

    fn put_secret(&self, name: &str, value: Value) {
        let secret = serde_json::from_value(value).unwrap();
        self.0.lock().unwrap().secrets.insert(name.into(), Arc::new(secret));
    }
}

impl ObjectSource for Objects {
    fn config_map(&self, _: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.0.lock().unwrap().maps.get(name).cloned()
    }

    fn secret(&self, _: &str, name: &str) -> Option<Arc<Secret>> {
        self.0.lock().unwrap().secrets.get(name).cloned()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u1", "labels": {"a": "b"}}, "spec": spec
    }))
    .unwrap()
}

/// Sets up the first volume of a pod and returns where it lies.
fn set_up_first(dir: &PodDir, pod: &Pod, objects: &dyn ObjectSource) -> Result<PathBuf, String> {
    let pod_dir = dir.path();
    let allocatable = BTreeMap::from([("cpu".to_owned(), "4".parse().unwrap())]);
    let inputs = VolumeInputs { pod_dir: &pod_dir, objects, allocatable: &allocatable, memory: 64 << 20 };
    let volume = &pod.spec.volumes[0];
    set_up(pod, volume, &inputs).map_err(|error| error.to_string())?;
    Ok(host_dir(&pod_dir, volume).unwrap())
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn an_empty_dir_on_disk_is_open_to_all_and_kept() {
    let dir = PodDir::new();
    let pod = pod(json!({"volumes": [{"name": "v", "emptyDir": {}}]}));
    let path = set_up_first(&dir, &pod, &Objects::default()).unwrap();
    assert_eq!(path, dir.path().join("volumes/kubernetes.io~empty-dir/v"));
    assert_eq!(mode(&path), 0o777);
    std::fs::write(path.join("data"), "x").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    set_up_first(&dir, &pod, &Objects::default()).unwrap();
    assert_eq!(std::fs::read_to_string(path.join("data")).unwrap(), "x");
    assert_eq!(mode(&path), 0o700, "what the pod made of it stays");
}

#[test]
fn an_empty_dir_in_memory_is_bounded_and_mounted_once_and_again_after_a_reboot() {
    let dir = PodDir::new();
    let source = json!({"medium": "Memory", "sizeLimit": "1Mi"});
    let pod = pod(json!({"volumes": [{"name": "v", "emptyDir": source}]}));
    let path = set_up_first(&dir, &pod, &Objects::default()).unwrap();
    assert!(sys::is_tmpfs(&path).unwrap());
    assert_eq!(mode(&path), 0o1777);
    std::fs::write(path.join("fits"), vec![0; 512 << 10]).unwrap();
    let full = std::fs::write(path.join("too-much"), vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    set_up_first(&dir, &pod, &Objects::default()).unwrap();
    assert_eq!(sys::mounts_below(&path).unwrap().len(), 1);
    assert!(path.join("fits").exists());
    // A kill between the mount and its marker: the mount stays.
    let ready = dir.path().join("plugins/kubernetes.io~empty-dir/v/ready");
    std::fs::remove_dir(&ready).unwrap();
    set_up_first(&dir, &pod, &Objects::default()).unwrap();
    assert!(ready.is_dir() && path.join("fits").exists());
    assert_eq!(sys::mounts_below(&path).unwrap().len(), 1);
    // What a reboot leaves: the folder without its mount.
    assert!(sys::unmount(&path).unwrap());
    set_up_first(&dir, &pod, &Objects::default()).unwrap();
    assert!(sys::is_tmpfs(&path).unwrap() && !path.join("fits").exists());
}

#[test]
fn memory_is_bounded_by_the_volume_the_pod_and_the_node() {
    let limit = |size: Option<&str>, pod_limit: Option<&str>| {
        let container = match pod_limit {
            Some(limit) => json!({"name": "c", "resources": {"limits": {"memory": limit}}}),
            None => json!({"name": "c"}),
        };
        let pod = pod(json!({"containers": [container]}));
        let size: Option<Quantity> = size.map(|size| size.parse().unwrap());
        empty_dir::Medium::memory(&pod, size.as_ref(), 100)
    };
    for (size, pod_limit, expected) in [
        (None, None, 100),
        (Some("10"), None, 10),
        (Some("1000"), None, 100),
        (Some("0"), None, 100),
        (None, Some("50"), 50),
        (Some("70"), Some("50"), 50),
        (Some("20"), Some("50"), 20),
        (None, Some("500"), 100),
    ] {
        assert_eq!(
            limit(size, pod_limit),
            empty_dir::Medium::Memory { limit: expected },
            "{size:?} {pod_limit:?}"
        );
    }
}

#[test]
fn media_that_cannot_be_had_are_told() {
    let dir = PodDir::new();
    let try_medium = |medium: &str, requests: Value| {
        let pod = pod(json!({"volumes": [{"name": "v", "emptyDir": {"medium": medium}}],
            "containers": [{"name": "c", "resources": {"requests": requests}}]}));
        set_up_first(&dir, &pod, &Objects::default()).unwrap_err()
    };
    assert_eq!(try_medium("Paper", json!({})), "unknown storage medium \"Paper\"");
    assert_eq!(
        try_medium("HugePages", json!({})),
        "medium HugePages: hugePages storage requested, but there is no resource request for huge pages"
    );
    assert_eq!(
        try_medium("HugePages", json!({"hugepages-2Mi": "2Mi", "hugepages-1Gi": "1Gi"})),
        "medium: HugePages can't be used if container requests multiple huge page sizes"
    );
    let one =
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"hugepages-2Mi": "2Mi"}}}]}));
    let source = EmptyDirVolumeSourceOf("HugePages-2Mi").source();
    let medium = empty_dir::Medium::of(&one, Some(&source), 1).unwrap();
    assert_eq!(medium, empty_dir::Medium::HugePages { page_size: 2 << 20 });
}

struct EmptyDirVolumeSourceOf(&'static str);

impl EmptyDirVolumeSourceOf {
    fn source(&self) -> crate::api::EmptyDirVolumeSource {
        crate::api::EmptyDirVolumeSource { medium: self.0.into(), size_limit: None }
    }
}

#[test]
fn host_paths_are_what_their_type_says() {
    let dir = PodDir::new();
    let root = dir.0.path();
    std::fs::create_dir(root.join("dir")).unwrap();
    std::fs::write(root.join("file"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("sock")).unwrap();
    symlink("dir", root.join("link")).unwrap();
    let check = |path: &str, kind: &str| {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", root.display()) };
        let pod = pod(json!({"volumes": [{"name": "v", "hostPath": {"path": path, "type": kind}}]}));
        set_up_first(&dir, &pod, &Objects::default()).map(drop)
    };
    for (path, kind) in [
        ("none", ""),
        ("dir", "Directory"),
        ("link", "Directory"),
        ("dir", "DirectoryOrCreate"),
        ("made/deep", "DirectoryOrCreate"),
        ("file", "File"),
        ("touched", "FileOrCreate"),
        ("sock", "Socket"),
        ("/dev/null", "CharDevice"),
    ] {
        check(path, kind).unwrap();
    }
    assert!(root.join("made/deep").is_dir() && root.join("touched").is_file());
    for (path, kind, what) in [
        ("file", "Directory", "directory"),
        ("none", "Directory", "directory"),
        ("file", "DirectoryOrCreate", "directory"),
        ("dir", "File", "file"),
        ("dir", "FileOrCreate", "file"),
        ("file", "Socket", "socket file"),
        ("file", "CharDevice", "character device"),
        ("/dev/null", "BlockDevice", "block device"),
    ] {
        let error = check(path, kind).unwrap_err();
        assert!(error.starts_with("hostPath type check failed: /"), "{error}");
        assert!(error.ends_with(&format!("{path} is not a {what}")), "{error}");
    }
    assert_eq!(check("dir", "Odd").unwrap_err(), "Odd is an invalid volume type");
    assert!(check("none/below", "FileOrCreate").is_err());
}

#[test]
fn a_config_map_becomes_files_that_change_as_one() {
    let dir = PodDir::new();
    let objects = Objects::default();
    let source = json!({"name": "cm", "defaultMode": 0o400, "items": [
        {"key": "a", "path": "sub/a.txt"}, {"key": "b", "path": "b", "mode": 0o755}]});
    let pod = pod(json!({"volumes": [{"name": "v", "configMap": source}]}));
    assert_eq!(set_up_first(&dir, &pod, &objects).unwrap_err(), "configmap \"cm\" not found");
    objects.put_map("cm", json!({"data": {"a": "1"}}));
    assert_eq!(
        set_up_first(&dir, &pod, &objects).unwrap_err(),
        "configmap references non-existent config key: b"
    );
    objects.put_map("cm", json!({"data": {"a": "1"}, "binaryData": {"b": "AAE="}}));
    let path = set_up_first(&dir, &pod, &objects).unwrap();
    assert_eq!(std::fs::read(path.join("sub/a.txt")).unwrap(), b"1");
    assert_eq!(std::fs::read(path.join("b")).unwrap(), [0, 1]);
    let data = std::fs::read_link(path.join("..data")).unwrap();
    assert_eq!(
        (mode(&path.join(&data).join("sub/a.txt")), mode(&path.join(&data).join("b"))),
        (0o400, 0o755)
    );
    assert_eq!(std::fs::read_link(path.join("sub")).unwrap(), Path::new("..data/sub"));

    set_up_first(&dir, &pod, &objects).unwrap();
    assert_eq!(std::fs::read_link(path.join("..data")).unwrap(), data, "nothing changed, nothing is written");

    objects.put_map("cm", json!({"data": {"a": "2", "b": "3"}}));
    set_up_first(&dir, &pod, &objects).unwrap();
    assert_ne!(std::fs::read_link(path.join("..data")).unwrap(), data);
    assert_eq!(std::fs::read(path.join("sub/a.txt")).unwrap(), b"2");
    let names = std::fs::read_dir(&path).unwrap().count();
    assert_eq!(names, 4, "two names, the link and one folder with data");
}

#[test]
fn keys_that_go_take_their_files_along_and_a_missing_source_leaves_all() {
    let dir = PodDir::new();
    let objects = Objects::default();
    let pod = pod(json!({"volumes": [{"name": "v", "configMap": {"name": "cm", "optional": false}}]}));
    objects.put_map("cm", json!({"data": {"a": "1", "b": "2"}}));
    let path = set_up_first(&dir, &pod, &objects).unwrap();
    objects.put_map("cm", json!({"data": {"b": "2"}}));
    set_up_first(&dir, &pod, &objects).unwrap();
    assert!(std::fs::symlink_metadata(path.join("a")).is_err());
    objects.0.lock().unwrap().maps.clear();
    set_up_first(&dir, &pod, &objects).unwrap_err();
    assert_eq!(std::fs::read(path.join("b")).unwrap(), b"2");
}

#[test]
fn an_optional_source_may_come_later() {
    let dir = PodDir::new();
    let objects = Objects::default();
    let pod = pod(json!({"volumes": [{"name": "v", "secret": {"secretName": "s", "optional": true,
        "items": [{"key": "k", "path": "k"}]}}]}));
    let path = set_up_first(&dir, &pod, &objects).unwrap();
    assert!(sys::is_tmpfs(&path).unwrap(), "a secret is never on disk");
    assert!(path.join("..data").is_dir());
    objects.put_secret("s", json!({"data": {"k": "aGk="}}));
    set_up_first(&dir, &pod, &objects).unwrap();
    assert_eq!(std::fs::read(path.join("k")).unwrap(), b"hi");
}

#[test]
fn a_write_that_was_cut_off_is_finished_by_the_next() {
    let dir = PodDir::new();
    let objects = Objects::default();
    let pod = pod(json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}]}));
    objects.put_map("cm", json!({"data": {"a": "1"}}));
    let path = set_up_first(&dir, &pod, &objects).unwrap();
    // A kill between any two steps leaves a folder without a link, a link not yet renamed, or a missing name.
    std::fs::create_dir(path.join("..2001_01_01_00_00_00.1")).unwrap();
    std::fs::write(path.join("..2001_01_01_00_00_00.1/half"), "").unwrap();
    symlink("..2001_01_01_00_00_00.1", path.join("..data_tmp")).unwrap();
    std::fs::remove_file(path.join("a")).unwrap();
    objects.put_map("cm", json!({"data": {"a": "2"}}));
    set_up_first(&dir, &pod, &objects).unwrap();
    assert_eq!(std::fs::read(path.join("a")).unwrap(), b"2");
    let hidden = std::fs::read_dir(&path).unwrap().count();
    assert_eq!(hidden, 3, "the name, the link and one folder");
}

#[test]
fn paths_that_climb_are_refused() {
    let dir = PodDir::new();
    let objects = Objects::default();
    objects.put_map("cm", json!({"data": {"a": "1"}}));
    for path in ["../x", "/x", "a/../../x", "..x", ""] {
        let source = json!({"name": "cm", "items": [{"key": "a", "path": path}]});
        let pod = pod(json!({"volumes": [{"name": "v", "configMap": source}]}));
        let error = set_up_first(&dir, &pod, &objects).unwrap_err();
        assert!(error.starts_with("invalid path: "), "{error}");
    }
}

#[test]
fn projected_sources_and_fields_share_a_folder() {
    let dir = PodDir::new();
    let objects = Objects::default();
    objects.put_map("cm", json!({"data": {"a": "1", "same": "map"}}));
    objects.put_secret("s", json!({"data": {"same": "c2VjcmV0"}}));
    let projected = |sources: Value| {
        pod(json!({
            "containers": [{"name": "c", "resources": {"limits": {"memory": "2Mi"}}}],
            "volumes": [{"name": "v", "projected": {"sources": sources, "defaultMode": 0o440}}]
        }))
    };
    let all = projected(json!([
        {"configMap": {"name": "cm"}}, {"secret": {"name": "s"}},
        {"downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "mem", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory", "divisor": "1Mi"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}}
        ]}}
    ]));
    let path = set_up_first(&dir, &all, &objects).unwrap();
    for (name, content) in [("a", "1"), ("same", "secret"), ("labels", "a=\"b\""), ("mem", "2"), ("cpu", "4")]
    {
        assert_eq!(std::fs::read_to_string(path.join(name)).unwrap(), content, "{name}");
    }
    let token = projected(json!([{"serviceAccountToken": {"path": "t"}}]));
    let error = set_up_first(&dir, &token, &objects).unwrap_err();
    assert!(
        error.starts_with("projected source serviceAccountToken is not supported on this node: "),
        "{error}"
    );
    let field = pod(json!({"volumes": [{"name": "v", "downwardAPI": {"items": [
        {"path": "x", "fieldRef": {"fieldPath": "spec.nodeName"}}]}}]}));
    assert_eq!(set_up_first(&dir, &field, &objects).unwrap_err(), "unsupported fieldPath: spec.nodeName");
}

#[test]
fn types_that_need_a_cluster_say_what_to_do() {
    let dir = PodDir::new();
    for (source, name) in [
        (json!({"name": "v", "nfs": {"server": "x", "path": "/"}}), "nfs"),
        (json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}), "persistentVolumeClaim"),
        (json!({"name": "v", "csi": {"driver": "d"}}), "csi"),
    ] {
        let error = set_up_first(&dir, &pod(json!({"volumes": [source]})), &Objects::default()).unwrap_err();
        assert!(error.starts_with(&format!("volume type {name} is not supported on this node: ")), "{error}");
    }
}

#[test]
fn the_fs_group_owns_what_lives_with_the_pod() {
    let dir = PodDir::new();
    let objects = Objects::default();
    objects.put_secret("s", json!({"data": {"k": "aGk="}}));
    let spec = |volume: Value| pod(json!({"securityContext": {"fsGroup": 4321}, "volumes": [volume]}));
    let path = set_up_first(&dir, &spec(json!({"name": "e", "emptyDir": {}})), &objects).unwrap();
    assert_eq!((std::fs::metadata(&path).unwrap().gid(), mode(&path)), (4321, 0o2777));
    let memory = spec(json!({"name": "m", "emptyDir": {"medium": "Memory"}}));
    let path = set_up_first(&dir, &memory, &objects).unwrap();
    assert_eq!((std::fs::metadata(&path).unwrap().gid(), mode(&path)), (4321, 0o3777));
    let secret = spec(json!({"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}}));
    let path = set_up_first(&dir, &secret, &objects).unwrap();
    let file = std::fs::metadata(path.join("k")).unwrap();
    assert_eq!((file.gid(), file.mode() & 0o7777), (4321, 0o440));
    let data = std::fs::metadata(path.join("..data")).unwrap();
    assert_eq!((data.gid(), data.mode() & 0o7777), (4321, 0o2755));
}

#[test]
fn mount_points_inside_a_read_only_volume_exist() {
    let dir = PodDir::new();
    let objects = Objects::default();
    objects.put_map("cm", json!({"data": {"a": "1"}}));
    let pod = pod(json!({
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}, {"name": "w", "emptyDir": {}}],
        "containers": [{"name": "c", "volumeMounts": [
            {"name": "v", "mountPath": "/etc/app"}, {"name": "w", "mountPath": "/etc/app/x/y/"},
            {"name": "w", "mountPath": "/etc/app/x/y/z"}, {"name": "w", "mountPath": "/etc/app2"},
            {"name": "w", "mountPath": "/etc/app/x-y"}, {"name": "w", "mountPath": "/etc/app/../p"}
        ]}]
    }));
    assert_eq!(payload::nested_mount_points(&pod, "v"), ["x/y", "x-y"]);
    let path = set_up_first(&dir, &pod, &objects).unwrap();
    assert!(path.join("x/y").is_dir() && path.join("x-y").is_dir() && !path.join("x/y/z").exists());
    assert_eq!(std::fs::read(path.join("a")).unwrap(), b"1");
    set_up_first(&dir, &pod, &objects).unwrap();
    assert!(path.join("x/y").is_dir());
}

#[test]
fn an_immutable_object_stays_what_it_was_while_a_pod_uses_it() {
    let source = Arc::new(Objects::default());
    source.put_map("cm", json!({"immutable": true, "data": {"a": "1"}}));
    source.put_map("plain", json!({"data": {"a": "1"}}));
    let held = Immutables::new(source.clone());
    let first = held.for_pod("p1".into());
    let value =
        |objects: &PodObjects<'_>, name: &str| objects.config_map("ns", name).unwrap().data["a"].clone();
    assert_eq!((value(&first, "cm"), value(&first, "plain")), ("1".into(), "1".into()));
    source.put_map("cm", json!({"immutable": true, "data": {"a": "2"}}));
    source.put_map("plain", json!({"data": {"a": "2"}}));
    assert_eq!((value(&first, "cm"), value(&first, "plain")), ("1".into(), "2".into()));
    assert_eq!(value(&held.for_pod("p2".into()), "cm"), "1");
    held.release("p1");
    assert_eq!(value(&held.for_pod("p2".into()), "cm"), "1");
    held.release("p2");
    assert_eq!(value(&held.for_pod("p3".into()), "cm"), "2");
    assert!(first.secret("ns", "none").is_none());
}

#[test]
fn teardown_unmounts_all_and_spares_what_lies_behind() {
    let dir = PodDir::new();
    let outside = dir.0.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), "x").unwrap();
    let memory = pod(json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]}));
    let path = set_up_first(&dir, &memory, &Objects::default()).unwrap();
    symlink(&outside, path.parent().unwrap().join("link")).unwrap();
    let bound = dir.path().join("bound here");
    std::fs::create_dir_all(&bound).unwrap();
    let source = rustix::fs::open(&outside, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    sys::bind_fd(&source, &bound).unwrap();
    sys::bind_fd(&source, &bound).unwrap();
    assert_eq!(sys::mounts_below(&dir.path()).unwrap().len(), 3);
    assert!(tear_down(&dir.path()).is_empty());
    assert!(!dir.path().exists());
    assert!(sys::mounts_below(&dir.path()).unwrap().is_empty());
    assert_eq!(std::fs::read_to_string(outside.join("precious")).unwrap(), "x");
    assert!(tear_down(&dir.path()).is_empty(), "twice is once");
}

#[test]
fn disk_use_is_held_against_the_limit() {
    let dir = PodDir::new();
    let limited = |limit: &str| {
        pod(
            json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": limit}}, {"name": "w", "emptyDir": {}}]}),
        )
    };
    let path = set_up_first(&dir, &limited("1Mi"), &Objects::default()).unwrap();
    std::fs::create_dir(path.join("deep")).unwrap();
    std::fs::write(path.join("deep/data"), vec![1; 300 << 10]).unwrap();
    for name in ["two", "three", "four"] {
        std::fs::hard_link(path.join("deep/data"), path.join(name)).unwrap();
    }
    assert!(over_limit(&limited("1Mi"), &dir.path()).is_empty(), "one file under four names");
    assert_eq!(
        over_limit(&limited("256Ki"), &dir.path()),
        ["Usage of EmptyDir volume \"v\" exceeds the limit \"256Ki\". "]
    );
}

#[test]
fn what_containers_write_is_held_against_their_limits_of_storage() {
    let dir = PodDir::new();
    let logs = dir.0.path().join("logs");
    std::fs::create_dir_all(logs.join("a")).unwrap();
    std::fs::write(logs.join("a/0.log"), vec![1; 300 << 10]).unwrap();
    let limited = |a: &str, b: &str| {
        let container = |name: &str, limit: &str| json!({"name": name, "image": "i", "resources": {"limits": {"ephemeral-storage": limit}}});
        pod(
            json!({"containers": [container("a", a), container("b", b)], "volumes": [{"name": "v", "emptyDir": {}}]}),
        )
    };
    let fits = limited("1Mi", "1Mi");
    let path = set_up_first(&dir, &fits, &Objects::default()).unwrap();
    std::fs::write(path.join("data"), vec![1; 500 << 10]).unwrap();
    let layer = |bytes: u64, mountpoint: &str| {
        [Layer { container: "a".to_owned(), bytes, mountpoint: mountpoint.into() }]
    };
    let own = dir.0.path().to_str().unwrap();
    let over = |pod: &Pod, layers: &[Layer]| over_storage_limit(pod, &dir.path(), &logs, layers);
    assert!(over(&fits, &layer(100 << 10, own)).is_empty());
    let of_a = "Container a exceeded its local ephemeral storage limit \"350Ki\". ";
    assert_eq!(over(&limited("350Ki", "10Mi"), &layer(100 << 10, own)), [of_a]);
    assert!(over(&limited("350Ki", "10Mi"), &layer(100 << 10, "/proc")).is_empty(), "another disk's");
    assert_eq!(
        over(&limited("500Ki", "200Ki"), &[]),
        ["Pod ephemeral local storage usage exceeds the total limit of containers 700Ki. "]
    );
    assert!(is_limited(&fits) && !is_limited(&pod(json!({}))));
}
