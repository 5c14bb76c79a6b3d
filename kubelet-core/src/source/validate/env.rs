//! Environment of a container: names and where values come from.
//!
//! Called by `containers` and, for selectors of fields and resources, by `volumes`; pure.

use super::field::{Errors, Path};
use super::names;
use super::volumes::no_backsteps;
use crate::api::{
    Container, EnvVar, EnvVarSource, FileKeySelector, KeySelector, ObjectFieldSelector, ResourceFieldSelector,
};

const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that have a label in the API, whether or not a variable or file may show them.
const KNOWN_FIELDS: [&str; 14] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const BYTE_DIVISORS: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub(super) fn validate_env(container: &Container, path: &Path<'_>, errors: &mut Errors) {
    let list = path.child("env");
    for (n, variable) in container.env.iter().enumerate() {
        let path = list.index(n);
        if variable.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            errors.invalid_each(&path.child("name"), &variable.name, names::env_name(&variable.name));
        }
        if let Some(source) = &variable.value_from {
            value_from(variable, source, &path.child("valueFrom"), errors);
        }
    }
    let list = path.child("envFrom");
    for (n, source) in container.env_from.iter().enumerate() {
        let path = list.index(n);
        if !source.prefix.is_empty() {
            errors.invalid_each(&path.child("prefix"), &source.prefix, names::env_name(&source.prefix));
        }
        for (kind, reference) in [("configMapRef", &source.config_map_ref), ("secretRef", &source.secret_ref)]
        {
            let Some(reference) = reference else { continue };
            let path = path.child(kind);
            if reference.name.is_empty() {
                errors.required(&path.child("name"), "");
            } else {
                let messages = names::dns1123_subdomain(&reference.name);
                errors.invalid_each(&path.child("name"), &reference.name, messages);
            }
        }
        match (&source.config_map_ref, &source.secret_ref) {
            (None, None) => errors.invalid(&list, "", "must specify one of: `configMapRef` or `secretRef`"),
            (Some(_), Some(_)) => {
                errors.invalid(&list, "", "may not have more than one field specified at a time");
            }
            _ => {}
        }
    }
}

fn value_from(variable: &EnvVar, source: &EnvVarSource, path: &Path<'_>, errors: &mut Errors) {
    let mut count = 0;
    if let Some(field) = &source.field_ref {
        count += 1;
        field_selector(field, &FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(resource) = &source.resource_field_ref {
        count += 1;
        resource_selector(resource, false, &path.child("resourceFieldRef"), errors);
    }
    for (kind, key) in
        [("configMapKeyRef", &source.config_map_key_ref), ("secretKeyRef", &source.secret_key_ref)]
    {
        if let Some(key) = key {
            count += 1;
            key_selector(key, &path.child(kind), errors);
        }
    }
    if let Some(file) = &source.file_key_ref {
        count += 1;
        file_selector(file, &path.child("fileKeyRef"), errors);
    }
    if count == 0 {
        let reason = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
                      `fileKeyRef`";
        errors.invalid(path, "", reason);
    } else if variable.value.as_deref().is_some_and(|value| !value.is_empty()) {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn key_selector(selector: &KeySelector, path: &Path<'_>, errors: &mut Errors) {
    errors.invalid_each(&path.child("name"), &selector.name, names::dns1123_subdomain(&selector.name));
    if selector.key.is_empty() {
        errors.required(&path.child("key"), "");
    } else {
        errors.invalid_each(&path.child("key"), &selector.key, names::config_map_key(&selector.key));
    }
}

fn file_selector(selector: &FileKeySelector, path: &Path<'_>, errors: &mut Errors) {
    if selector.key.is_empty() {
        errors.required(&path.child("key"), "");
    } else {
        errors.invalid_each(&path.child("key"), &selector.key, names::env_name(&selector.key));
    }
    if selector.volume_name.is_empty() {
        errors.required(&path.child("volumeName"), "");
    } else {
        let messages = names::dns1123_label(&selector.volume_name);
        errors.invalid_each(&path.child("volumeName"), &selector.volume_name, messages);
    }
    if selector.path.is_empty() {
        errors.required(&path.child("path"), "");
    } else {
        no_backsteps(&selector.path, &path.child("path"), errors);
    }
}

/// A field of the pod; `supported` in alphabetical order.
pub(super) fn field_selector(
    selector: &ObjectFieldSelector,
    supported: &[&str],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if selector.api_version.is_empty() {
        errors.required(&path.child("apiVersion"), "");
        return;
    }
    if selector.field_path.is_empty() {
        errors.required(&path.child("fieldPath"), "");
        return;
    }
    let text = selector.field_path.as_str();
    let field_path = path.child("fieldPath");
    if selector.api_version != "v1" {
        let reason = format!("error converting fieldPath: unsupported pod version: {}", selector.api_version);
        errors.invalid(&field_path, text, reason);
    } else if let Some((field, key)) = subscripted(text) {
        match field {
            "metadata.annotations" => {
                errors.invalid_each(path, key, names::qualified_name(&key.to_lowercase()))
            }
            "metadata.labels" => errors.invalid_each(path, key, names::qualified_name(key)),
            _ => {
                let reason =
                    format!("error converting fieldPath: field label does not support subscript: {text}");
                errors.invalid(&field_path, text, reason);
            }
        }
    } else if !KNOWN_FIELDS.contains(&text) && text != "spec.host" {
        let reason = format!("error converting fieldPath: field label not supported: {text}");
        errors.invalid(&field_path, text, reason);
    } else if !supported.contains(&text) {
        errors.not_supported(&field_path, text, supported);
    }
}

/// Splits `metadata.labels['key']`.
fn subscripted(text: &str) -> Option<(&str, &str)> {
    let (field, key) = text.strip_suffix("']")?.split_once("['")?;
    (!field.is_empty()).then_some((field, key))
}

/// A resource of a container; a volume must name which.
pub(super) fn resource_selector(
    selector: &ResourceFieldSelector,
    in_volume: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let resource = selector.resource.as_str();
    let is_hugepages =
        resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && selector.container_name.is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !RESOURCES.contains(&resource) && !is_hugepages {
        errors.not_supported(&path.child("resource"), resource, &RESOURCES);
    }
    let Some(divisor) = selector.divisor.as_ref().filter(|divisor| !divisor.is_zero()) else { return };
    let (supported, what): (&[&str], _) = match resource {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        "limits.memory" | "requests.memory" => (&BYTE_DIVISORS, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => {
            (&BYTE_DIVISORS, "local ephemeral storage")
        }
        _ if is_hugepages => (&BYTE_DIVISORS, "hugepages"),
        _ => return,
    };
    // Written otherwise, `1000m` say, it is still one of them.
    let is_supported = supported.iter().any(|text| {
        text.parse()
            .is_ok_and(|quantity: crate::api::Quantity| quantity.milli_value() == divisor.milli_value())
    });
    if !is_supported {
        let listed = if what == "cpu" { "1m and 1".to_owned() } else { supported.join(", ") };
        let reason = format!("only divisor's values {listed} are supported with the {what} resource");
        errors.invalid(&path.child("divisor"), resource, reason);
    }
}
