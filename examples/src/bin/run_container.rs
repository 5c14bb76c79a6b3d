//! Runs one container without any pod manager: `run_container SHIM ARCHIVE IMAGE [ARGUMENT...]`, prints its log.
//!
//! Uses `coracle-runtime` alone, through the CRI traits.
#![allow(clippy::print_stdout, reason = "it is a command")]

use anyhow::{Context as _, ensure};
use coracle_cri::RuntimeService as _;
use coracle_cri::v1::*;
use coracle_runtime::{Config, Runtime};
use tokio_stream::StreamExt as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    coracle_runtime::run_helper(); // The container is made by an execution of this program.
    let words: Vec<String> = std::env::args().skip(1).collect();
    ensure!(words.len() >= 3, "usage: run_container SHIM ARCHIVE IMAGE [ARGUMENT...]");
    let base = std::env::var("BASE").unwrap_or_else(|_| "/var/lib/run-container".to_owned());
    let runtime =
        Runtime::start(Config::new(format!("{base}/data"), format!("{base}/state"), &words[0])).await?;
    runtime.images().load(words[1].as_ref(), |_| {}).await?;

    let host = NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(host), ..Default::default() };
    let sandbox = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "one".into(),
            uid: "one".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        log_directory: format!("{base}/logs"),
        linux: Some(LinuxPodSandboxConfig { security_context: Some(security.clone()), ..Default::default() }),
        ..Default::default()
    };
    let request = RunPodSandboxRequest { config: Some(sandbox.clone()), ..Default::default() };
    let pod_sandbox_id = runtime.run_pod_sandbox(request).await?.pod_sandbox_id;
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(ImageSpec { image: words[2].clone(), ..Default::default() }),
        args: words[3..].to_vec(),
        log_path: "main.log".into(),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox),
    };
    let container_id = runtime.create_container(request).await?.container_id;
    let mut events = runtime.get_container_events(GetEventsRequest {}).await?;
    runtime.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
    while let Some(event) = events.next().await {
        if event?.container_event_type == i32::from(ContainerEventType::ContainerStoppedEvent) {
            break;
        }
    }
    print!("{}", std::fs::read_to_string(format!("{base}/logs/main.log")).context("no log")?);
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
    Ok(())
}
