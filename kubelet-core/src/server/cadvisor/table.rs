//! Samples of `/metrics/cadvisor` by family, and the labels that all of them have. Pure.

use crate::server::metrics::{Families, Sample};

/// One family: name, help, kind.
pub(super) type Family = (&'static str, &'static str, &'static str);

/// Labels and value of one sample.
type Measure = (Vec<(&'static str, String)>, f64);

/// Samples by family, in the order of first use.
#[derive(Default)]
pub(super) struct Table(Vec<(Family, Vec<Measure>)>);

impl Table {
    pub(super) fn add(
        &mut self,
        family: Family,
        labels: &Labels<'_>,
        more: &[(&'static str, &str)],
        value: f64,
    ) {
        let position = self.0.iter().position(|(known, _)| known.0 == family.0);
        let position = position.unwrap_or_else(|| {
            self.0.push((family, Vec::new()));
            self.0.len() - 1
        });
        let mut all = labels.all();
        all.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        all.sort_unstable();
        self.0[position].1.push((all, value));
    }

    pub(super) fn text(mut self) -> String {
        self.0.sort_unstable_by_key(|(family, _)| family.0);
        let mut families = Families::default();
        for ((name, help, kind), samples) in &self.0 {
            let samples: Vec<Sample<'_>> = samples
                .iter()
                .map(|(labels, value)| Sample {
                    labels: labels.iter().map(|(name, value)| (*name, value.as_str())).collect(),
                    value: *value,
                    timestamp: None,
                })
                .collect();
            families.add(name, help, kind, &samples);
        }
        families.0
    }
}

/// What every sample of a container, a pod or the machine says of whose it is.
#[derive(Clone, Copy, Default)]
pub(super) struct Labels<'a> {
    pub(super) container: &'a str,
    /// Its cgroup.
    pub(super) id: &'a str,
    pub(super) image: &'a str,
    /// The runtime's id of the container.
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
}

impl Labels<'_> {
    fn all(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("container", self.container),
            ("id", self.id),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ];
        all.map(|(name, value)| (name, value.to_owned())).to_vec()
    }
}
