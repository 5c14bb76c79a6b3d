//! Whether a pod may use an image that is present, and what becomes of pulls whose end nobody saw: cut off by a crash, or
//! given up.
//!
//! Part of the puller; asks the records and, only if they say that it matters, the pod's Secrets.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{Image, ImageSpec};
use coracle_cri::{Code, ImageService, Status};

use super::access::{Access, Comparison, Decision, Known, compare, decide};
use super::records::Intent;
use super::{ImagePuller, Wish, image_status, with_default_tag};
use crate::clock::Clock;

/// How long after a pull was given up what it had fetched may still get its name.
const LATE: Duration = Duration::from_secs(10);

impl ImagePuller {
    /// Whether the pod may use the image that is present, without asking the registry.
    pub(super) async fn may_use(&self, wish: &Wish<'_>, repository: &str, image: &Image) -> bool {
        let Some(records) = self.records.as_ref().filter(|_| self.config.verification.reads_records()) else {
            return true;
        };
        // Two small files, read once per start of a container.
        let image_ref = image.id.as_str();
        let known = match records.look_up(wish.requested, image_ref) {
            // An archive brought it; that others pull the same name says nothing of it.
            Known::Begun if image.pinned => Known::Nothing,
            known => known,
        };
        let recorded = match decide(&self.config.verification, wish.requested, known) {
            Decision::Use => return true,
            Decision::Pull => return false,
            Decision::Compare(recorded) => recorded,
        };
        // Credentials that cannot be read are told by the pull.
        let Ok(keyring) = self.keyring(wish) else { return false };
        let credentials = keyring.lookup(repository);
        match compare(&recorded, credentials.iter().filter_map(|credential| credential.secret.as_ref())) {
            Comparison::Has => true,
            Comparison::HasNot => false,
            Comparison::HasAlike(secret) => {
                let access = Access::by(Some(secret.clone()));
                let now = self.clock.now().wall();
                if let Err(error) = records.grant(wish.requested, image_ref, access, now).await {
                    tracing::warn!(image = wish.requested, %error, "a Secret that serves an image is not recorded");
                }
                true
            }
        }
    }

    /// Ends the pulls that a run before this one has begun: where they brought the image, it is known as pulled.
    ///
    /// To be called before the first pull.
    pub(crate) async fn settle(&self) {
        let Some(records) = &self.records else { return };
        for image in records.unfinished() {
            let found = match with_default_tag(&image) {
                Ok((name, _)) => self.status(&ImageSpec { image: name, ..ImageSpec::default() }).await,
                Err(_) => Ok(None),
            };
            let ended = match found {
                Ok(found) => {
                    // An archive in the folder is loaded before this.
                    let image_ref = found.filter(|found| !found.pinned).map(|found| found.id);
                    let now = self.clock.now().wall();
                    records.finish(image.clone(), image_ref, now).await.map_err(|error| error.to_string())
                }
                Err(status) => Err(status.to_string()),
            };
            if let Err(error) = ended {
                tracing::warn!(image, error, "the image is held for pulled: a pull of it did not end");
            }
        }
    }
}

/// A pull under way, with what was present by that name before it.
pub(super) struct Attempt {
    pub(super) intent: Option<Intent>,
    pub(super) images: Arc<dyn ImageService>,
    pub(super) spec: ImageSpec,
    pub(super) call_timeout: Duration,
    pub(super) clock: Clock,
    pub(super) before: Option<String>,
}

impl Attempt {
    /// The runtime says that the pull brought this.
    pub(super) async fn pulled(&mut self, image_ref: &str, access: Access) {
        if let Some(intent) = self.intent.take() {
            intent.pulled(image_ref, Some(access), self.clock.now().wall()).await;
        }
    }

    /// The runtime gave these errors. After some of them it may go on.
    pub(super) async fn failed(&mut self, errors: &[Status]) {
        let is_known = |error: &Status| {
            !matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled | Code::Unavailable)
        };
        if errors.iter().all(is_known)
            && let Some(intent) = self.intent.take()
        {
            intent.failed().await;
        }
    }
}

impl Drop for Attempt {
    /// Looks later what became of a pull whose end nobody has seen.
    fn drop(&mut self) {
        let Some(intent) = self.intent.take() else { return };
        let Ok(handle) = tokio::runtime::Handle::try_current() else { return };
        let (images, spec, limit) = (self.images.clone(), self.spec.clone(), self.call_timeout);
        let (clock, before) = (self.clock.clone(), self.before.take());
        handle.spawn(async move {
            tokio::time::sleep(LATE).await;
            // Without an answer the intent stays for the next start.
            let Ok(found) = image_status(&*images, limit, &spec).await else { return };
            let came = found.filter(|image| !image.pinned && Some(&image.id) != before.as_ref());
            match came {
                Some(image) => intent.pulled(&image.id, None, clock.now().wall()).await,
                None => intent.failed().await,
            }
        });
    }
}
