//! `coracle check`: what this machine lacks to run pods, each with its cure.
//!
//! [`probes`] looks at the kernel and the disk, [`cgroups`] judges the cgroup controllers; the agent logs the
//! same findings when it starts. Exit code 0: nothing found, 1: pods run with the named limits, 2: pods
//! cannot run.

mod cgroups;
mod probes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use crate::args::CheckArgs;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Pods run, with a limit that is named.
    Warning,
    /// Pods cannot run.
    Error,
}

/// Something that is missing, and its cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub severity: Severity,
    /// What is missing and what follows from it.
    pub what: String,
    /// What the user can do.
    pub cure: String,
}

impl Finding {
    fn error(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { severity: Severity::Error, what: what.into(), cure: cure.into() }
    }

    fn warning(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, what: what.into(), cure: cure.into() }
    }
}

/// What the node is going to use.
pub(crate) struct Plan<'a> {
    pub cni_bin_dirs: &'a [PathBuf],
    pub data_dir: &'a Path,
    pub oci_runtime: Option<&'a Path>,
}

/// Looks at this machine.
pub(crate) fn findings(plan: &Plan<'_>) -> Vec<Finding> {
    let mut findings = probes::run(plan);
    findings.extend(cgroups::judge(&cgroups::Facts::read()));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

pub(crate) fn run(args: &CheckArgs) -> Result<ExitCode> {
    let plan = Plan {
        cni_bin_dirs: &args.cni_bin_dir,
        data_dir: &args.data_dir,
        oci_runtime: args.oci_runtime.as_deref(),
    };
    let findings = findings(&plan);
    for finding in &findings {
        let word = match finding.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        println!("{word}: {}\n  cure: {}", finding.what, finding.cure);
    }
    Ok(match findings.iter().map(|finding| finding.severity).max() {
        None => {
            println!("Nothing is missing: this machine can run pods.");
            ExitCode::SUCCESS
        }
        Some(Severity::Warning) => ExitCode::from(1),
        Some(Severity::Error) => ExitCode::from(2),
    })
}
