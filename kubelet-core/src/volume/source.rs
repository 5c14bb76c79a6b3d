//! Which kind a volume is.
//!
//! Pure. What a node without a cluster cannot offer is named with what to do instead.

use crate::api::{
    ConfigMapVolumeSource, DownwardAPIVolumeSource, EmptyDirVolumeSource, HostPathVolumeSource,
    ProjectedVolumeSource, SecretVolumeSource, Unused, Volume,
};

/// The source of a volume.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// A folder that lives as long as the pod; also for a volume that names no source.
    EmptyDir(Option<&'a EmptyDirVolumeSource>),
    /// A path of the host.
    HostPath(&'a HostPathVolumeSource),
    /// A ConfigMap as files.
    ConfigMap(&'a ConfigMapVolumeSource),
    /// A Secret as files.
    Secret(&'a SecretVolumeSource),
    /// Fields of the pod as files.
    DownwardApi(&'a DownwardAPIVolumeSource),
    /// Several of these in one folder.
    Projected(&'a ProjectedVolumeSource),
    /// The files of an image, which the runtime mounts.
    Image,
    /// Anything else.
    Unsupported {
        /// The type.
        what: &'static str,
        /// What to do.
        cure: &'static str,
    },
}

const USE_HOST_PATH: &str =
    "mount the storage on the host and name it as a hostPath volume, or remove the volume";

pub(crate) fn of(volume: &Volume) -> Source<'_> {
    if let Some(source) = &volume.empty_dir {
        Source::EmptyDir(Some(source))
    } else if let Some(source) = &volume.host_path {
        Source::HostPath(source)
    } else if let Some(source) = &volume.config_map {
        Source::ConfigMap(source)
    } else if let Some(source) = &volume.secret {
        Source::Secret(source)
    } else if let Some(source) = &volume.downward_api {
        Source::DownwardApi(source)
    } else if let Some(source) = &volume.projected {
        Source::Projected(source)
    } else if volume.image.is_some() {
        Source::Image
    } else {
        unsupported(volume).map_or(Source::EmptyDir(None), |(what, cure)| Source::Unsupported { what, cure })
    }
}

fn unsupported(volume: &Volume) -> Option<(&'static str, &'static str)> {
    if volume.persistent_volume_claim.is_some() {
        let cure = "claims are bound by a cluster; use a hostPath volume for data that stays on this node";
        return Some(("volume type persistentVolumeClaim", cure));
    }
    let kinds: [(Unused, &'static str, &'static str); 22] = [
        (volume.csi, "volume type csi", USE_HOST_PATH),
        (volume.ephemeral, "volume type ephemeral", "use an emptyDir volume"),
        (volume.nfs, "volume type nfs", USE_HOST_PATH),
        (volume.iscsi, "volume type iscsi", USE_HOST_PATH),
        (volume.fc, "volume type fc", USE_HOST_PATH),
        (volume.aws_elastic_block_store, "volume type awsElasticBlockStore", USE_HOST_PATH),
        (volume.gce_persistent_disk, "volume type gcePersistentDisk", USE_HOST_PATH),
        (volume.azure_disk, "volume type azureDisk", USE_HOST_PATH),
        (volume.azure_file, "volume type azureFile", USE_HOST_PATH),
        (volume.cephfs, "volume type cephfs", USE_HOST_PATH),
        (volume.cinder, "volume type cinder", USE_HOST_PATH),
        (volume.flex_volume, "volume type flexVolume", USE_HOST_PATH),
        (volume.flocker, "volume type flocker", USE_HOST_PATH),
        (volume.git_repo, "volume type gitRepo", "clone with an init container into an emptyDir volume"),
        (volume.glusterfs, "volume type glusterfs", USE_HOST_PATH),
        (volume.photon_persistent_disk, "volume type photonPersistentDisk", USE_HOST_PATH),
        (volume.portworx_volume, "volume type portworxVolume", USE_HOST_PATH),
        (volume.quobyte, "volume type quobyte", USE_HOST_PATH),
        (volume.rbd, "volume type rbd", USE_HOST_PATH),
        (volume.scale_i_o, "volume type scaleIO", USE_HOST_PATH),
        (volume.storageos, "volume type storageos", USE_HOST_PATH),
        (volume.vsphere_volume, "volume type vsphereVolume", USE_HOST_PATH),
    ];
    kinds.into_iter().find(|(kind, ..)| kind.is_set).map(|(_, what, cure)| (what, cure))
}
