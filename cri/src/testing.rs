//! A stateful CRI runtime in memory, for testing whatever drives one.
//!
//! [`FakeRuntime`] implements both services and behaves like containerd 2 where a kubelet can tell: states,
//! times, error codes and texts, name reservations, idempotent stop and remove, events. Tests hold a clone
//! of it, say how containers and commands behave, make calls fail or hang, and read back what happened.
//! Time is tokio's, so a paused clock decides it. One lock guards the state and is never held across a
//! wait; the only tasks are exits to come, owned by their container.

mod calls;
mod fault;
mod image_service;
mod images;
mod requests;
mod runtime_service;
mod script;
mod state;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tonic::Status;

pub use calls::{Call, Method};
pub use fault::Fault;
pub use images::Pull;
pub use script::{ExecScript, Exit, Script};
pub use state::Exec;

use crate::v1::*;
use fault::Kind;
use images::Images;
use script::Queues;
use state::{Clock, OwnedTask, State};

/// A CRI runtime in memory. Clones share one state.
///
/// ```
/// use coracle_cri::testing::{FakeRuntime, Method, Script};
/// use coracle_cri::{RuntimeService, Status, v1::*};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Status> {
/// let fake = FakeRuntime::new();
/// fake.add_image("busybox");
/// fake.script_container("job", [Script::exits(3)]);
/// fake.fail_next(Method::StartContainer, Status::unavailable("no shim"));
///
/// let metadata = PodSandboxMetadata { name: "pod".into(), ..Default::default() };
/// let sandbox_config = PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
/// let request = RunPodSandboxRequest { config: Some(sandbox_config.clone()), ..Default::default() };
/// let pod_sandbox_id = fake.run_pod_sandbox(request).await?.pod_sandbox_id;
/// let config = ContainerConfig {
///     metadata: Some(ContainerMetadata { name: "job".into(), attempt: 0 }),
///     image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
///     ..Default::default()
/// };
/// let request =
///     CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: Some(sandbox_config) };
/// let container_id = fake.create_container(request).await?.container_id;
///
/// let start = StartContainerRequest { container_id };
/// assert!(fake.start_container(start.clone()).await.is_err());
/// fake.start_container(start).await?;
/// assert_eq!(fake.container("job").map(|c| c.status.exit_code), Some(3));
/// assert_eq!(fake.changes().last().map(|c| c.to_string()).as_deref(), Some("StartContainer job"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FakeRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Bumped whenever a call arrives or state changes, for waiting tests.
    changed: watch::Sender<u64>,
    /// Bumped to let hanging calls go on.
    released: watch::Sender<u64>,
}

/// A sandbox as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeSandbox {
    /// What it was made from.
    pub config: PodSandboxConfig,
    /// Its CRI status.
    pub status: PodSandboxStatus,
}

/// A container as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeContainer {
    /// The pod's name.
    pub pod: String,
    /// ID of its sandbox.
    pub sandbox_id: String,
    /// What it was made from.
    pub config: ContainerConfig,
    /// Its CRI status, with the full log path.
    pub status: ContainerStatus,
    /// How often its log was opened anew.
    pub log_reopened: u32,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// An empty runtime, ready, whose clock starts at the host's time. Any image can be pulled.
    pub fn new() -> Self {
        Self::at(SystemTime::now())
    }

    /// An empty runtime whose clock starts at `epoch` now and advances with tokio's.
    pub fn at(epoch: SystemTime) -> Self {
        let ready =
            |kind: &str| RuntimeCondition { r#type: kind.to_owned(), status: true, ..Default::default() };
        let state = State {
            clock: Clock::starting_at(epoch),
            serial: 0,
            last_created: 0,
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: Images::default(),
            calls: Vec::new(),
            execs: Vec::new(),
            faults: Vec::new(),
            available: true,
            subscribers: Vec::new(),
            scripts: Queues::new(),
            exec_scripts: Queues::new(),
            pod_ips: HashMap::new(),
            stats: HashMap::new(),
            fs_info: stats::empty_file_systems(),
            conditions: vec![ready("RuntimeReady"), ready("NetworkReady")],
            cgroup_driver: CgroupDriver::Cgroupfs,
            pod_cidr: String::new(),
            creates_log_files: false,
            metric_descriptors: Vec::new(),
            metrics: Vec::new(),
            streaming_server: "http://fake.invalid".to_owned(),
        };
        let inner = Inner {
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            released: watch::Sender::new(0),
        };
        FakeRuntime { inner: Arc::new(inner) }
    }

    // Time and availability.

    /// The fake's wall time.
    pub fn now(&self) -> SystemTime {
        self.lock().clock.now()
    }

    /// Sets the wall time; it goes on from there with tokio's clock.
    pub fn set_time(&self, now: SystemTime) {
        self.lock().clock = Clock::starting_at(now);
    }

    /// `false`: the runtime's process is gone. Event streams end, hanging and new calls answer `Unavailable`,
    /// containers live on. `true`: it is back.
    pub fn set_available(&self, available: bool) {
        {
            let mut state = self.lock();
            state.available = available;
            if !available {
                state.subscribers.clear();
            }
        }
        self.release();
    }

    // Faults.

    /// Adds a fault. Several may apply to one call; they apply in the order of injection.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// The next call of `method` fails without effect.
    pub fn fail_next(&self, method: Method, status: Status) {
        self.inject(Fault::fail(method, status).times(1));
    }

    /// Every call of `method` takes `delay` longer from now on.
    pub fn delay(&self, method: Method, delay: Duration) {
        self.inject(Fault::delay(method, delay));
    }

    /// Every call of `method` hangs from now on, until [`release`](Self::release) or its caller gives up.
    pub fn hang(&self, method: Method) {
        self.inject(Fault::hang(method));
    }

    /// Lets every hanging call go on, and ends the faults that made them hang.
    pub fn release(&self) {
        self.lock().faults.retain(|fault| !matches!(fault.kind, Kind::Hang));
        self.inner.released.send_modify(|count| *count += 1);
        self.note_change();
    }

    /// Ends all faults; calls that hang already go on hanging.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    // How containers and commands behave.

    /// How containers called `name` (or `pod/name`) behave: each new one takes the next script, the last stays.
    pub fn script_container(&self, name: &str, scripts: impl IntoIterator<Item = Script>) {
        self.lock().scripts.set(name, scripts);
    }

    /// How containers of an image behave that have no script by name.
    pub fn script_image(&self, image: &str, scripts: impl IntoIterator<Item = Script>) {
        self.lock().scripts.set(&images::normalize(image), scripts);
    }

    /// What commands run in containers called `name` (or `pod/name`) do: each takes the next script, the last
    /// stays. Without one, a command ends with 0 at once.
    pub fn script_exec(&self, name: &str, scripts: impl IntoIterator<Item = ExecScript>) {
        self.lock().exec_scripts.set(name, scripts);
    }

    /// Makes a running container end, found by ID, name or `pod/name` (the newest).
    ///
    /// # Panics
    ///
    /// When there is no such container, or it does not run: the test is wrong then.
    pub fn exit_container(&self, container: &str, exit: impl Into<Exit>) {
        let mut state = self.lock();
        let id = state.find_container(container).map(|container| container.id.clone());
        let ended = id.is_some_and(|id| state.finish(&id, exit.into()));
        drop(state);
        assert!(ended, "no running container {container:?} in {self:?}");
        self.note_change();
    }

    /// Makes a sandbox die with its containers (137), found by ID or pod name, as when its shim is killed.
    pub fn kill_sandbox(&self, sandbox: &str) {
        {
            let mut state = self.lock();
            if let Some(id) = state.find_sandbox(sandbox).map(|sandbox| sandbox.id.clone()) {
                state.end_sandbox(&id);
            }
        }
        self.note_change();
    }

    /// The addresses that a pod's next sandbox gets; without it they come from 10.244.0.0/16.
    pub fn set_pod_ips<T: Into<String>>(&self, pod: &str, ips: impl IntoIterator<Item = T>) {
        self.lock().pod_ips.insert(pod.to_owned(), ips.into_iter().map(Into::into).collect());
    }

    /// Whether starting a container and reopening its log creates the log file, as real runtimes do. Off.
    pub fn create_log_files(&self, create: bool) {
        self.lock().creates_log_files = create;
    }

    /// What the URLs of `Exec`, `Attach` and `PortForward` begin with, such as `http://127.0.0.1:1234`. The test
    /// serves them, at `/exec/ID`, `/attach/ID` (with `stdin=true`… and each `command=` in the query) and
    /// `/portforward/ID`.
    pub fn set_streaming_server(&self, url: &str) {
        self.lock().streaming_server = url.to_owned();
    }

    /// Sets a condition of `Status`, such as `NetworkReady`.
    pub fn set_condition(&self, kind: &str, status: bool, reason: &str, message: &str) {
        let mut state = self.lock();
        state.conditions.retain(|condition| condition.r#type != kind);
        state.conditions.push(RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }

    /// Sets the cgroup driver that `RuntimeConfig` tells; cgroupfs at first.
    pub fn set_cgroup_driver(&self, driver: CgroupDriver) {
        self.lock().cgroup_driver = driver;
    }

    // What happened.

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Every call so far that was to change something.
    pub fn changes(&self) -> Vec<Call> {
        self.lock().calls.iter().filter(|call| call.method.is_change()).cloned().collect()
    }

    /// How often `method` was called.
    pub fn count(&self, method: Method) -> usize {
        self.lock().calls.iter().filter(|call| call.method == method).count()
    }

    /// Forgets calls, commands and pulls so far.
    pub fn clear_calls(&self) {
        let mut state = self.lock();
        state.calls.clear();
        state.execs.clear();
        state.images.pulls.clear();
    }

    /// Every command that `ExecSync` ran.
    pub fn execs(&self) -> Vec<Exec> {
        self.lock().execs.clone()
    }

    /// The newest sandbox of an ID or pod name.
    pub fn sandbox(&self, sandbox: &str) -> Option<FakeSandbox> {
        self.lock().find_sandbox(sandbox).map(view_sandbox)
    }

    /// Every sandbox, oldest first.
    pub fn sandboxes(&self) -> Vec<FakeSandbox> {
        self.lock().sandboxes.values().map(view_sandbox).collect()
    }

    /// The newest container of an ID, a name or `pod/name`.
    pub fn container(&self, container: &str) -> Option<FakeContainer> {
        let state = self.lock();
        state.find_container(container).map(|container| view_container(&state, container))
    }

    /// Every container, oldest first.
    pub fn containers(&self) -> Vec<FakeContainer> {
        let state = self.lock();
        state.containers.values().map(|container| view_container(&state, container)).collect()
    }

    /// Waits until `predicate` holds, looking again after every call and change.
    ///
    /// # Panics
    ///
    /// When it does not hold after `deadline` of tokio's clock; the message shows calls and containers.
    pub async fn wait_until(&self, deadline: Duration, mut predicate: impl FnMut(&FakeRuntime) -> bool) {
        let mut changed = self.inner.changed.subscribe();
        let wait = async {
            while !predicate(self) {
                changed.borrow_and_update();
                if predicate(self) || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let met = tokio::time::timeout(deadline, wait).await.is_ok();
        assert!(met, "not reached within {deadline:?}: {self:#?}");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_change(&self) {
        self.inner.changed.send_modify(|count| *count += 1);
    }

    /// Logs a call and applies its faults. Returns the status to answer though the call takes effect.
    async fn arrive(&self, method: Method, subject: Subject<'_>) -> Result<Option<Status>, Status> {
        let (faults, mut released) = {
            let mut state = self.lock();
            let id = subject.id;
            let names = subject.names(&state);
            let name = names.first().cloned().unwrap_or_default();
            let at = state.clock.now();
            state.calls.push(Call { method, id: id.to_owned(), name, at });
            let mut known: Vec<&str> = names.iter().map(String::as_str).collect();
            known.push(id);
            let faults: Vec<Kind> = state.faults.iter_mut().filter_map(|f| f.take(method, &known)).collect();
            (faults, self.inner.released.subscribe())
        };
        self.note_change();
        let mut told = None;
        for fault in faults {
            match fault {
                Kind::Fail(status) => return Err(status),
                Kind::LoseResponse(status) => told = Some(status),
                Kind::Delay(delay) => tokio::time::sleep(delay).await,
                Kind::Hang => {
                    // The sender lives as long as `self`, so this ends only by a release.
                    let _ = released.changed().await;
                }
            }
        }
        if self.lock().available { Ok(told) } else { Err(unavailable()) }
    }

    /// A call that acts at once: `act` runs under the lock after the faults.
    async fn call<T>(
        &self,
        method: Method,
        subject: impl Into<Subject<'_>>,
        act: impl FnOnce(&mut State) -> Result<T, Status> + Send,
    ) -> Result<T, Status> {
        let told = self.arrive(method, subject.into()).await?;
        let result = act(&mut self.lock());
        self.note_change();
        told.map_or(result, Err)
    }

    /// Ends a container `after` a while, unless it ended or was removed by then.
    fn schedule_exit(&self, state: &mut State, id: &str, after: Duration, exit: Exit) {
        let (fake, target) = (Arc::downgrade(&self.inner), id.to_owned());
        let timer = OwnedTask::spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(inner) = fake.upgrade() {
                let fake = FakeRuntime { inner };
                fake.lock().finish(&target, exit);
                fake.note_change();
            }
        });
        if let Some(container) = state.containers.get_mut(id) {
            container.timer = Some(timer);
        }
    }
}

/// Calls, sandboxes and containers, for the message of a failed test.
impl std::fmt::Debug for FakeRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        let calls: Vec<String> = state.calls.iter().map(Call::to_string).collect();
        let sandboxes: Vec<String> =
            state.sandboxes.values().map(|s| format!("{} {}", s.pod(), s.state.as_str_name())).collect();
        let containers: Vec<String> = state
            .containers
            .values()
            .map(|c| format!("{} {} {}", c.qualified_name(), c.state.as_str_name(), c.exit.code))
            .collect();
        f.debug_struct("FakeRuntime")
            .field("calls", &calls)
            .field("sandboxes", &sandboxes)
            .field("containers", &containers)
            .finish()
    }
}

fn unavailable() -> Status {
    Status::unavailable("connection error: desc = \"transport: Error while dialing: connect: no such file\"")
}

/// What a call is about: an ID, and the name where the call is to make the thing.
#[derive(Clone, Copy)]
struct Subject<'a> {
    id: &'a str,
    name: Option<&'a str>,
}

impl<'a> From<&'a String> for Subject<'a> {
    fn from(id: &'a String) -> Self {
        Subject { id, name: None }
    }
}

impl<'a> From<&'a str> for Subject<'a> {
    fn from(id: &'a str) -> Self {
        Subject { id, name: None }
    }
}

impl Subject<'_> {
    /// What tests call it: the plain name first, then `pod/name` of a container.
    fn names(&self, state: &State) -> Vec<String> {
        let pod = state.sandboxes.get(self.id).map(|sandbox| sandbox.pod().to_owned());
        match (self.name, pod, state.containers.get(self.id)) {
            (Some(name), Some(pod), _) => vec![name.to_owned(), format!("{pod}/{name}")],
            (Some(name), None, _) => vec![name.to_owned()],
            (None, Some(pod), _) => vec![pod],
            (None, None, Some(container)) => vec![container.name().to_owned(), container.qualified_name()],
            (None, None, None) => vec![self.id.to_owned()],
        }
    }
}

fn view_sandbox(sandbox: &state::Sandbox) -> FakeSandbox {
    FakeSandbox { config: sandbox.config.clone(), status: sandbox.status() }
}

fn view_container(state: &State, container: &state::Container) -> FakeContainer {
    FakeContainer {
        pod: container.pod.clone(),
        sandbox_id: container.sandbox_id.clone(),
        config: container.config.clone(),
        status: state.container_status(container),
        log_reopened: container.log_reopened,
    }
}
