//! Lists the pods and containers of any CRI runtime: `cri_list unix:///run/containerd/containerd.sock`.
//!
//! Uses the crate `coracle-cri` alone.
#![allow(clippy::print_stdout, reason = "it is a command")]

use anyhow::Context as _;
use coracle_cri::RuntimeService as _;
use coracle_cri::client::Client;
use coracle_cri::v1::{ContainerState, ListContainersRequest, ListPodSandboxRequest, VersionRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let endpoint = std::env::args().nth(1).context("usage: cri_list unix:///PATH")?;
    let runtime = Client::new(&endpoint)?;
    let version = runtime.version(VersionRequest::default()).await?;
    println!("{} {}", version.runtime_name, version.runtime_version);

    let containers = runtime.list_containers(ListContainersRequest::default()).await?.containers;
    for pod in runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items {
        let metadata = pod.metadata.unwrap_or_default();
        println!("{}/{}", metadata.namespace, metadata.name);
        for container in containers.iter().filter(|container| container.pod_sandbox_id == pod.id) {
            let name = container.metadata.as_ref().map_or("", |metadata| &metadata.name);
            println!("  {name}: {}", ContainerState::try_from(container.state)?.as_str_name());
        }
    }
    Ok(())
}
