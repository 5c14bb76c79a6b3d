//! Validation of ConfigMaps and Secrets (`ValidateConfigMap`, `ValidateSecret`).
//!
//! Called by the manifest folder; pure. A message never repeats a secret's value.

use super::field::{Errors, FieldError, Path};
use super::names::{self, validate_metadata};
use crate::api::{ByteString, ConfigMap, Secret};

/// All values of one object together.
const MAX_DATA_BYTES: usize = 1 << 20;

/// Everything that is wrong with a ConfigMap.
pub fn validate_config_map(config_map: &ConfigMap) -> Vec<FieldError> {
    let mut errors = Errors::default();
    validate_metadata(&config_map.metadata, names::dns1123_subdomain, &mut errors);
    let (data, binary) = (Path::Root("data"), Path::Root("binaryData"));
    let mut size = 0;
    for (key, value) in &config_map.data {
        errors.invalid_each(&data.key(key), key, names::config_map_key(key));
        if config_map.binary_data.contains_key(key) {
            errors.invalid(&data.key(key), key, "duplicate of key present in binaryData");
        }
        size += value.len();
    }
    for (key, value) in &config_map.binary_data {
        errors.invalid_each(&binary.key(key), key, names::config_map_key(key));
        size += value.0.len();
    }
    if size > MAX_DATA_BYTES {
        // An API server names no field here.
        errors.too_long(&Path::Root(""), MAX_DATA_BYTES);
    }
    errors.0
}

/// Everything that is wrong with a Secret.
pub fn validate_secret(secret: &Secret) -> Vec<FieldError> {
    let mut errors = Errors::default();
    validate_metadata(&secret.metadata, names::dns1123_subdomain, &mut errors);
    let data = Path::Root("data");
    let mut size = 0;
    for (key, value) in &secret.data {
        errors.invalid_each(&data.key(key), key, names::config_map_key(key));
        size += value.0.len();
    }
    if size > MAX_DATA_BYTES {
        errors.too_long(&data, MAX_DATA_BYTES);
    }
    match secret.r#type.as_str() {
        "kubernetes.io/dockercfg" => docker_json(secret, ".dockercfg", &mut errors),
        "kubernetes.io/dockerconfigjson" => docker_json(secret, ".dockerconfigjson", &mut errors),
        "kubernetes.io/basic-auth"
            if !secret.data.contains_key("username") && !secret.data.contains_key("password") =>
        {
            errors.required(&data.key("username"), "");
            errors.required(&data.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if secret.data.get("ssh-privatekey").is_none_or(|key| key.0.is_empty()) => {
            errors.required(&data.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !secret.data.contains_key(key) {
                    errors.required(&data.key(key), "");
                }
            }
        }
        _ => {}
    }
    errors.0
}

fn docker_json(secret: &Secret, key: &str, errors: &mut Errors) {
    let data = Path::Root("data");
    match secret.data.get(key) {
        None => errors.required(&data.key(key), ""),
        Some(ByteString(bytes)) => {
            if let Err(error) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes) {
                let place = format!("not valid JSON at line {} column {}", error.line(), error.column());
                errors.invalid(&data.key(key), "<secret contents redacted>", place);
            }
        }
    }
}
