//! Runs one container without any pod manager: `run_container SHIM ARCHIVE IMAGE [ARGUMENT...]`, prints its log.
//!
//! Uses `coracle-runtime` alone, through the CRI traits.
#![allow(clippy::print_stdout, reason = "it is a command")]

use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use coracle_runtime::{Config, Runtime};
use tokio_stream::StreamExt as _;

fn main() -> anyhow::Result<()> {
    coracle_runtime::run_helper(); // The container is made by an execution of this program.
    let words: Vec<String> = std::env::args().skip(1).collect();
    anyhow::ensure!(words.len() >= 3, "usage: run_container SHIM ARCHIVE IMAGE [ARGUMENT...]");
    tokio::runtime::Runtime::new()?.block_on(run(&words))
}

async fn run(words: &[String]) -> anyhow::Result<()> {
    let base = std::env::var("BASE").unwrap_or_else(|_| "/var/lib/run-container".to_owned());
    let runtime =
        Runtime::start(Config::new(format!("{base}/data"), format!("{base}/state"), &words[0])).await?;
    runtime.images().load(words[1].as_ref(), |_| {}).await?;

    let metadata =
        PodSandboxMetadata { name: "one".into(), uid: "one".into(), namespace: "default".into(), attempt: 0 };
    let log_directory = format!("{base}/logs");
    std::fs::create_dir_all(&log_directory)?;
    let sandbox = PodSandboxConfig { metadata: Some(metadata), log_directory, ..Default::default() };
    let request = RunPodSandboxRequest { config: Some(sandbox.clone()), ..Default::default() };
    let pod_sandbox_id = runtime.run_pod_sandbox(request).await?.pod_sandbox_id;
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(ImageSpec { image: words[2].clone(), ..Default::default() }),
        args: words[3..].to_vec(),
        log_path: "main.log".into(),
        ..Default::default()
    };
    let (config, sandbox_config) = (Some(container), Some(sandbox));
    let request = CreateContainerRequest { pod_sandbox_id: pod_sandbox_id.clone(), config, sandbox_config };
    let container_id = runtime.create_container(request).await?.container_id;
    let mut events = runtime.get_container_events(GetEventsRequest {}).await?;
    runtime.start_container(StartContainerRequest { container_id }).await?;
    let stopped = i32::from(ContainerEventType::ContainerStoppedEvent);
    while events.next().await.transpose()?.is_some_and(|event| event.container_event_type != stopped) {}

    print!("{}", std::fs::read_to_string(format!("{base}/logs/main.log"))?);
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
    Ok(())
}
