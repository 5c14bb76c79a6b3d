//! What pods and the node use: `/stats/summary`, and the same numbers for `/metrics/resource`.
//!
//! Measured only when somebody asks, and kept for [`FRESH`], so that several readers cost one measurement. Follows
//! the kubelet's summary provider on CRI statistics (1.36).

mod gather;
mod node;
mod types;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::Shared;
use super::answer::{self, Answer};
use super::route::parameters;
pub(super) use gather::{Measured, PodUse};

/// What was measured is told again for so long.
const FRESH: Duration = Duration::from_secs(10);

/// The last measurement. The lock is held while measuring, so that one measurement serves all who wait.
#[derive(Default)]
pub(super) struct StatsCache(Mutex<Option<(Duration, Arc<Measured>)>>);

/// The present numbers, at most ten seconds old.
pub(super) async fn measured(shared: &Arc<Shared>) -> Result<Arc<Measured>, coracle_cri::Status> {
    let mut cached = shared.stats.0.lock().await;
    let now = shared.config.clock.now().boot;
    if let Some((at, measured)) = &*cached
        && now.saturating_sub(*at) < FRESH
    {
        return Ok(measured.clone());
    }
    let measured = Arc::new(gather::gather(shared).await?);
    *cached = Some((now, measured.clone()));
    Ok(measured)
}

/// Answers `/stats/summary`.
pub(super) async fn summary(shared: &Arc<Shared>, query: &str) -> Answer {
    let only = parameters(query).iter().any(|(name, value)| name == "only_cpu_and_memory" && value == "true");
    let measured = match measured(shared).await {
        Ok(measured) => measured,
        Err(error) => return failed(&error),
    };
    if only {
        return answer::json(&types::only_cpu_and_memory(&measured, &shared.config.node_name));
    }
    match gather::disks(shared).await {
        Ok(disks) => answer::json(&types::summary(&measured, &disks, &shared.config.node_name)),
        Err(error) => failed(&error),
    }
}

fn failed(error: &coracle_cri::Status) -> Answer {
    tracing::warn!(%error, "statistics cannot be measured");
    answer::error(500, format!("Internal Error: failed to list pod stats: {}", error.message()))
}
