//! Where a container sees its volumes.
//!
//! Called by `containers`; pure.

use std::collections::{BTreeMap, BTreeSet};

use super::field::{Errors, Path};
use super::volumes::descending_path;
use crate::api::{Container, Volume, VolumeMount};

const PROPAGATIONS: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
const RECURSIVE: [&str; 3] = ["Disabled", "Enabled", "IfPossible"];

/// Volumes by name, as far as they are good.
pub(super) type Volumes<'p> = BTreeMap<&'p str, &'p Volume>;

pub(super) fn validate_mounts(
    container: &Container,
    volumes: &Volumes<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let list = path.child("volumeMounts");
    let mut mount_points = BTreeSet::new();
    for (n, mount) in container.volume_mounts.iter().enumerate() {
        let path = list.index(n);
        if mount.name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        if !volumes.contains_key(mount.name.as_str()) {
            errors.not_found(&path.child("name"), &mount.name);
        }
        let mount_path = path.child("mountPath");
        if mount.mount_path.is_empty() {
            errors.required(&mount_path, "");
        }
        if !mount_points.insert(&mount.mount_path) {
            errors.invalid(&mount_path, &mount.mount_path, "must be unique");
        }
        for device in &container.volume_devices {
            if device.name == mount.name {
                errors.invalid(&path.child("name"), &mount.name, "must not already exist in volumeDevices");
            }
            if device.device_path == mount.mount_path {
                let reason = "must not already exist as a path in volumeDevices";
                errors.invalid(&mount_path, &mount.mount_path, reason);
            }
        }
        sub_paths(mount, &list, &path, errors);
        propagation(container, mount, &list, errors);
    }
    devices(container, volumes, path, errors);
}

/// An API server names the list, not the item, in most of these errors, and so do we.
fn sub_paths(mount: &VolumeMount, list: &Path<'_>, path: &Path<'_>, errors: &mut Errors) {
    if !mount.sub_path.is_empty() {
        descending_path(&mount.sub_path, &list.child("subPath"), errors);
    }
    if !mount.sub_path_expr.is_empty() {
        if !mount.sub_path.is_empty() {
            let reason = "subPathExpr and subPath are mutually exclusive";
            errors.invalid(&path.child("subPathExpr"), &mount.sub_path_expr, reason);
        }
        descending_path(&mount.sub_path_expr, &list.child("subPathExpr"), errors);
    }
}

fn propagation(container: &Container, mount: &VolumeMount, list: &Path<'_>, errors: &mut Errors) {
    let propagation = mount.mount_propagation.as_deref();
    if let Some(mode) = propagation {
        let path = list.child("mountPropagation");
        if !PROPAGATIONS.contains(&mode) {
            errors.not_supported(&path, mode, &PROPAGATIONS);
        }
        let privileged = container.security_context.as_ref().and_then(|context| context.privileged);
        if mode == "Bidirectional" && privileged != Some(true) {
            let reason = "Bidirectional mount propagation is available only to privileged containers";
            errors.forbidden(&path, reason);
        }
    }
    let path = list.child("recursiveReadOnly");
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.read_only {
                errors.forbidden(&path, "may only be specified when readOnly is true");
            }
            if propagation.is_some_and(|mode| mode != "None") {
                errors
                    .forbidden(&path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(mode) => errors.not_supported(&path, mode, &RECURSIVE),
    }
}

fn devices(container: &Container, volumes: &Volumes<'_>, path: &Path<'_>, errors: &mut Errors) {
    let list = path.child("volumeDevices");
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for (n, device) in container.volume_devices.iter().enumerate() {
        let path = list.index(n);
        let (name_path, device_path) = (path.child("name"), path.child("devicePath"));
        let (name, device) = (device.name.as_str(), device.device_path.as_str());
        if name.is_empty() {
            errors.required(&name_path, "");
        } else if !names.insert(name) {
            errors.invalid(&name_path, name, "must be unique");
        }
        match volumes.get(name) {
            None => errors.not_found(&name_path, name),
            Some(volume) if volume.persistent_volume_claim.is_none() && !volume.ephemeral.is_set => {
                let reason =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name_path, name, reason);
            }
            Some(_) => {}
        }
        if device.is_empty() {
            errors.required(&device_path, "");
        } else if device.split('/').any(|element| element == "..") {
            errors.invalid(&device_path, device, "can not contain backsteps ('..')");
        } else if !paths.insert(device) {
            errors.invalid(&device_path, device, "must be unique");
        }
        if container.volume_mounts.iter().any(|mount| mount.name == name) {
            errors.invalid(&name_path, name, "must not already exist in volumeMounts");
        }
        if container.volume_mounts.iter().any(|mount| mount.mount_path == device) {
            errors.invalid(&device_path, device, "must not already exist as a path in volumeMounts");
        }
    }
}
