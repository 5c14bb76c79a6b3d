//! The pods of the API that are bound to this node, and what this node makes of each.
//!
//! Owned by the task in `api_pods`; pure. A pod runs here unless it is a mirror of a static pod, was not admitted, or
//! ended before it ran. What only the status says does not reach a worker, which knows it better: a pod handed to a
//! worker is replaced only when something else changed.
//!
//! ```text
//! listed ─► New ─► admitted ─► Runs          (a worker has it until it is gone from the API)
//!            │  └► not admitted, or ended ─► Idle   (nothing runs; its status is written once)
//!            └► annotation config.mirror ─► Mirror
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coracle_cluster::Change;

use super::PodSet;
use super::api_pod::{ApiPod, BadPod, SEEN_ANNOTATION, SOURCE_ANNOTATION, is_mirror};
use crate::admission::{HostRules, Rejection, Verdict, admit};
use crate::allocation::{deferred, given_by_status, held, order};
use crate::api::{Node, Pod, PodCondition};
use crate::pod::status::{is_owned_condition, is_terminal_phase};

/// What a pod of the API is to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A worker has it.
    Runs,
    /// Nothing of it runs: it was not admitted, or had ended before it ran.
    Idle(Option<Rejection>),
    /// It shows a static pod.
    Mirror,
}

/// What the writer of statuses hears of the API.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// A pod as it is served now.
    Seen {
        /// With its status.
        pod: Arc<Pod>,
        /// What it is here.
        part: Part,
    },
    /// A pod is gone from the API.
    Gone {
        /// Which.
        uid: Arc<str>,
    },
    /// All pods were told of once.
    Complete,
}

#[derive(Debug)]
struct Entry {
    /// As the worker knows it.
    pod: Arc<Pod>,
    /// None until it is admitted or not.
    part: Option<Part>,
}

/// The pods of the API.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pods: BTreeMap<Arc<str>, Entry>,
    /// UIDs of the list that is being read.
    listing: Option<BTreeSet<Arc<str>>>,
    /// Whether a list was read whole.
    complete: bool,
    /// Pods that cannot be read, by UID, with why: each is told once.
    bad: BTreeMap<String, String>,
    /// Pods that have to end so that critical ones fit.
    preempted: BTreeSet<Arc<str>>,
    /// Pods of the folder that room was made for.
    settled_statics: BTreeSet<Arc<str>>,
    /// How many resizes had to wait so far.
    deferrals: u64,
    host: HostRules,
}

impl Table {
    /// Without pods, for a host with these rules.
    pub(crate) fn new(host: HostRules) -> Self {
        Self { host, ..Self::default() }
    }

    /// Takes over one change of the watch; `seen` is the time of now for pods that are new.
    pub(crate) fn apply(&mut self, change: Change<ApiPod>, seen: &str) -> Vec<News> {
        match change {
            Change::Restart => {
                self.listing = Some(BTreeSet::new());
                Vec::new()
            }
            Change::Listed(pod) | Change::Applied(pod) => self.put(pod, seen).into_iter().collect(),
            Change::Deleted(ApiPod(pod)) => {
                let uid = match pod {
                    Ok(pod) => pod.metadata.uid.clone(),
                    Err(bad) => Arc::from(bad.uid),
                };
                self.remove(uid).into_iter().collect()
            }
            Change::Ready => self.end_list(),
        }
    }

    /// Takes over pods that ran before the start and were kept; what the API says of them counts more.
    pub(crate) fn restore(&mut self, pods: Vec<Arc<Pod>>) {
        for pod in pods {
            let uid = pod.metadata.uid.clone();
            self.pods.entry(uid).or_insert(Entry { pod, part: Some(Part::Runs) });
        }
    }

    /// Whether a list was read whole.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    fn end_list(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        if let Some(listed) = self.listing.take() {
            let gone: Vec<Arc<str>> =
                self.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
            news.extend(gone.into_iter().filter_map(|uid| self.remove(uid)));
        }
        if !std::mem::replace(&mut self.complete, true) {
            news.push(News::Complete);
        }
        news
    }

    fn remove(&mut self, uid: Arc<str>) -> Option<News> {
        self.bad.remove(&*uid);
        self.preempted.remove(&uid);
        self.pods.remove(&uid).map(|_| News::Gone { uid })
    }

    fn put(&mut self, ApiPod(pod): ApiPod, seen: &str) -> Option<News> {
        let pod = match pod {
            Ok(pod) => pod,
            Err(bad) => {
                self.note_bad(bad);
                return None;
            }
        };
        let uid = pod.metadata.uid.clone();
        if let Some(listed) = &mut self.listing {
            listed.insert(uid.clone());
        }
        self.bad.remove(&*uid);
        let served = self.annotated(*pod, seen);
        let mirror = is_mirror(&served).then_some(Part::Mirror);
        let entry = self.pods.entry(uid).or_insert_with(|| {
            let given = given_by_status(&served);
            Entry { pod: given.map_or_else(|| served.clone(), |given| held(&served, &given)), part: mirror }
        });
        // A pod that nothing runs of yet is given what it asks for when it is admitted.
        let is_given = entry.part == Some(Part::Runs) || entry.pod.pending_resize.is_some();
        let own = if is_given { held(&served, &entry.pod) } else { served.clone() };
        if !Arc::ptr_eq(&entry.pod, &served) && matters(&entry.pod, &own) {
            entry.pod = own;
        }
        entry.part.clone().map(|part| News::Seen { pod: served, part })
    }

    /// Says where the pod came from and when it was seen first, as a kubelet does; the API may not claim otherwise.
    fn annotated(&self, mut pod: Pod, seen: &str) -> Arc<Pod> {
        let first_seen = self.pods.get(&pod.metadata.uid);
        let first_seen = first_seen.and_then(|entry| entry.pod.metadata.annotations.get(SEEN_ANNOTATION));
        if !is_mirror(&pod) {
            let seen = first_seen.cloned().unwrap_or_else(|| seen.to_owned());
            pod.metadata.annotations.insert(SEEN_ANNOTATION.to_owned(), seen);
            pod.metadata.annotations.insert(SOURCE_ANNOTATION.to_owned(), "api".to_owned());
        }
        Arc::new(pod)
    }

    /// A pod that cannot be read stays what it was; it is told once.
    fn note_bad(&mut self, bad: BadPod) {
        if let Some(listed) = &mut self.listing {
            listed.insert(Arc::from(bad.uid.as_str()));
        }
        if self.bad.get(&bad.uid) != Some(&bad.error) {
            tracing::error!(
                pod = format!("{}/{}", bad.namespace, bad.name),
                error = bad.error,
                "a pod of the API server cannot be read and stays as it was; mend or delete it"
            );
            self.bad.insert(bad.uid, bad.error);
        }
    }

    /// Decides about new pods once all are known: first those that ran before, then the oldest. A pod that this node took
    /// before it lost its memory is not asked again; others wait while the node itself is not known, and a critical one
    /// until those have ended that make room for it. `statics` are the pods of the folder that have not ended.
    pub(crate) fn admit(&mut self, node: Option<&Node>, statics: &PodSet) -> Vec<News> {
        if !self.complete || self.listing.is_some() {
            return Vec::new();
        }
        let new = self.pods.iter().filter(|(_, entry)| entry.part.is_none());
        let mut new: Vec<_> = new
            .map(|(uid, entry)| {
                let metadata = &entry.pod.metadata;
                let is_new = entry.pod.status.start_time.is_none();
                let name = (metadata.namespace.clone(), metadata.name.clone());
                (is_new, metadata.creation_timestamp, name, uid.clone())
            })
            .collect();
        new.sort_unstable();
        let mut news = Vec::with_capacity(new.len());
        for (.., uid) in new {
            let Some(part) = self.part_of(&uid, node, statics) else { continue };
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.part = Some(part.clone());
                news.push(News::Seen { pod: entry.pod.clone(), part });
            }
        }
        if let Some(node) = node {
            self.make_room_for_statics(node, statics);
            self.resize(node, statics);
        }
        news
    }

    /// Gives pods that run what they ask for since, as far as there is room.
    fn resize(&mut self, node: &Node, statics: &PodSet) {
        let running = self.pods.iter().filter(|(_, entry)| entry.part == Some(Part::Runs));
        let mut pending: Vec<_> =
            running.filter_map(|(uid, entry)| Some((order(&entry.pod)?, uid.clone()))).collect();
        pending.sort_unstable();
        for (_, uid) in pending {
            let Some(pod) = self.pods.get(&uid).map(|entry| entry.pod.clone()) else { continue };
            let Some(wanted) = pod.pending_resize.as_deref().map(|pending| pending.wanted.clone()) else {
                continue;
            };
            let others: Vec<&Pod> =
                self.active(statics).filter(|(other, _)| **other != uid).map(|(_, pod)| pod).collect();
            let decided = match admit(&wanted, node, &others) {
                Verdict::Takes => wanted,
                Verdict::Rejects(rejection) => {
                    let Some(pod) = deferred(&pod, rejection.message, self.deferrals) else { continue };
                    self.deferrals += 1;
                    Arc::new(pod)
                }
                Verdict::Preempts(_) => {
                    self.make_room(&wanted, node, statics);
                    continue;
                }
            };
            if let Some(entry) = self.pods.get_mut(&uid) {
                entry.pod = decided;
            }
        }
    }

    fn part_of(&mut self, uid: &Arc<str>, node: Option<&Node>, statics: &PodSet) -> Option<Part> {
        let pod = self.pods.get(uid)?.pod.clone();
        let status = &pod.status;
        if is_terminal_phase(&status.phase) {
            let ran = !status.container_statuses.is_empty() || !status.init_container_statuses.is_empty();
            return Some(if ran { Part::Runs } else { Part::Idle(None) });
        }
        if status.start_time.is_some() || pod.metadata.deletion_timestamp.is_some() {
            return Some(Part::Runs);
        }
        let node = node?;
        if let Some(rejection) = self.host.reject(&pod) {
            return Some(Part::Idle(Some(rejection)));
        }
        let others: Vec<&Pod> = self.active(statics).map(|(_, pod)| pod).collect();
        match admit(&pod, node, &others) {
            Verdict::Takes => Some(Part::Runs),
            Verdict::Rejects(rejection) => Some(Part::Idle(Some(rejection))),
            Verdict::Preempts(_) => {
                self.make_room(&pod, node, statics);
                None
            }
        }
    }

    /// Pods of the folder run in any case: what lacks for one that is new is taken from others.
    fn make_room_for_statics(&mut self, node: &Node, statics: &PodSet) {
        self.settled_statics.retain(|uid| statics.contains_key(uid));
        for (uid, pod) in statics.iter() {
            if self.settled_statics.insert(uid.clone()) {
                self.make_room(pod, node, statics);
            }
        }
    }

    /// Chooses who ends for a critical pod, beyond those that end already.
    fn make_room(&mut self, pod: &Pod, node: &Node, statics: &PodSet) {
        let stays =
            |(uid, _): &(&Arc<str>, &Pod)| !self.preempted.contains(*uid) && **uid != pod.metadata.uid;
        let others: Vec<&Pod> = self.active(statics).filter(stays).map(|(_, pod)| pod).collect();
        if let Verdict::Preempts(victims) = admit(pod, node, &others) {
            let victims: Vec<Arc<str>> = victims.iter().map(|pod| pod.metadata.uid.clone()).collect();
            self.preempted.extend(victims);
        }
    }

    /// What runs here and counts for those that come.
    fn active<'a>(&'a self, statics: &'a PodSet) -> impl Iterator<Item = (&'a Arc<str>, &'a Pod)> {
        let running = self.pods.iter().filter(|(_, entry)| entry.part == Some(Part::Runs));
        let running = running.map(|(uid, entry)| (uid, &*entry.pod));
        let running = running.filter(|(_, pod)| !is_terminal_phase(&pod.status.phase));
        statics.iter().map(|(uid, pod)| (uid, &**pod)).chain(running)
    }

    /// The pods that have to end so that critical ones fit, until they have.
    pub(crate) fn preempted(&self) -> Vec<Arc<Pod>> {
        let entries = self.preempted.iter().filter_map(|uid| self.pods.get(uid));
        entries.map(|entry| entry.pod.clone()).filter(|pod| !is_terminal_phase(&pod.status.phase)).collect()
    }

    /// Whether every source was heard and every pod decided about: what is not wanted now is not wanted.
    pub(crate) fn is_settled(&self) -> bool {
        self.complete && self.pods.values().all(|entry| entry.part.is_some())
    }

    /// The pods that should run, with those of this node alone.
    pub(crate) fn desired(&self, statics: &PodSet) -> BTreeMap<Arc<str>, Arc<Pod>> {
        let mut desired = (**statics).clone();
        let runs = self.pods.iter().filter(|(_, entry)| entry.part == Some(Part::Runs));
        desired.extend(runs.map(|(uid, entry)| (uid.clone(), entry.pod.clone())));
        desired
    }
}

/// Whether a worker has to know of the difference: anything but what the node itself wrote into the status.
fn matters(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    let foreign = |pod: &Pod| -> Vec<PodCondition> {
        pod.status.conditions.iter().filter(|c| !is_owned_condition(&c.r#type)).cloned().collect()
    };
    let ended = |pod: &Pod| is_terminal_phase(&pod.status.phase);
    a.labels != b.labels
        || a.annotations != b.annotations
        || a.deletion_timestamp != b.deletion_timestamp
        || a.deletion_grace_period_seconds != b.deletion_grace_period_seconds
        || a.generation != b.generation
        || old.spec != new.spec
        || ended(old) != ended(new)
        || foreign(old) != foreign(new)
}

#[cfg(test)]
mod tests;
