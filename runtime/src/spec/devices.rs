//! The device nodes of a container and what its device cgroup allows. Pure over what was observed.

use std::collections::HashSet;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup};

use super::observe::Observed;

/// Refuses every device: the first rule of every container, the others speak after it.
pub(super) fn deny_all() -> LinuxDeviceCgroup {
    rule(false)
}

fn rule(allow: bool) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_access(Some("rwm".to_owned()));
    rule
}

/// The nodes to make: the ones asked for, and all of the host's for a privileged container; each path once, the
/// asked-for one first.
pub(super) fn for_container(observed: &Observed, privileged: bool) -> Vec<LinuxDevice> {
    let host = observed.host_devices.iter().filter(|_| privileged);
    let mut seen = HashSet::new();
    observed
        .devices
        .iter()
        .map(|(device, _)| device)
        .chain(host)
        .filter(|device| seen.insert(device.path().clone()))
        .cloned()
        .collect()
}

/// The rules: everything for a privileged container, else the devices asked for.
pub(super) fn rules(observed: &Observed, privileged: bool) -> Vec<LinuxDeviceCgroup> {
    if privileged {
        return vec![rule(true)];
    }
    let asked = observed.devices.iter().map(|(device, access)| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true)
            .set_typ(Some(device.typ()))
            .set_major(Some(device.major()))
            .set_minor(Some(device.minor()))
            .set_access(Some(access.clone()));
        rule
    });
    std::iter::once(deny_all()).chain(asked).collect()
}
