//! Names of pod cgroups, as plain folders or as systemd slices.
//!
//! Pure.

use crate::qos::QosClass;

/// Who makes cgroups, and so how they are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Plain folders.
    #[default]
    Cgroupfs,
    /// systemd slices.
    Systemd,
}

/// The parts of a group's name from the root down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupName(Vec<String>);

impl GroupName {
    /// The name of a root given as a path, such as `/` or `/custom/root`.
    pub(super) fn new(root: &str) -> Self {
        Self(root.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }

    pub(super) fn child(mut self, part: &str) -> Self {
        self.0.push(part.to_owned());
        self
    }

    /// The group of a QoS class; guaranteed pods have none of their own.
    pub(super) fn tier(self, class: QosClass) -> Self {
        match class {
            QosClass::Guaranteed => self,
            QosClass::Burstable => self.child("burstable"),
            QosClass::BestEffort => self.child("besteffort"),
        }
    }

    /// The path from the root of the hierarchy, with a leading slash.
    pub(super) fn path(&self, driver: CgroupDriver) -> String {
        match driver {
            CgroupDriver::Cgroupfs => format!("/{}", self.0.join("/")),
            CgroupDriver::Systemd => self.slices(),
        }
    }

    /// The systemd unit of the group; empty for the root.
    pub(super) fn unit(&self) -> String {
        self.slices().rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// `a`, `b-c` become `/a.slice/a-b_c.slice`: a dash tells a slice's parent, so names may hold none.
    fn slices(&self) -> String {
        let mut name = String::new();
        let mut path = String::new();
        for part in &self.0 {
            let part = part.trim_end_matches(".slice").replace('-', "_");
            name = if name.is_empty() { part } else { format!("{name}-{part}") };
            path.push_str(&format!("/{name}.slice"));
        }
        path
    }
}
