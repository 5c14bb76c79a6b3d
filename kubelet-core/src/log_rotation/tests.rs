//! Rotation of real files, with a fake runtime that opens logs anew when told so.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use coracle_cri::testing::{FakeRuntime, Method};
use coracle_cri::v1::*;
use tempfile::TempDir;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct Fixture {
    runtime: FakeRuntime,
    root: TempDir,
    trigger: LogTrigger,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fixture {
    async fn new(policy: LogPolicy) -> Self {
        let runtime = FakeRuntime::new();
        runtime.create_log_files(true);
        runtime.add_image("busybox");
        let rotation =
            LogRotation::new(Arc::new(runtime.clone()), policy, Clock::system(), Duration::from_secs(5))
                .unwrap();
        let trigger = rotation.trigger();
        let task = tokio::spawn(rotation.run());
        Self { runtime, root: TempDir::new().unwrap(), trigger, task }
    }

    /// Starts a container and returns the path of its log.
    async fn container(&self, name: &str) -> PathBuf {
        let folder = self.root.path().join(name);
        fs::create_dir(&folder).unwrap();
        let sandbox_config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: name.into(), uid: name.into(), ..Default::default() }),
            log_directory: folder.display().to_string(),
            ..Default::default()
        };
        let request = RunPodSandboxRequest { config: Some(sandbox_config.clone()), ..Default::default() };
        let pod_sandbox_id = self.runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
            log_path: "0.log".into(),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id,
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let container_id = self.runtime.create_container(request).await.unwrap().container_id;
        self.runtime.start_container(StartContainerRequest { container_id }).await.unwrap();
        self.trigger.kick();
        folder.join("0.log")
    }
}

fn append(path: &Path, bytes: usize) {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(&vec![b'x'; bytes]).unwrap();
}

fn names(log: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(log.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn until(what: &str, log: &Path, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: have {:?}", names(log));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_full_log_is_rotated_compressed_and_bounded_in_number() {
    let fixture = Fixture::new(LogPolicy { max_size: Some(1000), max_files: 3 }).await;
    let log = fixture.container("c").await;
    let mut seen = Vec::new();
    for round in 1..=4 {
        until("a new log", &log, || log.exists() && fs::metadata(&log).unwrap().len() == 0).await;
        append(&log, 1500);
        until("a rotation", &log, || fixture.runtime.count(Method::ReopenContainerLog) >= round).await;
        let rotated: Vec<_> = names(&log).into_iter().filter(|name| name != "0.log").collect();
        seen.push(rotated);
    }
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 2, 2], "{seen:?}");
    let last = seen.last().unwrap();
    assert!(last[0].ends_with(".gz") && !last[1].ends_with(".gz"), "{last:?}");
    assert!(last[1].len() == "0.log.20060102-150405".len(), "{last:?}");
    let mut text = Vec::new();
    let file = fs::File::open(log.with_file_name(&last[0])).unwrap();
    flate2::read::GzDecoder::new(file).read_to_end(&mut text).unwrap();
    assert_eq!(text, vec![b'x'; 1500]);
    let listed = all_logs(&log).unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(listed[2], log);
}

#[tokio::test]
async fn a_log_that_nobody_writes_is_not_looked_at_and_one_that_is_written_is() {
    let fixture = Fixture::new(LogPolicy { max_size: Some(1000), max_files: 5 }).await;
    let log = fixture.container("c").await;
    append(&log, 10);
    // Several looks later the log is quiet; what wakes the task then is the write alone.
    tokio::time::sleep(Duration::from_secs(3)).await;
    append(&log, 2000);
    until("a rotation", &log, || names(&log).len() == 2).await;
}

#[tokio::test]
async fn a_log_that_is_missing_is_opened_anew() {
    let fixture = Fixture::new(LogPolicy::default()).await;
    fixture.runtime.create_log_files(false);
    let log = fixture.container("c").await;
    until("a reopening", &log, || fixture.runtime.count(Method::ReopenContainerLog) == 1).await;
}

#[tokio::test]
async fn a_runtime_that_cannot_reopen_keeps_its_log() {
    let fixture = Fixture::new(LogPolicy { max_size: Some(1000), max_files: 5 }).await;
    fixture.runtime.fail_next(Method::ReopenContainerLog, Status::unavailable("busy"));
    let log = fixture.container("c").await;
    append(&log, 1500);
    until("the call", &log, || fixture.runtime.count(Method::ReopenContainerLog) == 1).await;
    until("the log back", &log, || names(&log) == ["0.log"]).await;
    until("a second try", &log, || names(&log).len() == 2).await;
}
