//! A gateway's firmware that runs pods from a folder: `manifest_node FOLDER SHIM`. Ends with the folder's pods.
//!
//! Uses `coracle-kubelet-core` on `coracle-runtime`; any other CRI runtime would do as well.
#![allow(clippy::print_stdout, reason = "it is a command")]

use anyhow::Context as _;
use coracle_kubelet_core::clock::Clock;
use coracle_kubelet_core::kubelet::{Kubelet, KubeletConfig};
use coracle_kubelet_core::resources::PodResourcesConfig;
use coracle_kubelet_core::source::{ManifestDir, ManifestDirConfig};
use coracle_runtime::{Config, Runtime};

fn main() -> anyhow::Result<()> {
    coracle_runtime::run_helper(); // Containers are made and images unpacked by executions of this program.
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().context("usage: manifest_node FOLDER SHIM")?;
    let shim = arguments.next().context("usage: manifest_node FOLDER SHIM")?;
    let base = std::env::var("BASE").unwrap_or_else(|_| "/var/lib/manifest-node".to_owned());

    let runtime = Runtime::start(Config::new(format!("{base}/data"), format!("{base}/state"), shim)).await?;
    let source = ManifestDir::start(ManifestDirConfig {
        path: folder.into(),
        node_name: "gateway".to_owned(),
        allow_object_references: true,
        clock: Clock::system(),
    })
    .await?;
    let mut config = KubeletConfig::new(PodResourcesConfig::new(format!("{base}/pods")));
    config.log_links = None;
    config.resources.log_root = format!("{base}/logs").into();
    let kubelet = Kubelet::start(config, runtime.clone(), runtime, source.pods(), source.objects()).await?;

    let mut statuses = kubelet.statuses();
    while statuses.changed().await.is_ok() {
        let views = statuses.borrow_and_update().clone();
        for view in views.values() {
            println!("{} {}", view.pod.full_name(), view.status.phase);
        }
        if views.is_empty() && source.pods().borrow().is_empty() {
            break; // The last manifest was taken away.
        }
    }
    Ok(())
}
