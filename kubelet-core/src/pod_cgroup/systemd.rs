//! Slices for pods where systemd owns the cgroup tree.
//!
//! systemd sets every group back to what its unit says whenever it looks at it, so limits that are only written to
//! files are lost: they must be properties of a unit. That is told over D-Bus by `busctl`, which comes with systemd;
//! a slice is started without waiting for its job, since [`super`] makes the folders too and neither minds the
//! other having been first. Blocking; each call has a deadline.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::CgroupError;
use super::write::{Setting, shares_to_weight};

const DEADLINE: &str = "--timeout=10";
const SYSTEMD: [&str; 3] =
    ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"];

/// A property of a unit as busctl takes it: name, D-Bus type, value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Property(&'static str, &'static str, String);

/// Talks to systemd.
#[derive(Clone, Debug)]
pub(super) struct Systemd {
    busctl: PathBuf,
}

impl Systemd {
    pub(super) fn new(busctl: impl Into<PathBuf>) -> Self {
        Self { busctl: busctl.into() }
    }

    /// Starts a slice; also one that systemd has loaded already because another named it.
    pub(super) fn start(&self, unit: &str) -> Result<(), CgroupError> {
        // Without its default dependencies a slice outlives those inside it at shutdown.
        let properties = [
            Property("Description", "s", "Pods of Coracle".to_owned()),
            Property("DefaultDependencies", "b", "false".to_owned()),
        ];
        let mut call = words(&["StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "replace"]);
        push_properties(&mut call, &properties);
        call.push("0".to_owned());
        let transient = self.call(unit, &call);
        transient.or_else(|error| {
            self.call(unit, &words(&["StartUnit", "ss", unit, "replace"])).map_err(|_| error)
        })
    }

    /// Sets limits of a slice until it is stopped.
    pub(super) fn set(&self, unit: &str, properties: &[Property]) -> Result<(), CgroupError> {
        if properties.is_empty() {
            return Ok(());
        }
        let mut call = words(&["SetUnitProperties", "sba(sv)", unit, "true"]);
        push_properties(&mut call, properties);
        self.call(unit, &call)
    }

    /// Stops a slice and forgets it. One that is not there is an error like any other to systemd; whether the group
    /// is gone is seen at its folder.
    pub(super) fn stop(&self, unit: &str) {
        let stopped = self.call(unit, &words(&["StopUnit", "ss", unit, "replace"]));
        if let Err(error) = stopped {
            tracing::debug!(unit, %error, "slice not stopped");
        }
    }

    fn call(&self, unit: &str, arguments: &[String]) -> Result<(), CgroupError> {
        let failed = |message: String| CgroupError::Systemd { unit: unit.to_owned(), message };
        let output = Command::new(&self.busctl)
            .args(["--system", "--quiet", DEADLINE, "call"])
            .args(SYSTEMD)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(format!("{}: {error}", self.busctl.display())))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn push_properties(call: &mut Vec<String>, properties: &[Property]) {
    call.push(properties.len().to_string());
    for Property(name, kind, value) in properties {
        call.extend([(*name).to_owned(), (*kind).to_owned(), value.clone()]);
    }
}

/// Limits as properties; huge pages have none and are written to files alone.
pub(super) fn properties(settings: &[Setting], is_v2: bool) -> Vec<Property> {
    let of = |setting: &Setting| match setting {
        Setting::CpuShares(shares) if is_v2 => {
            vec![Property("CPUWeight", "t", shares_to_weight(*shares).to_string())]
        }
        Setting::CpuShares(shares) => vec![Property("CPUShares", "t", shares.to_string())],
        Setting::CpuQuota { quota, period } => {
            vec![Property("CPUQuotaPerSecUSec", "t", quota_per_second(*quota, *period).to_string())]
        }
        Setting::Memory(bytes) => {
            vec![Property(if is_v2 { "MemoryMax" } else { "MemoryLimit" }, "t", bytes.to_string())]
        }
        Setting::Pids(limit) => vec![Property("TasksMax", "t", limit.to_string())],
        Setting::HugePages { .. } => Vec::new(),
    };
    settings.iter().flat_map(of).collect()
}

/// Microseconds of CPU per second, rounded up to the 10 ms that systemd counts in; all ones for no limit.
fn quota_per_second(quota: i64, period: u64) -> u64 {
    const STEP: u64 = 10_000;
    match u64::try_from(quota) {
        Ok(quota) => quota.saturating_mul(1_000_000).div_ceil(period.max(1)).next_multiple_of(STEP),
        Err(_) => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_properties() {
        let settings = [
            Setting::CpuShares(1024),
            Setting::CpuQuota { quota: 25_500, period: 100_000 },
            Setting::Memory(64),
            Setting::Pids(7),
            Setting::HugePages { page_size: 2 << 20, limit: 0 },
        ];
        let texts = |is_v2| -> Vec<String> {
            properties(&settings, is_v2).iter().map(|p| format!("{} {} {}", p.0, p.1, p.2)).collect()
        };
        let v2 = ["CPUWeight t 100", "CPUQuotaPerSecUSec t 260000", "MemoryMax t 64", "TasksMax t 7"];
        assert_eq!(texts(true), v2);
        let v1 = ["CPUShares t 1024", "CPUQuotaPerSecUSec t 260000", "MemoryLimit t 64", "TasksMax t 7"];
        assert_eq!(texts(false), v1);
        assert_eq!(quota_per_second(-1, 100_000), u64::MAX);
    }
}
