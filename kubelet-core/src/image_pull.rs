//! Images of containers: present or pulled, by policy, with the kubelet's reasons and events.
//!
//! One [`ImagePuller`] is shared by all workers; each calls [`ensure`](ImagePuller::ensure) before it makes a
//! container. It owns no task: a pull is polled by the workers that wait for it, and ends when the last of
//! them gives up. One short lock guards back-offs and pulls in progress and is never held across a wait.
//! Rules and words are those of the kubelet's `pkg/kubelet/images/image_manager.go`.

mod access;
mod credentials;
mod providers;
mod records;
mod verify;
mod words;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use coracle_cri::v1::{Image, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest};
use coracle_cri::{Code, ImageService, Status};
use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use tokio::sync::Semaphore;

use crate::api::{Container, Pod};
use crate::backoff::{Backoff, BackoffPolicy};
use crate::clock::Clock;
use crate::container_config::ImageRef;
use crate::events::{EventRecorder, EventType, container_field_path};
use crate::objects::ObjectSource;
use crate::source::parse_image_name;
use access::Access;
pub use access::{PolicyError, VerificationPolicy};
use credentials::{Credential, Keyring};
use providers::Plugins;
pub use providers::{CredentialProviders, ProviderConfigError};
pub(crate) use records::PullRecords;
use verify::Attempt;
use words::{criterion, go_duration, joined, rpc_text};

/// How pulls go.
#[derive(Clone, Debug)]
pub struct ImagePullConfig {
    /// How many pulls run side by side. A kubelet pulls one after the other unless told otherwise; then one
    /// registry that stalls holds up all others.
    pub max_parallel: NonZeroUsize,
    /// When a pull counts as failed. The runtime ends one that stalls long before.
    pub pull_timeout: Duration,
    /// Deadline of every other call.
    pub call_timeout: Duration,
    /// Plugins that are asked for credentials.
    pub providers: CredentialProviders,
    /// Where the node's own config.json of Docker may be; the first that is there holds for all pods, after their own
    /// secrets.
    pub docker_configs: Vec<PathBuf>,
    /// Where it is recorded by which credentials an image was pulled, `image_manager` in the kubelet's folder. With none
    /// every pod may use what is present.
    pub records: Option<PathBuf>,
    /// Which images that are present a pod needs credentials for.
    pub verification: VerificationPolicy,
}

impl Default for ImagePullConfig {
    fn default() -> Self {
        Self {
            max_parallel: NonZeroUsize::new(4).expect("invariant: four is not zero"),
            pull_timeout: Duration::from_secs(3600),
            call_timeout: Duration::from_secs(60),
            providers: CredentialProviders::default(),
            docker_configs: Vec::new(),
            records: None,
            verification: VerificationPolicy::default(),
        }
    }
}

/// Why a container has no image yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PullError {
    /// The container's waiting reason: `ErrImagePull`, `ImagePullBackOff`, `ErrImageNeverPull`,
    /// `InvalidImageName`, `ImageInspectError`, `RegistryUnavailable` or `SignatureValidationFailed`.
    pub reason: &'static str,
    /// What a person reads in the container's status.
    pub message: String,
    /// When (since boot) another try makes sense; `None` if only a change of the pod or the node helps.
    pub retry_at: Option<Duration>,
}

/// Pulls images.
pub struct ImagePuller {
    images: Arc<dyn ImageService>,
    objects: Arc<dyn ObjectSource>,
    events: EventRecorder,
    clock: Clock,
    config: ImagePullConfig,
    slots: Arc<Semaphore>,
    plugins: Plugins,
    records: Option<PullRecords>,
    state: Mutex<State>,
}

/// Key of a back-off: UID of the pod and image as the pod names it.
type BackoffKey = (Arc<str>, String);

struct State {
    backoff: Backoff<BackoffKey>,
    failures: HashMap<BackoffKey, Failure>,
    running: HashMap<PullKey, WeakShared<Pull>>,
}

struct Failure {
    until: Duration,
    /// `ErrImagePull: …`, shown again while backing off.
    text: String,
}

/// Pulls alike are one: the same image by the same credentials of the same Secrets for the same handler.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PullKey {
    /// As pods name it.
    image: String,
    handler: String,
    credentials: Vec<Credential>,
}

type Pull = BoxFuture<'static, Arc<Result<Pulled, Vec<Status>>>>;

struct Pulled {
    image: Image,
    /// Without waiting for a slot.
    took: Duration,
}

/// One container's wish, and who hears of it.
struct Wish<'a> {
    pod: &'a Pod,
    field_path: String,
    /// As the pod names it.
    requested: &'a str,
    spec: ImageSpec,
    /// The pod's credentials, once they were looked up.
    keyring: OnceLock<Result<Keyring, String>>,
}

impl ImagePuller {
    /// A puller over an image service; secrets named by pods come from `objects`.
    pub fn new(
        images: Arc<dyn ImageService>,
        objects: Arc<dyn ObjectSource>,
        events: EventRecorder,
        clock: Clock,
        config: ImagePullConfig,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(config.max_parallel.get()));
        let state = State {
            backoff: Backoff::new(BackoffPolicy::CRASH_LOOP),
            failures: HashMap::new(),
            running: HashMap::new(),
        };
        let plugins = Plugins::new(config.providers.clone());
        let records = config.records.as_deref().map(PullRecords::new);
        Self { images, objects, events, clock, config, slots, plugins, records, state: Mutex::new(state) }
    }

    /// The records of pulls, for who removes images.
    pub(crate) fn records(&self) -> Option<PullRecords> {
        self.records.clone()
    }

    /// The container's image, pulled first if its policy says so.
    ///
    /// Cancel-safe: a pull that nobody waits for any more is given up.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        sandbox: &PodSandboxConfig,
    ) -> Result<ImageRef, PullError> {
        let field_path = container_field_path(pod, &container.name);
        let result = self.ensure_image(pod, container, sandbox, &field_path).await;
        if let Err(error) = &result {
            let message = format!("Error: {}", error.reason);
            self.events.pod(pod, Some(&field_path), EventType::Warning, "Failed", message);
        }
        result
    }

    async fn ensure_image(
        &self,
        pod: &Pod,
        container: &Container,
        sandbox: &PodSandboxConfig,
        field_path: &str,
    ) -> Result<ImageRef, PullError> {
        let requested = container.image.as_str();
        let (field_path, spec, keyring) = (field_path.to_owned(), ImageSpec::default(), OnceLock::new());
        let mut wish = Wish { pod, field_path, requested, spec, keyring };
        let (image, repository) = with_default_tag(requested).map_err(|error| {
            let message = format!("Failed to apply default image tag {requested:?}: {error}");
            self.tell(&wish, EventType::Warning, "InspectFailed", message.clone());
            PullError { reason: "InvalidImageName", message, retry_at: None }
        })?;
        wish.spec = ImageSpec {
            image,
            annotations: pod.metadata.annotations.clone().into_iter().collect(),
            user_specified_image: requested.to_owned(),
            // A RuntimeClass names the handler; without a cluster there is only the default one.
            ..ImageSpec::default()
        };
        if container.image_pull_policy != "Always" {
            let present = self.status(&wish.spec).await.map_err(|status| {
                let message = format!("Failed to inspect image {requested:?}: {}", rpc_text(&status));
                self.tell(&wish, EventType::Warning, "InspectFailed", message.clone());
                PullError { reason: "ImageInspectError", message, retry_at: None }
            })?;
            if let Some(image) = present
                && self.may_use(&wish, &repository, &image).await
            {
                let text = format!(
                    "Container image {requested:?} already present on machine and can be accessed by the pod"
                );
                self.tell(&wish, EventType::Normal, "Pulled", text);
                return Ok(ImageRef::from(&image));
            }
            // Also of an image that is there but not for this pod: that it is there is not told.
            if container.image_pull_policy == "Never" {
                let message =
                    format!("Container image {requested:?} is not present with pull policy of Never");
                self.tell(&wish, EventType::Warning, "ErrImageNeverPull", message.clone());
                return Err(PullError { reason: "ErrImageNeverPull", message, retry_at: None });
            }
        }
        self.pull(&wish, &repository, sandbox).await
    }

    async fn pull(
        &self,
        wish: &Wish<'_>,
        repository: &str,
        sandbox: &PodSandboxConfig,
    ) -> Result<ImageRef, PullError> {
        let key = (wish.pod.metadata.uid.clone(), wish.requested.to_owned());
        self.check_backoff(wish, &key)?;
        let mut credentials = match self.keyring(wish) {
            Ok(keyring) => keyring.lookup(repository),
            // Not even asked, yet it will not be better at once either.
            Err(error) => return Err(self.failed(wish, key, error.clone(), "ErrImagePull")),
        };
        credentials.extend(self.node_keyring().await.lookup(repository));
        let of_plugins = self.plugins.keyring(&wish.spec.image, repository, &self.clock).await;
        credentials.extend(of_plugins.lookup(repository));
        self.tell(wish, EventType::Normal, "Pulling", format!("Pulling image {:?}", wish.requested));
        let start = tokio::time::Instant::now();
        let pull = self.join(wish, credentials, sandbox);
        let outcome = pull.await;
        match &*outcome {
            Ok(pulled) => {
                let text = format!(
                    "Successfully pulled image {:?} in {} ({} including waiting). Image size: {} bytes.",
                    wish.requested,
                    go_duration(pulled.took),
                    go_duration(start.elapsed()),
                    pulled.image.size
                );
                self.tell(wish, EventType::Normal, "Pulled", text);
                Ok(ImageRef::from(&pulled.image))
            }
            Err(errors) => {
                let text = joined(errors);
                let event = format!("Failed to pull image {:?}: {text}", wish.requested);
                self.tell(wish, EventType::Warning, "Failed", event);
                let (reason, message) = criterion(wish.requested, &text);
                Err(self.failed(wish, key, message, reason))
            }
        }
    }

    /// Refuses a pull that failed a moment ago.
    fn check_backoff(&self, wish: &Wish<'_>, key: &BackoffKey) -> Result<(), PullError> {
        let now = self.clock.now().boot;
        let (until, previous) = {
            let mut state = self.state();
            match state.failures.get(key) {
                Some(failure) if now < failure.until => (failure.until, failure.text.clone()),
                _ => {
                    state.failures.remove(key);
                    return Ok(());
                }
            }
        };
        let message = format!("Back-off pulling image {:?}", wish.requested);
        self.tell(wish, EventType::Normal, "BackOff", message.clone());
        let message = format!("{message}: {previous}");
        Err(PullError { reason: "ImagePullBackOff", message, retry_at: Some(until) })
    }

    /// Counts a failed pull.
    fn failed(&self, wish: &Wish<'_>, key: BackoffKey, message: String, reason: &'static str) -> PullError {
        let now = self.clock.now().boot;
        let mut state = self.state();
        // What failed so long ago that its back-off starts afresh need not be kept.
        let horizon = BackoffPolicy::CRASH_LOOP.reset_after;
        state.failures.retain(|_, failure| now < failure.until + horizon);
        let State { backoff, failures, .. } = &mut *state;
        backoff.retain(|key| failures.contains_key(key) || *key.0 == *wish.pod.metadata.uid);
        let until = state.backoff.fail(key.clone(), now, 0);
        state.failures.insert(key, Failure { until, text: format!("{reason}: {message}") });
        PullError { reason, message, retry_at: Some(until) }
    }

    /// The pull for this wish: one that runs already, if there is one alike.
    fn join(
        &self,
        wish: &Wish<'_>,
        credentials: Vec<Credential>,
        sandbox: &PodSandboxConfig,
    ) -> Shared<Pull> {
        let (image, handler) = (wish.requested.to_owned(), wish.spec.runtime_handler.clone());
        let key = PullKey { image, handler, credentials };
        let mut state = self.state();
        // A pull that is over counts no more, however many still hold its result.
        state.running.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        if let Some(pull) = state.running.get(&key).and_then(WeakShared::upgrade) {
            return pull;
        }
        let pull = self.start(&key, wish.spec.clone(), sandbox.clone()).shared();
        if let Some(weak) = pull.downgrade() {
            state.running.insert(key, weak);
        }
        pull
    }

    /// Asks with each credential in turn, or once without any.
    fn start(&self, key: &PullKey, spec: ImageSpec, sandbox: PodSandboxConfig) -> Pull {
        let (images, slots) = (self.images.clone(), self.slots.clone());
        let (records, clock) = (self.records.clone(), self.clock.clone());
        let (pull_timeout, call_timeout) = (self.config.pull_timeout, self.config.call_timeout);
        let (requested, credentials) = (key.image.clone(), key.credentials.iter().cloned());
        let attempts: Vec<Option<Credential>> =
            if credentials.len() == 0 { vec![None] } else { credentials.map(Some).collect() };
        async move {
            let _slot = slots.acquire().await.expect("invariant: the semaphore is never closed");
            let intent = match &records {
                Some(records) => match records.begin(&requested).await {
                    Ok(intent) => Some(intent),
                    Err(error) => {
                        return Arc::new(Err(vec![Status::unknown(format!(
                            "Failed to record image pull intent for container image {requested:?}: {error}"
                        ))]));
                    }
                },
                None => None,
            };
            let before = match intent {
                Some(_) => {
                    image_status(&*images, call_timeout, &spec).await.ok().flatten().map(|image| image.id)
                }
                None => None,
            };
            let mut attempt =
                Attempt { intent, images: images.clone(), spec: spec.clone(), call_timeout, clock, before };
            let start = tokio::time::Instant::now();
            let mut errors = Vec::new();
            for credential in attempts {
                let request = PullImageRequest {
                    image: Some(spec.clone()),
                    auth: credential.as_ref().map(Credential::auth),
                    sandbox_config: Some(sandbox.clone()),
                };
                match within(pull_timeout, "PullImage", images.pull_image(request)).await {
                    Ok(response) => {
                        let took = start.elapsed();
                        let access = Access::by(credential.and_then(|credential| credential.secret));
                        attempt.pulled(&response.image_ref, access).await;
                        let image = describe(&*images, call_timeout, &spec, response.image_ref).await;
                        return Arc::new(Ok(Pulled { image, took }));
                    }
                    Err(status) => errors.push(status),
                }
            }
            attempt.failed(&errors).await;
            Arc::new(Err(errors))
        }
        .boxed()
    }

    async fn status(&self, spec: &ImageSpec) -> Result<Option<Image>, Status> {
        image_status(&*self.images, self.config.call_timeout, spec).await
    }

    /// The credentials of the pod's `imagePullSecrets`, looked up once.
    fn keyring<'a>(&self, wish: &'a Wish<'_>) -> Result<&'a Keyring, &'a String> {
        wish.keyring.get_or_init(|| self.look_up_secrets(wish.pod)).as_ref()
    }

    /// Secrets that are not there are told and left out.
    fn look_up_secrets(&self, pod: &Pod) -> Result<Keyring, String> {
        let mut keyring = Keyring::default();
        let mut missing = Vec::new();
        for reference in pod.spec.image_pull_secrets.iter().filter(|reference| !reference.name.is_empty()) {
            match self.objects.secret(&pod.metadata.namespace, &reference.name) {
                Some(secret) => {
                    let name = (pod.metadata.namespace.as_str(), reference.name.as_str());
                    keyring
                        .add_secret(name, &secret)
                        .map_err(|error| format!("secret {}/{}: {error}", name.0, name.1))?;
                }
                None => missing.push(reference.name.as_str()),
            }
        }
        if !missing.is_empty() {
            let text = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.events.pod(pod, None, EventType::Warning, "FailedToRetrieveImagePullSecret", text);
        }
        Ok(keyring)
    }

    /// The credentials of the node, as its file has them now.
    async fn node_keyring(&self) -> Keyring {
        for path in &self.config.docker_configs {
            let mut keyring = Keyring::default();
            let added = match tokio::fs::read(path).await {
                Ok(json) => keyring.add_docker_config(&json).map_err(|error| error.to_string()),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => Err(error.to_string()),
            };
            match added {
                Ok(()) => return keyring,
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "the node's credentials of registries are left out");
                }
            }
        }
        Keyring::default()
    }

    fn tell(&self, wish: &Wish<'_>, r#type: EventType, reason: &str, message: String) {
        self.events.pod(wish.pod, Some(&wish.field_path), r#type, reason, message);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one statement, so a panic under the lock leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for ImagePuller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImagePuller").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A call that ends in time.
async fn within<T>(
    limit: Duration,
    call: &str,
    future: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| {
        Err(Status::new(Code::DeadlineExceeded, format!("{call} did not end within {}", go_duration(limit))))
    })
}

async fn image_status(
    images: &dyn ImageService,
    limit: Duration,
    spec: &ImageSpec,
) -> Result<Option<Image>, Status> {
    let request = ImageStatusRequest { image: Some(spec.clone()), verbose: false };
    Ok(within(limit, "ImageStatus", images.image_status(request)).await?.image)
}

/// What was pulled. Its size and user are told if the runtime tells them; the pull succeeded anyway.
async fn describe(images: &dyn ImageService, limit: Duration, spec: &ImageSpec, id: String) -> Image {
    let by_id = ImageSpec { image: id.clone(), ..spec.clone() };
    match image_status(images, limit, &by_id).await {
        Ok(Some(image)) => image,
        _ => Image { id, ..Image::default() },
    }
}

/// The name with its tag or digest, and its registry and repository.
fn with_default_tag(image: &str) -> Result<(String, String), String> {
    let name = parse_image_name(image).map_err(|e| format!("couldn't parse image name {image:?}: {e}"))?;
    let full = match (&name.tag, &name.digest) {
        // Not the full form: which registry a short name means is the runtime's affair.
        (Some(tag), None) if !image.ends_with(&format!(":{tag}")) => format!("{image}:{tag}"),
        _ => image.to_owned(),
    };
    Ok((full, name.repository()))
}

#[cfg(test)]
mod tests;
