//! The files of configMap, secret, downwardAPI and projected volumes.
//!
//! Pure but for reads through [`ObjectSource`], which answers from memory. A payload is the whole content of a
//! volume; [`super::atomic`] makes the disk equal to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Source, VolumeError};
use crate::api::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Quantity, Secret,
    VolumeProjection,
};
use crate::env;
use crate::objects::ObjectSource;

const DEFAULT_MODE: i32 = 0o644;

/// Content and permissions of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Who owns it, if not root.
    pub owner: Option<u32>,
}

/// Files by path below the volume's root.
pub(crate) type Payload = BTreeMap<String, File>;

pub(crate) fn plan(
    pod: &Pod,
    source: &Source<'_>,
    objects: &dyn ObjectSource,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<Payload, VolumeError> {
    let namespace = &pod.metadata.namespace;
    match source {
        Source::ConfigMap(source) => {
            let optional = source.optional == Some(true);
            let map = look_up_config_map(objects, namespace, &source.name)?;
            config_map(map.as_deref(), &source.name, &source.items, mode(source.default_mode), optional)
        }
        Source::Secret(source) => {
            let optional = source.optional == Some(true);
            let held = look_up_secret(objects, namespace, &source.secret_name)?;
            secret(held.as_deref(), &source.secret_name, &source.items, mode(source.default_mode), optional)
        }
        Source::DownwardApi(source) => {
            downward_api(pod, &source.items, mode(source.default_mode), allocatable)
        }
        Source::Projected(source) => projected(pod, source, objects, allocatable),
        Source::EmptyDir(_) | Source::HostPath(_) | Source::Image | Source::Unsupported { .. } => {
            Ok(Payload::new())
        }
    }
}

/// The configMap, `None` if there is none, an error if that is not known.
fn look_up_config_map(
    objects: &dyn ObjectSource,
    namespace: &str,
    name: &str,
) -> Result<Option<Arc<ConfigMap>>, VolumeError> {
    let found = objects.config_map(namespace, name);
    let unknown = || objects.why_unknown("configmap", namespace, name);
    match found {
        None => unknown().map_or(Ok(None), |why| Err(VolumeError::Unknown(why))),
        found => Ok(found),
    }
}

/// The secret, as for a configMap.
fn look_up_secret(
    objects: &dyn ObjectSource,
    namespace: &str,
    name: &str,
) -> Result<Option<Arc<Secret>>, VolumeError> {
    let found = objects.secret(namespace, name);
    let unknown = || objects.why_unknown("secret", namespace, name);
    match found {
        None => unknown().map_or(Ok(None), |why| Err(VolumeError::Unknown(why))),
        found => Ok(found),
    }
}

fn mode(default: Option<i32>) -> u32 {
    // Validated to lie between 0 and 0777.
    u32::try_from(default.unwrap_or(DEFAULT_MODE)).unwrap_or(0o644)
}

fn config_map(
    map: Option<&ConfigMap>,
    name: &str,
    items: &[KeyToPath],
    default_mode: u32,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let absent = ConfigMap::default();
    let map = match map {
        Some(map) => map,
        None if optional => &absent,
        None => return Err(VolumeError::ConfigMapNotFound(name.to_owned())),
    };
    let value = |key: &str| {
        let text = map.data.get(key).map(|text| text.as_bytes());
        text.or_else(|| map.binary_data.get(key).map(|bytes| bytes.0.as_slice()))
    };
    let keys = map.data.keys().chain(map.binary_data.keys());
    pick(keys, value, items, default_mode, optional).map_err(VolumeError::NoConfigKey)
}

fn secret(
    secret: Option<&Secret>,
    name: &str,
    items: &[KeyToPath],
    default_mode: u32,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let absent = Secret::default();
    let secret = match secret {
        Some(secret) => secret,
        None if optional => &absent,
        None => return Err(VolumeError::SecretNotFound(name.to_owned())),
    };
    let value = |key: &str| secret.data.get(key).map(|bytes| bytes.0.as_slice());
    pick(secret.data.keys(), value, items, default_mode, optional).map_err(VolumeError::NoSecretKey)
}

/// All keys under their own names, or the items under theirs; the error is a key that is not there.
fn pick<'a>(
    keys: impl Iterator<Item = &'a String>,
    value: impl Fn(&str) -> Option<&'a [u8]>,
    items: &[KeyToPath],
    default_mode: u32,
    optional: bool,
) -> Result<Payload, String> {
    let file = |data: &[u8], mode| File { data: data.to_owned(), mode, owner: None };
    if items.is_empty() {
        let files = keys.filter_map(|key| Some((key.clone(), file(value(key)?, default_mode))));
        return Ok(files.collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match value(&item.key) {
            Some(data) => {
                let mode = item.mode.map_or(default_mode, |own| mode(Some(own)));
                payload.insert(item.path.clone(), file(data, mode));
            }
            None if optional => {}
            None => return Err(item.key.clone()),
        }
    }
    Ok(payload)
}

fn downward_api(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<Payload, VolumeError> {
    let mut payload = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            env::field(pod, &field.field_path)?
        } else if let Some(resource) = &item.resource_field_ref {
            env::resource_field(pod, None, resource, allocatable)?
        } else {
            String::new()
        };
        let mode = item.mode.map_or(default_mode, |own| mode(Some(own)));
        payload.insert(item.path.clone(), File { data: text.into_bytes(), mode, owner: None });
    }
    Ok(payload)
}

fn projected(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    objects: &dyn ObjectSource,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<Payload, VolumeError> {
    let mut payload = Payload::new();
    for projection in &source.sources {
        // Where two sources name one path the later one wins.
        payload.extend(one_projection(pod, projection, mode(source.default_mode), objects, allocatable)?);
    }
    Ok(payload)
}

fn one_projection(
    pod: &Pod,
    projection: &VolumeProjection,
    default_mode: u32,
    objects: &dyn ObjectSource,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<Payload, VolumeError> {
    let namespace = &pod.metadata.namespace;
    if let Some(source) = &projection.secret {
        let held = look_up_secret(objects, namespace, &source.name)?;
        secret(held.as_deref(), &source.name, &source.items, default_mode, source.optional == Some(true))
    } else if let Some(source) = &projection.config_map {
        let map = look_up_config_map(objects, namespace, &source.name)?;
        config_map(map.as_deref(), &source.name, &source.items, default_mode, source.optional == Some(true))
    } else if let Some(source) = &projection.downward_api {
        downward_api(pod, &source.items, default_mode, allocatable)
    } else if let Some(source) = &projection.service_account_token
        && let Some(token) = objects.token(pod, source)
    {
        let token = token.map_err(VolumeError::Unknown)?;
        let file = token_file(pod, &token, default_mode);
        Ok(Payload::from([(source.path.clone(), file)]))
    } else if let Some(what) = cluster_source(projection) {
        let cure = "only a cluster's API server gives it out; remove the source from the volume";
        Err(VolumeError::Unsupported { what, cure })
    } else {
        Ok(Payload::new())
    }
}

/// A token is for the pod's one user alone, or for its group; the ownership of volumes adds the group.
fn token_file(pod: &Pod, token: &str, default_mode: u32) -> File {
    let owner = only_user(pod);
    let has_group = pod.spec.security_context.as_ref().is_some_and(|context| context.fs_group.is_some());
    let mode = if owner.is_some() || has_group { 0o600 } else { default_mode };
    File { data: token.as_bytes().to_vec(), mode, owner }
}

/// The user that every container of the pod runs as, if they all name the same one (the kubelet's `FsUserFrom`).
fn only_user(pod: &Pod) -> Option<u32> {
    let of_pod = pod.spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = pod.all_containers().map(|container| {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        own.or(of_pod)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn cluster_source(projection: &VolumeProjection) -> Option<&'static str> {
    if projection.service_account_token.is_some() {
        Some("projected source serviceAccountToken")
    } else if projection.cluster_trust_bundle.is_set {
        Some("projected source clusterTrustBundle")
    } else if projection.pod_certificate.is_set {
        Some("projected source podCertificate")
    } else {
        None
    }
}

/// Folders that must exist in a read-only volume because another volume is mounted inside it.
pub(crate) fn nested_mount_points(pod: &Pod, volume: &str) -> Vec<String> {
    pod.all_containers().flat_map(|container| nested_in(container, volume)).collect()
}

fn nested_in(container: &Container, volume: &str) -> Vec<String> {
    let clean = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned).collect()
    };
    let mut points: Vec<Vec<String>> =
        container.volume_mounts.iter().map(|mount| clean(&mount.mount_path)).collect();
    points.sort();
    let own = container.volume_mounts.iter().filter(|mount| mount.name == volume);
    let mut found = Vec::new();
    for own in own.map(|mount| clean(&mount.mount_path)) {
        let mut outer: Option<&Vec<String>> = None;
        for point in points.iter().filter(|point| point.len() > own.len() && point.starts_with(&own)) {
            // Sorted by component, so all that lies inside a point follows it.
            let is_inside = outer.is_some_and(|outer| point.starts_with(outer));
            if !is_inside && !point.iter().any(|part| part == "..") {
                outer = Some(point);
                found.push(point[own.len()..].join("/"));
            }
        }
    }
    found
}
