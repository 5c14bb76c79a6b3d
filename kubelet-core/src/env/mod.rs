//! The environment of a container from `env` and `envFrom`, with the kubelet's rules and error texts.
//!
//! Pure but for reads through [`ObjectSource`], which answers from memory; called for each container that is
//! about to be created. `fileKeyRef` reads a file, so the caller hands in how.

mod expand;
mod fields;
mod resource_fields;
mod services;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::api::{Container, EnvFromSource, EnvVarSource, FileKeySelector, KeySelector, Pod, Quantity};
use crate::objects::ObjectSource;

pub use expand::{expand, expand_sub_path};
pub use fields::{FieldError, field};
pub use resource_fields::{ResourceFieldError, resource_field};

/// Why a container's environment cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A configMap that is not optional is not there.
    #[error("configmap {0:?} not found")]
    ConfigMapNotFound(String),
    /// A secret that is not optional is not there.
    #[error("secret {0:?} not found")]
    SecretNotFound(String),
    /// The object is there without the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    KeyNotFound {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The pod's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A field of the pod that there is not.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A resource that there is not.
    #[error(transparent)]
    ResourceField(#[from] ResourceFieldError),
    /// A variable from a file in a volume.
    #[error("{0}")]
    File(String),
    /// A configMap or secret that could not be looked up.
    #[error("{0}")]
    Unknown(String),
    /// The services that every pod is told of are not known yet.
    #[error("services have not yet been read at least once, cannot construct envvars")]
    Services,
    /// The value cannot be one of a process.
    #[error("environment variable {0:?} has a NUL byte in its name or value")]
    Nul(String),
}

/// What the environment is made from, besides the pod.
pub struct EnvInputs<'a> {
    /// ConfigMaps and secrets.
    pub objects: &'a dyn ObjectSource,
    /// The pod's addresses, primary first; the node's if it uses the host's network.
    pub pod_ips: &'a [IpAddr],
    /// The node's addresses, primary first.
    pub host_ips: &'a [IpAddr],
    /// What the node can give to pods, the default of limits that are not set.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Reads `fileKeyRef`: the value, or `None` if the file has no such key.
    pub read_file_key: &'a dyn Fn(&FileKeySelector) -> Result<Option<String>, String>,
}

/// The variables of a container: first those of `envFrom`, then `env` in its order, each name once.
pub fn environment(
    pod: &Pod,
    container: &Container,
    inputs: &EnvInputs<'_>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut of_services = Variables::default();
    let services = inputs.objects.services(pod).ok_or(EnvError::Services)?;
    services::service_variables(&services, |name, value| of_services.set(name, value));
    let mut variables = Variables::default();
    for source in &container.env_from {
        add_all(&mut variables, &pod.metadata.namespace, source, inputs.objects)?;
    }
    for variable in &container.env {
        let value = match (variable.value.as_deref().unwrap_or(""), &variable.value_from) {
            ("", Some(source)) => match resolve(pod, container, source, inputs)? {
                Some(value) => value,
                None => continue,
            },
            (text, _) => expand(text, |name| variables.get(name).or_else(|| of_services.get(name))),
        };
        variables.set(variable.name.clone(), value);
    }
    for (name, value) in of_services.0 {
        if variables.get(&name).is_none() {
            variables.0.push((name, value));
        }
    }
    match variables.0.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        Some((name, _)) => Err(EnvError::Nul(name.clone())),
        None => Ok(variables.0),
    }
}

/// Variables in the order of their first mention; a few dozen at most, so a list is searched.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

fn add_all(
    variables: &mut Variables,
    namespace: &str,
    source: &EnvFromSource,
    objects: &dyn ObjectSource,
) -> Result<(), EnvError> {
    if let Some(reference) = &source.config_map_ref {
        match objects.config_map(namespace, &reference.name) {
            Some(map) => {
                for (key, value) in &map.data {
                    variables.set(format!("{}{key}", source.prefix), value.clone());
                }
            }
            None if reference.optional == Some(true)
                && is_known(objects, "configmap", namespace, &reference.name) => {}
            None => return Err(no_config_map(objects, namespace, &reference.name)),
        }
    } else if let Some(reference) = &source.secret_ref {
        match objects.secret(namespace, &reference.name) {
            Some(secret) => {
                for (key, value) in &secret.data {
                    let text = String::from_utf8_lossy(&value.0).into_owned();
                    variables.set(format!("{}{key}", source.prefix), text);
                }
            }
            None if reference.optional == Some(true)
                && is_known(objects, "secret", namespace, &reference.name) => {}
            None => return Err(no_secret(objects, namespace, &reference.name)),
        }
    }
    Ok(())
}

/// The value of a source; `None` leaves the variable out.
fn resolve(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    inputs: &EnvInputs<'_>,
) -> Result<Option<String>, EnvError> {
    let namespace = &pod.metadata.namespace;
    if let Some(reference) = &source.field_ref {
        let value = fields::env_field(pod, &reference.field_path, inputs.pod_ips, inputs.host_ips)?;
        return Ok(Some(value));
    }
    if let Some(reference) = &source.resource_field_ref {
        return Ok(Some(resource_field(pod, Some(container), reference, inputs.allocatable)?));
    }
    if let Some(reference) = &source.config_map_key_ref {
        let Some(map) = inputs.objects.config_map(namespace, &reference.name) else {
            return absent(reference, no_config_map(inputs.objects, namespace, &reference.name));
        };
        let value = map.data.get(&reference.key).cloned();
        return value.map_or_else(|| no_key(reference, "ConfigMap", namespace), |value| Ok(Some(value)));
    }
    if let Some(reference) = &source.secret_key_ref {
        let Some(secret) = inputs.objects.secret(namespace, &reference.name) else {
            return absent(reference, no_secret(inputs.objects, namespace, &reference.name));
        };
        let value = secret.data.get(&reference.key).map(|v| String::from_utf8_lossy(&v.0).into_owned());
        return value.map_or_else(|| no_key(reference, "Secret", namespace), |value| Ok(Some(value)));
    }
    if let Some(reference) = &source.file_key_ref {
        return from_file(reference, inputs);
    }
    Ok(Some(String::new()))
}

/// Whether an object that is not there is known not to be.
fn is_known(objects: &dyn ObjectSource, kind: &'static str, namespace: &str, name: &str) -> bool {
    objects.why_unknown(kind, namespace, name).is_none()
}

fn no_config_map(objects: &dyn ObjectSource, namespace: &str, name: &str) -> EnvError {
    let why = objects.why_unknown("configmap", namespace, name);
    why.map_or_else(|| EnvError::ConfigMapNotFound(name.to_owned()), EnvError::Unknown)
}

fn no_secret(objects: &dyn ObjectSource, namespace: &str, name: &str) -> EnvError {
    let why = objects.why_unknown("secret", namespace, name);
    why.map_or_else(|| EnvError::SecretNotFound(name.to_owned()), EnvError::Unknown)
}

fn absent(reference: &KeySelector, error: EnvError) -> Result<Option<String>, EnvError> {
    let is_known = !matches!(error, EnvError::Unknown(_));
    if reference.optional == Some(true) && is_known { Ok(None) } else { Err(error) }
}

fn no_key(reference: &KeySelector, kind: &'static str, namespace: &str) -> Result<Option<String>, EnvError> {
    let error = EnvError::KeyNotFound {
        key: reference.key.clone(),
        kind,
        namespace: namespace.to_owned(),
        name: reference.name.clone(),
    };
    absent(reference, error)
}

fn from_file(reference: &FileKeySelector, inputs: &EnvInputs<'_>) -> Result<Option<String>, EnvError> {
    match (inputs.read_file_key)(reference).map_err(EnvError::File)? {
        Some(value) if !value.is_empty() => Ok(Some(value)),
        _ if reference.optional == Some(true) => Ok(None),
        _ => Err(EnvError::File(format!(
            "environment variable key {:?} not found in file {:?}",
            reference.key, reference.path
        ))),
    }
}

#[cfg(test)]
mod tests;
