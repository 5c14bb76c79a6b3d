//! The puller over a fake runtime: reasons, messages, events and calls to the letter.

use coracle_cri::testing::{FakeRuntime, Fault, Method};

use super::*;
use crate::api::{ByteString, LocalObjectReference, Secret};
use crate::source::{ObjectSet, Objects};

struct Fixture {
    runtime: FakeRuntime,
    objects: Arc<ObjectSet>,
    events: EventRecorder,
    puller: Arc<ImagePuller>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(ImagePullConfig::default())
    }

    fn with(config: ImagePullConfig) -> Self {
        let runtime = FakeRuntime::new();
        let objects = Arc::new(ObjectSet::default());
        let (clock, _) = Clock::following_tokio(1_700_000_000);
        let events = EventRecorder::new(clock.clone(), 100);
        let puller =
            ImagePuller::new(Arc::new(runtime.clone()), objects.clone(), events.clone(), clock, config);
        Self { runtime, objects, events, puller: Arc::new(puller) }
    }

    /// A node that records its pulls in a folder.
    fn recording(folder: &std::path::Path) -> Self {
        Self::with(ImagePullConfig { records: Some(folder.to_owned()), ..ImagePullConfig::default() })
    }

    /// The agent's next run, on the same runtime.
    async fn restarted(&self, verification: VerificationPolicy) -> ImagePuller {
        let config = ImagePullConfig { verification, ..self.puller.config.clone() };
        let (images, objects) = (Arc::new(self.runtime.clone()), self.objects.clone());
        let puller =
            ImagePuller::new(images, objects, self.events.clone(), self.puller.clock.clone(), config);
        puller.settle().await;
        puller
    }

    async fn ensure(&self, image: &str, policy: &str) -> Result<ImageRef, PullError> {
        let pod = pod("web", image, policy);
        self.puller.ensure(&pod, &pod.spec.containers[0], &PodSandboxConfig::default()).await
    }

    fn events(&self) -> Vec<String> {
        let snapshot = self.events.snapshot();
        snapshot.iter().map(|e| format!("{:?} {} {}", e.r#type, e.reason, e.message)).collect()
    }

    fn add_secret(&self, name: &str, kind: &str, key: &str, data: &str) {
        let mut secret = Secret { r#type: kind.to_owned(), ..Secret::default() };
        secret.data.insert(key.to_owned(), ByteString(data.as_bytes().to_vec()));
        let mut objects = Objects::clone(&self.objects.snapshot());
        objects.secrets.insert(("default".to_owned(), name.to_owned()), Arc::new(secret));
        self.objects.replace(objects);
    }
}

fn pod(name: &str, image: &str, policy: &str) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = name.to_owned();
    pod.metadata.namespace = "default".to_owned();
    pod.metadata.uid = Arc::from(format!("uid-{name}"));
    pod.spec.containers = vec![Container {
        name: "c".to_owned(),
        image: image.to_owned(),
        image_pull_policy: policy.to_owned(),
        ..Container::default()
    }];
    pod
}

#[tokio::test(start_paused = true)]
async fn a_present_image_is_used_as_the_policy_says() {
    let fixture = Fixture::new();
    let id = fixture.runtime.add_image("busybox");
    for policy in ["IfNotPresent", "Never"] {
        assert_eq!(fixture.ensure("busybox", policy).await.unwrap().id, id);
    }
    assert!(fixture.runtime.pulls().is_empty());
    let present =
        "Normal Pulled Container image \"busybox\" already present on machine and can be accessed by the pod";
    assert_eq!(fixture.events(), [present]);
    assert_eq!(fixture.events.snapshot()[0].field_path, "spec.containers{c}");
    assert_eq!(fixture.ensure("busybox", "Always").await.unwrap().id, id);
    assert_eq!(fixture.runtime.pulls()[0].image, "busybox:latest");
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_is_pulled_and_told() {
    let fixture = Fixture::new();
    fixture.runtime.inject(Fault::delay(Method::PullImage, Duration::from_millis(1250)));
    let image = fixture.ensure("busybox:1.37", "IfNotPresent").await.unwrap();
    assert_eq!(image.id, fixture.runtime.images()[0].id);
    assert_eq!(
        fixture.events(),
        [
            "Normal Pulling Pulling image \"busybox:1.37\"",
            "Normal Pulled Successfully pulled image \"busybox:1.37\" in 1.25s (1.25s including waiting). Image size: \
             1048576 bytes.",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_pulled_says_why() {
    let fixture = Fixture::new();
    let refused = fixture.ensure("busybox", "Never").await.unwrap_err();
    assert_eq!(refused.reason, "ErrImageNeverPull");
    assert_eq!(refused.message, "Container image \"busybox\" is not present with pull policy of Never");
    let invalid = fixture.ensure("busy box", "IfNotPresent").await.unwrap_err();
    assert_eq!(invalid.reason, "InvalidImageName");
    assert_eq!(
        invalid.message,
        "Failed to apply default image tag \"busy box\": couldn't parse image name \"busy box\": invalid reference format"
    );
    fixture.runtime.fail_next(Method::ImageStatus, Status::unavailable("gone"));
    let blind = fixture.ensure("busybox", "IfNotPresent").await.unwrap_err();
    assert_eq!(blind.reason, "ImageInspectError");
    assert_eq!(
        blind.message,
        "Failed to inspect image \"busybox\": rpc error: code = Unavailable desc = gone"
    );
    assert_eq!(
        fixture.events(),
        [
            "Warning ErrImageNeverPull Container image \"busybox\" is not present with pull policy of Never",
            "Warning Failed Error: ErrImageNeverPull",
            &format!("Warning InspectFailed {}", invalid.message),
            "Warning Failed Error: InvalidImageName",
            &format!("Warning InspectFailed {}", blind.message),
            "Warning Failed Error: ImageInspectError",
        ]
    );
    fixture.runtime.refuse_pull("a", Status::unknown("RegistryUnavailable: no route to host"));
    let unavailable = fixture.ensure("a", "Always").await.unwrap_err();
    assert_eq!(unavailable.reason, "RegistryUnavailable");
    assert_eq!(
        unavailable.message,
        "image pull failed for a because the registry is unavailable: no route to host"
    );
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_from_ten_seconds_to_five_minutes() {
    let fixture = Fixture::new();
    fixture.runtime.refuse_pull("busybox", Status::not_found("no such manifest"));
    let mut delays = Vec::new();
    for _ in 0..7 {
        let now = fixture.puller.clock.now().boot;
        let failed = fixture.ensure("busybox", "Always").await.unwrap_err();
        assert_eq!(failed.reason, "ErrImagePull");
        assert_eq!(failed.message, "rpc error: code = NotFound desc = no such manifest");
        let until = failed.retry_at.unwrap();
        delays.push((until - now).as_secs());
        let waiting = fixture.ensure("busybox", "Always").await.unwrap_err();
        assert_eq!((waiting.reason, waiting.retry_at), ("ImagePullBackOff", Some(until)));
        assert_eq!(
            waiting.message,
            "Back-off pulling image \"busybox\": ErrImagePull: rpc error: code = NotFound desc = no such manifest"
        );
        tokio::time::advance(until - now).await;
    }
    assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(fixture.runtime.pulls().len(), 7, "nothing is asked while backing off");
    assert_eq!(
        fixture.events(),
        [
            "Normal Pulling Pulling image \"busybox\"",
            "Warning Failed Failed to pull image \"busybox\": rpc error: code = NotFound desc = no such manifest",
            "Warning Failed Error: ErrImagePull",
            "Normal BackOff Back-off pulling image \"busybox\"",
            "Warning Failed Error: ImagePullBackOff",
        ]
    );
    tokio::time::advance(Duration::from_secs(601)).await;
    let now = fixture.puller.clock.now().boot;
    let fresh = fixture.ensure("busybox", "Always").await.unwrap_err();
    assert_eq!(fresh.retry_at.unwrap() - now, Duration::from_secs(10));
    // Another pod of the same image has not failed yet.
    let other = pod("other", "busybox", "Always");
    let sandbox = PodSandboxConfig::default();
    let failed = fixture.puller.ensure(&other, &other.spec.containers[0], &sandbox).await.unwrap_err();
    assert_eq!(failed.reason, "ErrImagePull");
}

#[tokio::test(start_paused = true)]
async fn the_nodes_own_credentials_come_after_those_of_the_pod() {
    let dir = tempfile::tempdir().unwrap();
    let (missing, file) = (dir.path().join("missing.json"), dir.path().join("config.json"));
    let docker_configs = vec![missing, file.clone(), dir.path().join("never-read.json")];
    let fixture = Fixture::with(ImagePullConfig { docker_configs, ..ImagePullConfig::default() });
    fixture.runtime.require_credentials("r.x/app", "node", "pass");
    let entry =
        |user: &str| format!(r#"{{"auths": {{"r.x": {{"username": "{user}", "password": "pass"}}}}}}"#);
    assert_eq!(fixture.ensure("r.x/app", "Always").await.unwrap_err().reason, "ErrImagePull");
    std::fs::write(&file, entry("node")).unwrap();
    fixture.add_secret("one", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &entry("pod"));
    let mut pod = pod("other", "r.x/app", "Always");
    pod.spec.image_pull_secrets = vec![LocalObjectReference { name: "one".into() }];
    let sandbox = PodSandboxConfig::default();
    fixture.puller.ensure(&pod, &pod.spec.containers[0], &sandbox).await.unwrap();
    let pulls = fixture.runtime.pulls();
    let users: Vec<_> = pulls.iter().filter_map(|pull| Some(pull.auth.as_ref()?.username.clone())).collect();
    assert_eq!(users, ["pod", "node"]);
}

#[tokio::test(start_paused = true)]
async fn credentials_are_tried_in_turn() {
    let fixture = Fixture::new();
    fixture.runtime.require_credentials("r.x/app", "right", "pass");
    let entry =
        |user: &str| format!(r#"{{"auths": {{"r.x": {{"username": "{user}", "password": "pass"}}}}}}"#);
    fixture.add_secret("one", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &entry("wrong"));
    fixture.add_secret("two", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &entry("right"));
    let mut pod = pod("web", "r.x/app", "Always");
    let names = ["one", "gone", "two"];
    pod.spec.image_pull_secrets = names.map(|name| LocalObjectReference { name: name.into() }).to_vec();
    let sandbox = PodSandboxConfig::default();
    fixture.puller.ensure(&pod, &pod.spec.containers[0], &sandbox).await.unwrap();
    let users: Vec<_> =
        fixture.runtime.pulls().iter().map(|pull| pull.auth.as_ref().unwrap().username.clone()).collect();
    assert_eq!(users, ["wrong", "right"]);
    assert_eq!(
        fixture.events()[0],
        "Warning FailedToRetrieveImagePullSecret Unable to retrieve some image pull secrets (gone); attempting to pull the \
         image may not succeed."
    );
    fixture.add_secret("one", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", "{");
    let broken = fixture.puller.ensure(&pod, &pod.spec.containers[0], &sandbox).await.unwrap_err();
    assert_eq!(broken.reason, "ErrImagePull");
    assert_eq!(broken.message, "secret default/one: .dockerconfigjson is not valid JSON (line 1, column 1)");
}

#[tokio::test(start_paused = true)]
async fn alike_pulls_are_one_and_others_are_bounded() {
    let config =
        ImagePullConfig { max_parallel: NonZeroUsize::new(2).unwrap(), ..ImagePullConfig::default() };
    let fixture = Fixture::with(config);
    fixture.runtime.inject(Fault::hang(Method::PullImage));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let puller = fixture.puller.clone();
        tasks.spawn(async move {
            // Four images, each wanted by two pods.
            let pod = pod(&format!("web-{n}"), &format!("image-{}", n % 4), "Always");
            puller.ensure(&pod, &pod.spec.containers[0], &PodSandboxConfig::default()).await
        });
    }
    let calls = || fixture.runtime.calls().iter().filter(|call| call.method == Method::PullImage).count();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(calls(), 2, "two at a time");
    fixture.runtime.clear_faults();
    fixture.runtime.release();
    while let Some(result) = tasks.join_next().await {
        result.unwrap().unwrap();
    }
    assert_eq!(calls(), 4, "each image once");
    let pulled: Vec<_> = fixture.events().into_iter().filter(|e| e.starts_with("Normal Pulled")).collect();
    assert_eq!(pulled.len(), 8, "every pod is told");
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_nobody_waits_for_is_given_up_and_one_that_never_ends_fails() {
    let fixture = Fixture::new();
    fixture.runtime.inject(Fault::hang(Method::PullImage));
    let first = fixture.ensure("busybox", "Always");
    assert!(tokio::time::timeout(Duration::from_secs(1), first).await.is_err());
    assert_eq!(fixture.puller.slots.available_permits(), 4, "the slot is free again");
    let second = fixture.ensure("busybox", "Always").await.unwrap_err();
    assert_eq!(
        second.message,
        "rpc error: code = DeadlineExceeded desc = PullImage did not end within 1h0m0s"
    );
}

fn pod_with_secret(name: &str, image: &str, secret: &str) -> Pod {
    let mut pod = pod(name, image, "IfNotPresent");
    pod.spec.image_pull_secrets = vec![LocalObjectReference { name: secret.to_owned() }];
    pod
}

async fn ensure(puller: &ImagePuller, pod: &Pod) -> Result<ImageRef, PullError> {
    puller.ensure(pod, &pod.spec.containers[0], &PodSandboxConfig::default()).await
}

/// A docker config for the registry `r.x`.
fn login(user: &str, password: &str) -> String {
    format!(r#"{{"auths": {{"r.x": {{"username": "{user}", "password": "{password}"}}}}}}"#)
}

#[tokio::test(start_paused = true)]
async fn a_present_image_is_only_for_who_has_its_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::recording(dir.path());
    fixture.runtime.require_credentials("r.x/app", "u", "p");
    let add = |name: &str, data: &str| {
        fixture.add_secret(name, "kubernetes.io/dockerconfigjson", ".dockerconfigjson", data);
    };
    add("good", &login("u", "p"));
    let owner = pod_with_secret("owner", "r.x/app", "good");
    ensure(&fixture.puller, &owner).await.unwrap();
    ensure(&fixture.puller, &owner).await.unwrap();
    assert_eq!(fixture.runtime.pulls().len(), 1);

    // Who has no credentials has to ask the registry, and backs off when it says no.
    let stranger = pod("stranger", "r.x/app", "IfNotPresent");
    let refused = ensure(&fixture.puller, &stranger).await.unwrap_err();
    assert_eq!(refused.reason, "ErrImagePull");
    assert_eq!(fixture.runtime.pulls().len(), 2);
    assert_eq!(ensure(&fixture.puller, &stranger).await.unwrap_err().reason, "ImagePullBackOff");
    let never = pod("never", "r.x/app", "Never");
    let refused = ensure(&fixture.puller, &never).await.unwrap_err();
    assert_eq!(refused.reason, "ErrImageNeverPull");
    assert_eq!(refused.message, "Container image \"r.x/app\" is not present with pull policy of Never");
    assert!(fixture.events().iter().any(|event| *event == format!("Warning ErrImageNeverPull {refused}")));
    assert_eq!(fixture.runtime.pulls().len(), 2);

    // The same login by another Secret, and the Secret with a new password, need no registry.
    fixture.runtime.refuse_pull("r.x/app", Status::unavailable("offline"));
    add("copy", &login("u", "p"));
    ensure(&fixture.puller, &pod_with_secret("copy", "r.x/app", "copy")).await.unwrap();
    add("good", &login("u", "new"));
    ensure(&fixture.puller, &owner).await.unwrap();
    add("later", &login("u", "new"));
    ensure(&fixture.puller, &pod_with_secret("later", "r.x/app", "later")).await.unwrap();
    add("bad", &login("x", "y"));
    ensure(&fixture.puller, &pod_with_secret("bad", "r.x/app", "bad")).await.unwrap_err();

    // All of that holds after a reboot with no network.
    let next = fixture.restarted(VerificationPolicy::default()).await;
    for secret in ["good", "copy", "later"] {
        ensure(&next, &pod_with_secret("rebooted", "r.x/app", secret)).await.unwrap();
    }
    ensure(&next, &stranger).await.unwrap_err();
    let lax = fixture.restarted(VerificationPolicy::NeverVerify).await;
    ensure(&lax, &stranger).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn images_without_credentials_and_preloaded_ones_are_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::recording(dir.path());
    fixture.runtime.add_image("r.x/loaded");
    fixture.ensure("r.x/loaded", "Never").await.unwrap();
    fixture.ensure("r.x/open", "IfNotPresent").await.unwrap();
    let other = pod("other", "r.x/open", "Never");
    ensure(&fixture.puller, &other).await.unwrap();
    assert_eq!(fixture.runtime.pulls().len(), 1);
    let strict = fixture.restarted(VerificationPolicy::AlwaysVerify).await;
    ensure(&strict, &other).await.unwrap();
    ensure(&strict, &pod("web", "r.x/loaded", "Never")).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_was_given_up_and_comes_after_all_leaves_no_preloaded_image() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::recording(dir.path());
    fixture.runtime.hang(Method::PullImage);
    for image in ["r.x/came", "r.x/came-not"] {
        let given_up = fixture.ensure(image, "IfNotPresent");
        tokio::time::timeout(Duration::from_secs(1), given_up).await.unwrap_err();
    }
    // The runtime had fetched it already.
    fixture.runtime.clear_faults();
    fixture.runtime.add_image("r.x/came");
    fixture.ensure("r.x/came", "Never").await.unwrap_err();
    let records = fixture.puller.records().unwrap();
    while !records.unfinished().is_empty() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    fixture.ensure("r.x/came", "Never").await.unwrap_err();
    fixture.runtime.add_image("r.x/came-not");
    fixture.ensure("r.x/came-not", "Never").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_archives_image_is_for_all_whatever_pulls_begin() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::recording(dir.path());
    let (id, repo_tags) = ("sha256:a".to_owned(), vec!["r.x/app:latest".to_owned()]);
    fixture.runtime.put_image(Image { id, repo_tags, pinned: true, ..Image::default() });
    let records = fixture.puller.records().unwrap();
    std::mem::forget(records.begin("r.x/app").await.unwrap());
    fixture.ensure("r.x/app", "Never").await.unwrap();
    let next = fixture.restarted(VerificationPolicy::default()).await;
    ensure(&next, &pod("web", "r.x/app", "Never")).await.unwrap();
    assert!(records.unfinished().is_empty() && records.recorded().names.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_a_crash_cut_off_leaves_no_preloaded_image() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::recording(dir.path());
    let records = fixture.puller.records().unwrap();
    for image in ["r.x/came", "r.x/came-not"] {
        std::mem::forget(records.begin(image).await.unwrap());
    }
    fixture.runtime.add_image("r.x/came");
    let next = fixture.restarted(VerificationPolicy::default()).await;
    assert!(records.unfinished().is_empty());
    ensure(&next, &pod("web", "r.x/came", "Never")).await.unwrap_err();
    fixture.runtime.add_image("r.x/came-not");
    ensure(&next, &pod("web", "r.x/came-not", "Never")).await.unwrap();
    // The registry's word settles it.
    ensure(&next, &pod("web", "r.x/came", "IfNotPresent")).await.unwrap();
    ensure(&next, &pod("web", "r.x/came", "Never")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_pulled_that_could_not_be_recorded() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pulling"), "not a folder").unwrap();
    let fixture = Fixture::recording(dir.path());
    let failed = fixture.ensure("r.x/app", "IfNotPresent").await.unwrap_err();
    assert_eq!(failed.reason, "ErrImagePull");
    let words = "Failed to record image pull intent for container image \"r.x/app\": ";
    assert!(failed.message.starts_with(words), "{failed}");
    assert!(fixture.runtime.pulls().is_empty());
}
