//! `coracle cri`: the embedded container runtime on its own, served as CRI v1 for a kubelet, crictl or critest.
//!
//! One thread serves. Pods outlive the process; the next one with the same folders adopts them.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use coracle_cri::server::Listener;
use coracle_runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::CriArgs;
use crate::run::{DRAIN_LIMIT, in_event_loop};
use crate::runtime_args::POD_CIDR;
use crate::{descriptors, logging, notify};

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: CriArgs) -> Result<()> {
    logging::start(&args.log_level)?;
    let socket = socket(&args.listen)?;
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let mut config = args.runtime.resolve(&args.data_dir, &args.state.state_dir, POD_CIDR)?;
    in_event_loop(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let listener = Listener::bind(&socket)?;
        config.descriptor_limit = descriptors::former();
        let runtime = Runtime::start(config).await.context("the container runtime cannot start")?;
        notify::send("READY=1");
        tracing::info!(socket = %socket.display(), "runtime serves CRI v1");
        let stop = async move {
            // Cancel-safe: a signal that comes is seen by one of them, and both end the wait.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("runtime ends; the pods run on");
            notify::send("STOPPING=1");
        };
        listener.serve(runtime.clone(), runtime.clone(), stop).await?;
        runtime.close(DRAIN_LIMIT).await;
        Ok(())
    })
}

/// The path in an address as kubelet and crictl write it.
fn socket(address: &str) -> Result<PathBuf> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    if !path.starts_with('/') {
        bail!("--listen: {address:?} is not unix:// and an absolute path");
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_with_or_without_a_scheme() {
        assert_eq!(socket("unix:///run/a.sock").unwrap(), PathBuf::from("/run/a.sock"));
        assert_eq!(socket("/run/a.sock").unwrap(), PathBuf::from("/run/a.sock"));
        for wrong in ["unix://run/a.sock", "tcp://127.0.0.1:1", "a.sock", ""] {
            assert!(socket(wrong).is_err(), "{wrong}");
        }
    }
}
