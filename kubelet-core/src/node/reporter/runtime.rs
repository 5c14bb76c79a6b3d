//! What the reporter hears of the container runtime, and tells it. Part of the reporter's task.

use std::time::Duration;

use coracle_cri::v1::{
    ImageFsInfoRequest, ListImagesRequest, NetworkConfig, RuntimeConfig, StatusRequest,
    UpdateRuntimeConfigRequest, VersionRequest,
};

use super::Reporter;
use crate::api::Node;
use crate::node::{NodeRuntime, desired};
use crate::pod::rpc::bounded;

/// Between listings of images.
const IMAGES: Duration = Duration::from_secs(30);
/// Deadline of a question to the runtime.
const DEADLINE: Duration = Duration::from_secs(30);

impl Reporter {
    /// Name and version of the runtime, and where its images lie; asked once.
    async fn meet_runtime(&mut self, cri: &NodeRuntime) {
        let request = VersionRequest { version: "0.1.0".to_owned() };
        let version = bounded("Version", DEADLINE, cri.runtime.version(request)).await;
        if let Ok(version) = version {
            self.runtime.name = version.runtime_name;
            self.runtime.version = version.runtime_version;
        }
        let call = cri.images.image_fs_info(ImageFsInfoRequest {});
        if let Ok(info) = bounded("ImageFsInfo", DEADLINE, call).await {
            let id = info.image_filesystems.into_iter().next().and_then(|usage| usage.fs_id);
            self.places.image_dir = id.map(|id| id.mountpoint.into());
        }
    }

    pub(super) async fn observe_runtime(&mut self) {
        let Some(cri) = self.parts.runtime.clone() else { return };
        if self.runtime.name.is_empty() {
            self.meet_runtime(&cri).await;
        }
        let call = cri.runtime.status(StatusRequest { verbose: false });
        let status = bounded("Status", DEADLINE, call).await;
        self.runtime.was_up |= status.is_ok();
        self.runtime.status = status.ok();
        let now = self.parts.config.clock.now().boot;
        if self.images_listed.is_none_or(|at| now.saturating_sub(at) >= IMAGES) {
            let call = cri.images.list_images(ListImagesRequest::default());
            if let Ok(listed) = bounded("ListImages", DEADLINE, call).await {
                self.images = desired::images(listed.images, self.parts.config.max_images);
                self.images_listed = Some(now);
            }
        }
    }

    /// The runtime makes the pods' network from the CIDRs that the cluster gave the node. Whether it was told some.
    pub(super) async fn tell_pod_cidrs(&mut self, node: &Node) -> bool {
        let Some(cri) = &self.parts.runtime else { return false };
        if node.spec.pod_cidrs.is_empty() || node.spec.pod_cidrs == self.pod_cidrs {
            return false;
        }
        let pod_cidr = node.spec.pod_cidrs.join(",");
        let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.clone() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        let call = cri.runtime.update_runtime_config(request);
        match bounded("UpdateRuntimeConfig", DEADLINE, call).await {
            Ok(_) => {
                tracing::info!(%pod_cidr, "the cluster gave this node its pods' addresses");
                self.pod_cidrs.clone_from(&node.spec.pod_cidrs);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the runtime does not take the pods' addresses");
                false
            }
        }
    }
}
