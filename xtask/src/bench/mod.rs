//! The benches: each prints a table and writes `target/bench/NAME.json`, an array of
//! `{"measure", "unit", "at", "ours", "reference"}` with `reference` null where there is none.

pub(crate) mod local;
pub(crate) mod node;
pub(crate) mod pull;
pub(crate) mod runtime;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What a bench has measured so far.
pub(crate) struct Report {
    name: &'static str,
    rows: Vec<Value>,
}

impl Report {
    /// An empty report.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, rows: Vec::new() }
    }

    /// Adds and prints one measure.
    pub(crate) fn add(
        &mut self,
        measure: &str,
        unit: &str,
        at: impl Into<Value>,
        ours: f64,
        reference: Option<f64>,
    ) {
        self.pair(measure, unit, at, Some(ours), reference);
    }

    /// The same where either side may not have been measured.
    pub(crate) fn pair(
        &mut self,
        measure: &str,
        unit: &str,
        at: impl Into<Value>,
        ours: Option<f64>,
        reference: Option<f64>,
    ) {
        let at = at.into();
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        let place = at.as_str().map_or_else(|| at.to_string(), str::to_owned);
        println!("{measure:<32} {place:>14} {:>12} {:>12} {unit}", shown(ours), shown(reference));
        self.rows
            .push(json!({"measure": measure, "unit": unit, "at": at, "ours": ours, "reference": reference}));
    }

    /// Prints the head of the table.
    pub(crate) fn head(&self) {
        println!("{:<32} {:>14} {:>12} {:>12}", "measure", "at", "ours", "reference");
    }

    /// Writes the file.
    pub(crate) fn write(&self) -> Result<()> {
        let folder = crate::process::target_dir().join("bench");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(format!("{}.json", self.name));
        std::fs::write(&path, serde_json::to_vec_pretty(&self.rows)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("written to {}", path.display());
        Ok(())
    }
}

/// The value below which `percent` of the samples lie (nearest rank). `samples` must not be empty.
pub(crate) fn percentile(samples: &mut [f64], percent: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() * percent).div_ceil(100).max(1);
    samples[rank - 1]
}
