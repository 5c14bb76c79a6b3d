//! Volumes of a pod: exactly one source each, good paths and modes.
//!
//! Called by `pod`; pure.

use std::collections::{BTreeMap, BTreeSet};

use super::env::{field_selector, resource_selector};
use super::field::{Errors, Path};
use super::names;
use crate::api::{
    DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, ProjectedVolumeSource, Quantity, Volume,
    VolumeProjection,
};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const MORE_THAN_ONE: &str = "may not specify more than 1 volume type";
const FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// The good volumes, by name.
pub(super) fn validate_volumes<'p>(
    volumes: &'p [Volume],
    path: &Path<'_>,
    errors: &mut Errors,
) -> BTreeMap<&'p str, &'p Volume> {
    let mut good: BTreeMap<&str, &Volume> = BTreeMap::new();
    for (n, volume) in volumes.iter().enumerate() {
        let path = path.index(n);
        let before = errors.0.len();
        validate_source(volume, &path, errors);
        let name_path = path.child("name");
        if volume.name.is_empty() {
            errors.required(&name_path, "");
        } else {
            errors.invalid_each(&name_path, &volume.name, names::dns1123_label(&volume.name));
        }
        if good.contains_key(volume.name.as_str()) {
            errors.duplicate(&name_path, &volume.name);
        }
        if errors.0.len() == before {
            good.insert(&volume.name, volume);
        }
    }
    good
}

fn validate_source(volume: &Volume, path: &Path<'_>, errors: &mut Errors) {
    type Check = fn(&Volume, &Path<'_>, &mut Errors);
    let sources: [(&str, bool, Check); 8] = [
        ("emptyDir", volume.empty_dir.is_some(), empty_dir),
        ("hostPath", volume.host_path.is_some(), |volume, path, errors| {
            if let Some(source) = &volume.host_path {
                host_path(source, path, errors);
            }
        }),
        ("secret", volume.secret.is_some(), secret),
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some(), |volume, path, errors| {
            if volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.claim_name.is_empty()) {
                errors.required(&path.child("claimName"), "");
            }
        }),
        ("downwardAPI", volume.downward_api.is_some(), downward_api),
        ("configMap", volume.config_map.is_some(), config_map),
        ("projected", volume.projected.is_some(), |volume, path, errors| {
            if let Some(source) = &volume.projected {
                projected(source, path, errors);
            }
        }),
        ("image", volume.image.is_some(), image),
    ];
    let mut found = false;
    for (name, _, check) in sources.into_iter().filter(|(_, is_set, _)| *is_set) {
        let path = path.child(name);
        if found {
            errors.forbidden(&path, MORE_THAN_ONE);
        } else {
            check(volume, &path, errors);
        }
        found = true;
    }
    for name in volume.unused_sources() {
        let reason = if found { MORE_THAN_ONE } else { "this node cannot mount volumes of this type" };
        errors.forbidden(&path.child(name), reason);
        found = true;
    }
    if !found {
        errors.required(path, "must specify a volume type");
    }
}

fn empty_dir(volume: &Volume, path: &Path<'_>, errors: &mut Errors) {
    let limit = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref());
    if limit.map_or(0, Quantity::milli_value) < 0 {
        errors.forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
}

fn host_path(source: &HostPathVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    if source.path.is_empty() {
        errors.required(&path.child("path"), "");
        return;
    }
    no_backsteps(&source.path, &path.child("path"), errors);
    if let Some(kind) = source.r#type.as_deref().filter(|kind| !HOST_PATH_TYPES.contains(kind)) {
        errors.not_supported(&path.child("type"), kind, &HOST_PATH_TYPES);
    }
}

fn secret(volume: &Volume, path: &Path<'_>, errors: &mut Errors) {
    let Some(source) = &volume.secret else { return };
    if source.secret_name.is_empty() {
        errors.required(&path.child("secretName"), "");
    }
    mode(source.default_mode, &path.child("defaultMode"), errors);
    key_paths(&source.items, &path.child("items"), errors);
}

fn config_map(volume: &Volume, path: &Path<'_>, errors: &mut Errors) {
    let Some(source) = &volume.config_map else { return };
    if source.name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    mode(source.default_mode, &path.child("defaultMode"), errors);
    key_paths(&source.items, &path.child("items"), errors);
}

fn image(volume: &Volume, path: &Path<'_>, errors: &mut Errors) {
    let Some(source) = &volume.image else { return };
    if source.reference.is_empty() {
        errors.required(&path.child("reference"), "");
    }
    pull_policy(&source.pull_policy, &path.child("pullPolicy"), errors);
}

/// A pull policy, of an image volume or a container.
pub(super) fn pull_policy(policy: &str, path: &Path<'_>, errors: &mut Errors) {
    const SUPPORTED: [&str; 3] = ["Always", "IfNotPresent", "Never"];
    if policy.is_empty() {
        errors.required(path, "");
    } else if !SUPPORTED.contains(&policy) {
        errors.not_supported(path, policy, &SUPPORTED);
    }
}

fn downward_api(volume: &Volume, path: &Path<'_>, errors: &mut Errors) {
    let Some(source) = &volume.downward_api else { return };
    mode(source.default_mode, &path.child("defaultMode"), errors);
    for file in &source.items {
        downward_file(file, path, errors);
    }
}

/// An API server does not tell which item of the list it means; the path here does.
fn downward_file(file: &DownwardAPIVolumeFile, path: &Path<'_>, errors: &mut Errors) {
    if file.path.is_empty() {
        errors.required(&path.child("path"), "");
    }
    local_path(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            field_selector(field, &FIELDS, &path.child("fieldRef"), errors);
            if resource.is_some() {
                let reason = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(path, "resource", reason);
            }
        }
        (None, Some(resource)) => resource_selector(resource, true, &path.child("resourceFieldRef"), errors),
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(file.mode, &path.child("mode"), errors);
}

fn projected(source: &ProjectedVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    mode(source.default_mode, &path.child("defaultMode"), errors);
    let mut paths = BTreeSet::new();
    let list = path.child("sources");
    for (n, projection) in source.sources.iter().enumerate() {
        let source_path = list.index(n);
        projection_sources(projection, path, &source_path, &mut paths, errors);
    }
}

fn projection_sources<'p>(
    source: &'p VolumeProjection,
    volume_path: &Path<'_>,
    path: &Path<'_>,
    paths: &mut BTreeSet<&'p str>,
    errors: &mut Errors,
) {
    let mut add = |file: &'p str, shown: &str, errors: &mut Errors| {
        if !file.is_empty() && !paths.insert(file) {
            errors.invalid(volume_path, shown, "conflicting duplicate paths");
        }
    };
    let mut count = 0;
    let named = [
        ("secret", source.secret.as_ref().map(|s| (&s.name, &s.items))),
        ("configMap", source.config_map.as_ref().map(|s| (&s.name, &s.items))),
    ];
    for (kind, source) in named {
        let Some((name, items)) = source else { continue };
        count += 1;
        let path = path.child(kind);
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        key_paths(items, &path.child("items"), errors);
        for item in items {
            add(&item.path, name, errors);
        }
    }
    if let Some(downward) = &source.downward_api {
        count += 1;
        let path = path.child("downwardAPI");
        for file in &downward.items {
            downward_file(file, &path, errors);
            add(&file.path, &file.path, errors);
        }
    }
    if let Some(token) = &source.service_account_token {
        count += 1;
        let path = path.child("serviceAccountToken");
        let seconds = token.expiration_seconds.unwrap_or(3600);
        if seconds < 600 {
            let reason = "may not specify a duration less than 10 minutes";
            errors.invalid(&path.child("expirationSeconds"), seconds, reason);
        } else if seconds > 1 << 32 {
            let reason = "may not specify a duration larger than 2^32 seconds";
            errors.invalid(&path.child("expirationSeconds"), seconds, reason);
        }
        if token.path.is_empty() {
            errors.required(&volume_path.child("path"), "");
        } else {
            local_path(&token.path, &volume_path.child("path"), errors);
        }
    }
    count += usize::from(source.cluster_trust_bundle.is_set) + usize::from(source.pod_certificate.is_set);
    if count > 1 {
        errors.forbidden(path, "may not specify more than 1 volume type per source");
    }
}

fn key_paths(items: &[KeyToPath], path: &Path<'_>, errors: &mut Errors) {
    for (n, item) in items.iter().enumerate() {
        let path = path.index(n);
        if item.key.is_empty() {
            errors.required(&path.child("key"), "");
        }
        if item.path.is_empty() {
            errors.required(&path.child("path"), "");
        }
        local_path(&item.path, &path.child("path"), errors);
        mode(item.mode, &path.child("mode"), errors);
    }
}

fn mode(mode: Option<i32>, path: &Path<'_>, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(path, mode, MODE);
    }
}

/// No `..` among the elements of a path.
pub(super) fn no_backsteps(text: &str, path: &Path<'_>, errors: &mut Errors) {
    if text.split('/').any(|element| element == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

/// A relative path without `..`.
pub(super) fn descending_path(text: &str, path: &Path<'_>, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    }
    no_backsteps(text, path, errors);
}

/// A relative path that does not even begin with two dots, which is how a volume names its own files.
fn local_path(text: &str, path: &Path<'_>, errors: &mut Errors) {
    descending_path(text, path, errors);
    if text.starts_with("..") && text != ".." && !text.starts_with("../") {
        errors.invalid(path, text, "must not start with '..'");
    }
}
