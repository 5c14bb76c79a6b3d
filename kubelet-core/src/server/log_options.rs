//! What a request for a container's log asks for, and which container instance it means.
//!
//! Pure. Follows the kubelet's decoding and validation of `PodLogOptions` and its `validateContainerLogStatus`
//! (1.36), messages included.

use super::route::parameters;
use crate::api::{ContainerStatus, PodStatus, Time};
use crate::container_log::LogStream;

/// `PodLogOptions`, as far as a kubelet looks at them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LogOptions {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail_lines: Option<u64>,
    pub(super) limit_bytes: Option<u64>,
    /// Nanoseconds since the Unix epoch.
    pub(super) since: Option<i128>,
    pub(super) stream: Option<LogStream>,
}

/// Why a query asks for nothing that there is: the status and what a kubelet answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) u16, pub(super) &'static str);

const UNDECODABLE: Refusal = Refusal(400, r#"{"message": "Unable to decode query."}"#);
const INVALID: Refusal = Refusal(422, r#"{"message": "Invalid request."}"#);

/// Reads a query. `now` is the wall time in nanoseconds.
pub(super) fn log_options(query: &str, now: i64) -> Result<LogOptions, Refusal> {
    let mut options = LogOptions::default();
    let (mut seconds, mut time): (Option<i64>, Option<Time>) = (None, None);
    let (mut tail, mut limit): (Option<i64>, Option<i64>) = (None, None);
    let number = |value: &str| value.parse::<i64>().map(Some).map_err(|_| UNDECODABLE);
    // As for apimachinery, everything but these two is true.
    let flag = |value: &str| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0");
    for (name, value) in parameters(query) {
        match name.as_str() {
            "follow" => options.follow = flag(&value),
            "previous" => options.previous = flag(&value),
            "timestamps" => options.timestamps = flag(&value),
            "sinceSeconds" => seconds = number(&value)?,
            "sinceTime" => time = Some(value.parse().map_err(|_| UNDECODABLE)?),
            "tail" if value == "all" => tail = None,
            "tail" | "tailLines" => tail = number(&value)?,
            "limitBytes" => limit = number(&value)?,
            "stream" => {
                options.stream = match value.as_str() {
                    "" | "All" => None,
                    "Stdout" => Some(LogStream::Stdout),
                    "Stderr" => Some(LogStream::Stderr),
                    _ => return Err(INVALID),
                }
            }
            _ => {}
        }
    }
    if (seconds.is_some() && time.is_some())
        || seconds.is_some_and(|seconds| seconds < 1)
        || limit.is_some_and(|limit| limit < 1)
        || (options.stream.is_some() && tail.is_some())
    {
        return Err(INVALID);
    }
    options.tail_lines = tail.map(u64::try_from).transpose().map_err(|_| INVALID)?;
    options.limit_bytes = limit.map(u64::try_from).transpose().map_err(|_| INVALID)?;
    let nanos = |seconds: i64| i128::from(seconds) * 1_000_000_000;
    options.since = match (seconds, time) {
        (Some(seconds), _) => Some(i128::from(now) - nanos(seconds)),
        (None, time) => time.map(|time| nanos(time.0)),
    };
    Ok(options)
}

/// The id of the instance whose log is meant, as the runtime knows it; or why there is none.
pub(super) fn instance(
    pod: &str,
    status: &PodStatus,
    container: &str,
    previous: bool,
) -> Result<String, String> {
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().find(|status| status.name == container);
    let Some(found) = found else {
        return Err(format!("container {container:?} in pod {pod:?} is not available"));
    };
    let id = instance_of(found, pod, container, previous)?;
    Ok(id.rsplit("://").next().unwrap_or_default().to_owned())
}

fn instance_of<'a>(
    status: &'a ContainerStatus,
    pod: &str,
    container: &str,
    previous: bool,
) -> Result<&'a str, String> {
    let id = |id: &'a str| Some(id).filter(|id| !id.is_empty());
    let last = status.last_state.terminated.as_ref();
    let last_id = last.and_then(|last| id(&last.container_id));
    let ended = || format!("container {container:?} in pod {pod:?} is terminated");
    if previous {
        let none = || format!("previous terminated container {container:?} in pod {pod:?} not found");
        return last_id.ok_or_else(none);
    }
    if status.state.running.is_some() {
        return Ok(&status.container_id);
    }
    if let Some(terminated) = &status.state.terminated {
        // Where the next instance could not start, the one before it has the log.
        return id(&terminated.container_id).or(last_id).ok_or_else(ended);
    }
    if last.is_some() {
        return last_id.ok_or_else(ended);
    }
    let why = match status.state.waiting.as_ref().map(|waiting| waiting.reason.as_str()) {
        Some("ErrImagePull") => "is waiting to start: image can't be pulled",
        Some("ImagePullBackOff") => "is waiting to start: trying and failing to pull image",
        Some(reason) => {
            return Err(format!("container {container:?} in pod {pod:?} is waiting to start: {reason}"));
        }
        None => "is waiting to start - no logs yet",
    };
    Err(format!("container {container:?} in pod {pod:?} {why}"))
}

/// Whether the instance with that id runs, so that its log may still grow.
pub(super) fn is_running(status: &PodStatus, id: &str) -> bool {
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let is_it = |status: &&ContainerStatus| status.container_id.rsplit("://").next() == Some(id);
    lists.into_iter().flatten().find(is_it).is_some_and(|status| status.state.running.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    };

    #[test]
    fn queries_are_read_and_refused_as_by_a_kubelet() {
        let options = log_options("follow=true&tailLines=5&timestamps=1&sinceSeconds=10", 20_000_000_000);
        let expected = LogOptions {
            follow: true,
            timestamps: true,
            tail_lines: Some(5),
            since: Some(10_000_000_000),
            ..LogOptions::default()
        };
        assert_eq!(options, Ok(expected));
        assert_eq!(log_options("sinceTime=1970-01-01T00:00:07Z", 0).unwrap().since, Some(7_000_000_000));
        assert_eq!(log_options("stream=Stderr&follow=false", 0).unwrap().stream, Some(LogStream::Stderr));
        assert_eq!(log_options("tail=all", 0), Ok(LogOptions::default()));
        assert_eq!(log_options("tailLines=x", 0), Err(UNDECODABLE));
        assert_eq!(log_options("sinceTime=yesterday", 0), Err(UNDECODABLE));
        for query in
            ["tailLines=-1", "limitBytes=0", "sinceSeconds=0", "stream=Both", "stream=Stdout&tailLines=1"]
        {
            assert_eq!(log_options(query, 0), Err(INVALID), "{query}");
        }
    }

    fn status(state: ContainerState, last: ContainerState) -> PodStatus {
        let container = ContainerStatus {
            name: "app".into(),
            container_id: "coracle://now".into(),
            state,
            last_state: last,
            ..ContainerStatus::default()
        };
        PodStatus { container_statuses: vec![container], ..PodStatus::default() }
    }

    fn ended(id: &str) -> ContainerState {
        let terminated = ContainerStateTerminated { container_id: id.into(), ..Default::default() };
        ContainerState { terminated: Some(Box::new(terminated)), ..ContainerState::default() }
    }

    fn waiting(reason: &str) -> ContainerState {
        let waiting = ContainerStateWaiting { reason: reason.into(), ..Default::default() };
        ContainerState { waiting: Some(Box::new(waiting)), ..ContainerState::default() }
    }

    #[test]
    fn the_instance_is_found_or_its_absence_explained() {
        let running = ContainerState {
            running: Some(Box::new(ContainerStateRunning::default())),
            ..ContainerState::default()
        };
        let none = ContainerState::default;
        let of = |state, last, previous| instance("web", &status(state, last), "app", previous);
        assert_eq!(of(running.clone(), none(), false), Ok("now".into()));
        assert!(is_running(&status(running.clone(), none()), "now"));
        assert!(!is_running(&status(running.clone(), none()), "before"));
        assert_eq!(of(running.clone(), ended("coracle://before"), true), Ok("before".into()));
        assert_eq!(
            of(running, none(), true),
            Err("previous terminated container \"app\" in pod \"web\" not found".into())
        );
        assert_eq!(of(ended("coracle://done"), none(), false), Ok("done".into()));
        assert_eq!(of(ended(""), ended("coracle://before"), false), Ok("before".into()));
        assert_eq!(
            of(ended(""), none(), false),
            Err("container \"app\" in pod \"web\" is terminated".into())
        );
        assert_eq!(of(waiting("CrashLoopBackOff"), ended("coracle://before"), false), Ok("before".into()));
        let text = |reason| of(waiting(reason), none(), false).unwrap_err();
        let start = "container \"app\" in pod \"web\" is waiting to start: ";
        assert_eq!(text("ErrImagePull"), format!("{start}image can't be pulled"));
        assert_eq!(text("ImagePullBackOff"), format!("{start}trying and failing to pull image"));
        assert_eq!(text("ContainerCreating"), format!("{start}ContainerCreating"));
        let unknown = instance("web", &PodStatus::default(), "app", false);
        assert_eq!(unknown, Err("container \"app\" in pod \"web\" is not available".into()));
    }
}
