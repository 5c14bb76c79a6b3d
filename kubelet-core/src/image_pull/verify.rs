//! Whether a pod may use an image that is present, and what becomes of pulls that a crash cut off.
//!
//! Part of the puller; asks the records and, only if they say that it matters, the pod's Secrets.

use super::access::{Access, Comparison, Decision, compare, decide};
use super::{ImagePuller, Wish, with_default_tag};
use coracle_cri::v1::ImageSpec;

impl ImagePuller {
    /// Whether the pod may use the image that is present, without asking the registry.
    pub(super) async fn may_use(&self, wish: &Wish<'_>, repository: &str, image_ref: &str) -> bool {
        let Some(records) = self.records.as_ref().filter(|_| self.config.verification.reads_records()) else {
            return true;
        };
        // Two small files, read once per start of a container.
        let known = records.look_up(wish.requested, image_ref);
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
                    let image_ref = found.map(|found| found.id);
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
