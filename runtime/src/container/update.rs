//! Changes of a container that goes on: its limits, its log file.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1;
use coracle_shim::protocol::{Any, method, shim, task};

use super::{Container, phase_name};
use crate::record::ContainerPhase;
use crate::service::Engine;
use crate::service_error::ServiceError;

const BOUND: Duration = Duration::from_secs(30);

impl Engine {
    /// Sets new limits. Fields that the request leaves empty stay as they are.
    pub(crate) async fn update_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        resources: v1::LinuxContainerResources,
    ) -> Result<(), ServiceError> {
        let _act = container.operation.lock().await;
        let phase = container.record().phase.clone();
        let running = match phase {
            ContainerPhase::Running { .. } => true,
            ContainerPhase::Created => false,
            _ => {
                let state = phase_name(&phase);
                return Err(ServiceError::WrongState {
                    id: container.id.clone(),
                    state,
                    wanted: "created or running",
                });
            }
        };
        let merged = merge(
            container.record().config.linux.as_ref().and_then(|linux| linux.resources.clone()),
            resources,
        );
        let json = self.update_spec(container, &merged)?;
        if running {
            let shim = self.sandbox(&container.sandbox_id)?.tasks()?;
            let request = task::UpdateTaskRequest {
                id: container.id.clone(),
                resources: Some(Any::linux_resources(json)),
                ..Default::default()
            };
            shim.call::<method::Update>(&request, BOUND).await?;
        }
        container.change(&self.layout, |record| {
            record.config.linux.get_or_insert_default().resources = Some(merged);
        })?;
        Ok(())
    }

    /// Makes the shim open the log anew.
    pub(crate) async fn reopen_log(&self, container: &Container) -> Result<(), ServiceError> {
        let phase = container.record().phase.clone();
        if !matches!(phase, ContainerPhase::Running { .. }) {
            let state = phase_name(&phase);
            return Err(ServiceError::WrongState { id: container.id.clone(), state, wanted: "running" });
        }
        if container.record().log_path.is_empty() {
            return Ok(());
        }
        let shim = self.sandbox(&container.sandbox_id)?.shim()?;
        shim.call::<method::ReopenLog>(&shim::ReopenLogRequest { id: container.id.clone() }, BOUND).await?;
        Ok(())
    }
}

/// What CRI leaves zero or empty keeps its old value.
fn merge(
    old: Option<v1::LinuxContainerResources>,
    new: v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let mut merged = old.unwrap_or_default();
    let number = |slot: &mut i64, value: i64| {
        if value != 0 {
            *slot = value;
        }
    };
    number(&mut merged.cpu_period, new.cpu_period);
    number(&mut merged.cpu_quota, new.cpu_quota);
    number(&mut merged.cpu_shares, new.cpu_shares);
    number(&mut merged.memory_limit_in_bytes, new.memory_limit_in_bytes);
    number(&mut merged.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    number(&mut merged.oom_score_adj, new.oom_score_adj);
    if !new.cpuset_cpus.is_empty() {
        merged.cpuset_cpus = new.cpuset_cpus;
    }
    if !new.cpuset_mems.is_empty() {
        merged.cpuset_mems = new.cpuset_mems;
    }
    if !new.hugepage_limits.is_empty() {
        merged.hugepage_limits = new.hugepage_limits;
    }
    merged.unified.extend(new.unified);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let old =
            v1::LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 100, ..Default::default() };
        let new = v1::LinuxContainerResources { memory_limit_in_bytes: 200, ..Default::default() };
        let merged = merge(Some(old), new);
        assert_eq!((merged.cpu_shares, merged.memory_limit_in_bytes), (512, 200));
    }
}
