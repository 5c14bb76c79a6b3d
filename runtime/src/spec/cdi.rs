//! CDI devices: what vendors' specifications say about them, merged into a container's OCI spec. Pure; [`files`] reads
//! the specifications and looks at device nodes.
//!
//! Format: the Container Device Interface, versions 0.3 to 1.1 (<https://tags.cncf.io/container-device-interface>). The
//! words of errors are those of its Go library, which containerd prints.

pub mod files;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use coracle_cri::v1;
use oci_spec::runtime::{
    Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxIntelRdt, LinuxNetDevice, Mount, Spec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What annotations that name devices begin with.
const ANNOTATION: &str = "cdi.k8s.io/";

/// The permissions that stand for none.
const NO_PERMISSIONS: &str = "none";

/// Why a container cannot have its devices.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    /// A name that is not `vendor/class=device`, in an annotation.
    #[error("failed to parse CDI device annotations: invalid CDI device name {0:?}")]
    Annotation(String),
    /// Names that no specification has.
    #[error("CDI device injection failed: unresolvable CDI devices {}", .0.join(", "))]
    Unresolvable(Vec<String>),
    /// A node that is not there and not described whole.
    #[error("CDI device injection failed: failed to inject devices: failed to stat CDI host device {0:?}")]
    NoNode(PathBuf),
    /// A node of another kind than described.
    #[error(
        "CDI device injection failed: failed to inject devices: CDI device ({path:?}, {host:?}), host type mismatch \
         ({wanted}, {found})"
    )]
    Mismatch {
        /// In the container.
        path: PathBuf,
        /// On the host.
        host: PathBuf,
        /// As described.
        wanted: String,
        /// As it is.
        found: String,
    },
    /// A hook that OCI does not have, or an edit that it does not take.
    #[error("CDI device injection failed: failed to inject devices: unknown hook name {0:?}")]
    Hook(String),
    /// A part of an edit that is no part of an OCI spec.
    #[error("CDI device injection failed: failed to inject devices: {0}")]
    Part(String),
}

/// A specification of one vendor's devices of one class.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Specification {
    /// The version that it is written in.
    pub cdi_version: String,
    /// `vendor/class`.
    pub kind: String,
    /// Its devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// What a container gets with any of them.
    #[serde(default)]
    pub container_edits: Edits,
}

/// A device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its name in its class.
    pub name: String,
    /// What a container gets with it.
    #[serde(default)]
    pub container_edits: Edits,
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    /// Variables, `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<Node>,
    /// Interfaces that are moved into the container's network.
    pub net_devices: Vec<NetDevice>,
    /// Hooks of the OCI runtime.
    pub hooks: Vec<Hook>,
    /// Mounts.
    pub mounts: Vec<CdiMount>,
    /// Cache and memory bandwidth, as OCI writes it.
    pub intel_rdt: Option<Value>,
    /// Further groups of the process.
    #[serde(alias = "additionalGIDs")]
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// In the container.
    pub path: PathBuf,
    /// On the host; the same when not given.
    pub host_path: Option<PathBuf>,
    /// `b`, `c`, `u` or `p`; that of the host's node when not given.
    pub r#type: String,
    /// The host's when 0.
    pub major: i64,
    /// The host's when the major number is 0.
    pub minor: i64,
    /// The host's when not given.
    pub file_mode: Option<u32>,
    /// `rwm` when not given.
    pub permissions: String,
    /// The process's when not given.
    pub uid: Option<u32>,
    /// The process's when not given.
    pub gid: Option<u32>,
}

impl Node {
    /// Where it is on the host.
    fn host(&self) -> &PathBuf {
        self.host_path.as_ref().unwrap_or(&self.path)
    }

    /// Whether the node can be made without looking at the host's.
    fn is_described(&self) -> bool {
        !self.r#type.is_empty() && (self.major != 0 || self.r#type == "p")
    }
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CdiMount {
    /// On the host.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// As OCI has them.
    pub options: Vec<String>,
    /// As OCI has it.
    pub r#type: String,
}

/// A hook.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    /// When it runs.
    #[serde(skip_serializing)]
    pub hook_name: String,
    /// Its program.
    pub path: PathBuf,
    /// Its arguments, its own name first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetDevice {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name in the container.
    pub name: String,
}

/// What a host's device node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// `b`, `c` or `p`.
    pub kind: &'static str,
    /// Its major number.
    pub major: i64,
    /// Its minor number.
    pub minor: i64,
    /// Its permission bits.
    pub mode: u32,
}

/// Devices by their qualified names, with what all of their specification give.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    devices: HashMap<String, (usize, Edits)>,
    common: Vec<Edits>,
}

impl Registry {
    /// Adds the specifications of one folder; what they say of a device counts more than what earlier folders said. A
    /// device that two of them have is nobody's. Answers the names of these.
    pub fn add(&mut self, specifications: Vec<Specification>) -> Vec<String> {
        let mut here: HashMap<String, (usize, Edits)> = HashMap::new();
        let mut conflicts = HashSet::new();
        for specification in specifications {
            let number = self.common.len();
            self.common.push(specification.container_edits);
            for device in specification.devices {
                let name = format!("{}={}", specification.kind, device.name);
                if here.insert(name.clone(), (number, device.container_edits)).is_some() {
                    conflicts.insert(name);
                }
            }
        }
        self.devices.extend(here);
        for name in &conflicts {
            self.devices.remove(name);
        }
        let mut conflicts: Vec<String> = conflicts.into_iter().collect();
        conflicts.sort();
        conflicts
    }

    /// Everything that a container gets with these devices, in their order.
    pub fn edits(&self, names: &[String]) -> Result<Vec<Edits>, CdiError> {
        let unknown: Vec<String> =
            names.iter().filter(|name| !self.devices.contains_key(*name)).cloned().collect();
        if !unknown.is_empty() {
            return Err(CdiError::Unresolvable(unknown));
        }
        let (mut edits, mut given) = (Vec::new(), HashSet::new());
        for (number, own) in names.iter().filter_map(|name| self.devices.get(name)) {
            if given.insert(*number) {
                edits.push(self.common[*number].clone());
            }
            edits.push(own.clone());
        }
        Ok(edits)
    }
}

/// The devices that a container asks for: those of its field, then those of its annotations, each once.
pub fn requested(config: &v1::ContainerConfig) -> Result<Vec<String>, CdiError> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    };
    config.cdi_devices.iter().for_each(|device| add(&device.name));
    let sorted: BTreeMap<_, _> = config.annotations.iter().collect();
    for (_, value) in sorted.into_iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        for name in value.split(',') {
            if !is_qualified(name) {
                return Err(CdiError::Annotation(name.to_owned()));
            }
            add(name);
        }
    }
    Ok(names)
}

/// Whether a name is `vendor/class=device`.
fn is_qualified(name: &str) -> bool {
    let Some((kind, device)) = name.split_once('=') else { return false };
    let part = |text: &str, letters: fn(char) -> bool, begins: fn(char) -> bool| {
        text.starts_with(begins)
            && text.ends_with(|last: char| last.is_ascii_alphanumeric())
            && text.chars().all(letters)
    };
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    is_kind(kind) && part(device, |c| c.is_ascii_alphanumeric() || "_-.:".contains(c), alphanumeric)
}

/// Whether a kind is `vendor/class`.
pub(crate) fn is_kind(kind: &str) -> bool {
    let Some((vendor, class)) = kind.split_once('/') else { return false };
    let part = |text: &str, further: &str| {
        text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.ends_with(|last: char| last.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || further.contains(c))
    };
    part(vendor, "_-.") && part(class, "_-")
}

/// Merges edits into a container's spec. `seen` is what was found at the nodes' paths on the host.
pub fn apply(spec: &mut Spec, edits: &[Edits], seen: &HashMap<PathBuf, NodeFacts>) -> Result<(), CdiError> {
    for edit in edits {
        if let Some(process) = spec.process_mut() {
            let mut env = process.env().clone().unwrap_or_default();
            edit.env.iter().for_each(|variable| super::process::set_env(&mut env, variable));
            process.set_env(Some(env));
            let mut user = process.user().clone();
            let mut gids = user.additional_gids().clone().unwrap_or_default();
            for gid in edit.additional_gids.iter().filter(|gid| **gid != 0) {
                if !gids.contains(gid) {
                    gids.push(*gid);
                }
            }
            user.set_additional_gids(Some(gids).filter(|gids| !gids.is_empty()));
            process.set_user(user);
        }
        for node in &edit.device_nodes {
            add_node(spec, node, seen)?;
        }
        edit.mounts.iter().for_each(|mount| add_mount(spec, mount));
        for hook in &edit.hooks {
            add_hook(spec, hook)?;
        }
        add_rest(spec, edit)?;
    }
    if edits.iter().any(|edit| !edit.mounts.is_empty())
        && let Some(mounts) = spec.mounts_mut()
    {
        mounts.sort_by_key(|mount| mount.destination().components().count());
    }
    Ok(())
}

fn add_node(spec: &mut Spec, node: &Node, seen: &HashMap<PathBuf, NodeFacts>) -> Result<(), CdiError> {
    let facts = seen.get(node.host());
    if facts.is_none() && !node.is_described() {
        return Err(CdiError::NoNode(node.host().clone()));
    }
    let mut node = node.clone();
    if let Some(facts) = facts {
        node.file_mode = node.file_mode.or(Some(facts.mode));
        if !node.is_described() {
            if node.r#type.is_empty() {
                node.r#type = facts.kind.to_owned();
            }
            // An unbuffered character device is one all the same.
            if node.r#type.replace('u', "c") != facts.kind {
                let (path, host) = (node.path.clone(), node.host().clone());
                let found = facts.kind.to_owned();
                return Err(CdiError::Mismatch { path, host, wanted: node.r#type, found });
            }
            (node.major, node.minor) = (facts.major, facts.minor);
        }
    }
    let kind = match node.r#type.as_str() {
        "b" => LinuxDeviceType::B,
        "p" => LinuxDeviceType::P,
        "u" => LinuxDeviceType::U,
        _ => LinuxDeviceType::C,
    };
    let user = spec.process().as_ref().map(|process| process.user().clone()).unwrap_or_default();
    let own = |id: u32| Some(id).filter(|id| *id > 0);
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(kind)
        .set_major(node.major)
        .set_minor(node.minor)
        .set_file_mode(node.file_mode)
        .set_uid(node.uid.or(own(user.uid())))
        .set_gid(node.gid.or(own(user.gid())));
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|known| known.path() != device.path());
    devices.push(device);
    if matches!(kind, LinuxDeviceType::B | LinuxDeviceType::C) {
        let access = match node.permissions.as_str() {
            "" => "rwm",
            NO_PERMISSIONS => "",
            access => access,
        };
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(kind))
            .set_major(Some(node.major))
            .set_minor(Some(node.minor))
            .set_access(Some(access.to_owned()));
        linux.resources_mut().get_or_insert_default().devices_mut().get_or_insert_default().push(rule);
    }
    Ok(())
}

fn add_mount(spec: &mut Spec, wanted: &CdiMount) {
    let mut mount = Mount::default();
    mount
        .set_destination(wanted.container_path.clone())
        .set_source(Some(wanted.host_path.clone()))
        .set_typ(Some(wanted.r#type.clone()).filter(|kind| !kind.is_empty()))
        .set_options(Some(wanted.options.clone()).filter(|options| !options.is_empty()));
    let is_bind = wanted.r#type == "bind" || wanted.options.iter().any(|o| o == "bind" || o == "rbind");
    if let Some(linux) = spec.linux().as_ref().filter(|_| is_bind) {
        // The files look to the pod's users as they do to the host's.
        mount.set_uid_mappings(linux.uid_mappings().clone());
        mount.set_gid_mappings(linux.gid_mappings().clone());
    }
    let mounts = spec.mounts_mut().get_or_insert_default();
    mounts.retain(|known| known.destination() != mount.destination());
    mounts.push(mount);
}

fn add_hook(spec: &mut Spec, hook: &Hook) -> Result<(), CdiError> {
    const NAMES: [&str; 6] =
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let name = hook.hook_name.as_str();
    if !NAMES.contains(&name) {
        return Err(CdiError::Hook(name.to_owned()));
    }
    let broken = |error: serde_json::Error| CdiError::Part(format!("hook {name}: {error}"));
    let mut hooks = serde_json::to_value(spec.hooks().clone().unwrap_or_default()).map_err(broken)?;
    let entry = serde_json::to_value(hook).map_err(broken)?;
    match hooks.get_mut(name).and_then(Value::as_array_mut) {
        Some(list) => list.push(entry),
        None => hooks[name] = json!([entry]),
    }
    spec.set_hooks(Some(serde_json::from_value::<Hooks>(hooks).map_err(broken)?));
    Ok(())
}

fn add_rest(spec: &mut Spec, edit: &Edits) -> Result<(), CdiError> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    if let Some(rdt) = &edit.intel_rdt {
        let rdt: LinuxIntelRdt = serde_json::from_value(rdt.clone())
            .map_err(|error| CdiError::Part(format!("intelRdt: {error}")))?;
        linux.set_intel_rdt(Some(rdt));
    }
    if !edit.net_devices.is_empty() {
        let mut devices = linux.net_devices().clone().unwrap_or_default();
        for device in &edit.net_devices {
            let entry: LinuxNetDevice = serde_json::from_value(json!({"name": device.name}))
                .map_err(|error| CdiError::Part(format!("netDevices: {error}")))?;
            devices.insert(device.host_interface_name.clone(), entry);
        }
        linux.set_net_devices(Some(devices));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
