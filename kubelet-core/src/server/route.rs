//! Paths of the kubelet API, and which permission each needs.
//!
//! Pure. Follows the kubelet's `InstallAuthNotRequiredHandlers`, `InstallAuthRequiredHandlers` and
//! `GetRequestAttributes` with fine-grained authorization (1.36).

/// A pod or a container of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) pod: String,
    /// Empty if any will do.
    pub(super) uid: String,
    /// Empty for a pod.
    pub(super) container: String,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Healthz {
        verbose: bool,
    },
    HealthzPart(String),
    Pods,
    RunningPods,
    ContainerLogs {
        namespace: String,
        pod: String,
        container: String,
    },
    StatsSummary,
    Metrics,
    MetricsResource,
    MetricsProbes,
    MetricsCadvisor,
    Configz,
    Exec(Place),
    Attach(Place),
    PortForward(Place),
    Run(Place),
    /// Known to a kubelet and not served, with what it says instead.
    Disabled(&'static str),
    /// A known path with another method.
    WrongMethod,
    Unknown,
}

/// The route of a request. `path` is percent-decoded per segment.
pub(super) fn route(method: &str, path: &str) -> Route {
    let segments: Vec<String> = path.split('/').skip(1).map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let get = |route: Route| if method == "GET" { route } else { Route::WrongMethod };
    let get_or_post = |route: Route| match method {
        "GET" | "POST" => route,
        _ => Route::WrongMethod,
    };
    match segments.as_slice() {
        ["healthz"] => Route::Healthz { verbose: false },
        ["healthz", part] if !part.is_empty() => Route::HealthzPart((*part).to_owned()),
        ["pods"] | ["pods", ""] => get(Route::Pods),
        ["runningpods"] | ["runningpods", ""] => get(Route::RunningPods),
        ["containerLogs", namespace, pod, container] => get(Route::ContainerLogs {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            container: (*container).to_owned(),
        }),
        ["stats", "summary"] | ["stats", "summary", ""] => get_or_post(Route::StatsSummary),
        ["metrics"] => get(Route::Metrics),
        ["metrics", "resource"] => get(Route::MetricsResource),
        ["metrics", "probes"] => get(Route::MetricsProbes),
        ["metrics", "cadvisor"] => get(Route::MetricsCadvisor),
        ["configz"] => get(Route::Configz),
        ["exec", rest @ ..] if is_container(rest) => get_or_post(Route::Exec(container(rest))),
        ["attach", rest @ ..] if is_container(rest) => get_or_post(Route::Attach(container(rest))),
        ["portForward", namespace, pod] => get_or_post(Route::PortForward(place(namespace, pod, "", ""))),
        ["portForward", namespace, pod, uid] => {
            get_or_post(Route::PortForward(place(namespace, pod, uid, "")))
        }
        ["run", rest @ ..] if is_container(rest) && method == "POST" => Route::Run(container(rest)),
        ["run", rest @ ..] if is_container(rest) => Route::WrongMethod,
        ["logs", ..] => Route::Disabled("logs endpoint is disabled."),
        ["debug", "pprof", ..] => Route::Disabled("profiling endpoint is disabled."),
        ["debug", "flags", ..] => Route::Disabled("flags endpoint is disabled."),
        _ => Route::Unknown,
    }
}

fn place(namespace: &str, pod: &str, uid: &str, container: &str) -> Place {
    let [namespace, pod, uid, container] = [namespace, pod, uid, container].map(str::to_owned);
    Place { namespace, pod, uid, container }
}

fn is_container(segments: &[&str]) -> bool {
    matches!(segments.len(), 3 | 4)
}

/// `NAMESPACE/POD/CONTAINER`, or with the UID before the container.
fn container(segments: &[&str]) -> Place {
    match segments {
        [namespace, pod, uid, name] => place(namespace, pod, uid, name),
        [namespace, pod, name] => place(namespace, pod, "", name),
        _ => Place::default(),
    }
}

fn decode(segment: &str) -> String {
    percent_decode(segment, false)
}

/// Undoes `%41`, and in a query `+` for a space. What is no escape stays.
fn percent_decode(text: &str, plus_is_space: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = |digit: Option<&u8>| digit.and_then(|digit| char::from(*digit).to_digit(16));
        match (byte, hex(tail.first()), hex(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high << 4 | low).unwrap_or_default());
                rest = &tail[2..];
            }
            _ => {
                out.push(if plus_is_space && byte == b'+' { b' ' } else { byte });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The parameters of a query, in their order.
pub(super) fn parameters(query: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (percent_decode(name, true), percent_decode(value, true))
    };
    query.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

/// What a user must be allowed: one of the subresources, by this verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Permission {
    pub(super) verb: &'static str,
    /// Any of them suffices; of `nodes`.
    pub(super) subresources: Vec<&'static str>,
}

/// The permission that a request needs.
pub(super) fn permission(method: &str, path: &str) -> Permission {
    let verb = match method {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    };
    let is_below = |root: &str| {
        path == root || (path.starts_with(root) && path.as_bytes().get(root.len()) == Some(&b'/'))
    };
    let fine =
        [("/pods", "pods"), ("/healthz", "healthz"), ("/configz", "configz"), ("/runningpods", "pods")];
    let mut subresources: Vec<&'static str> = Vec::new();
    subresources.extend(fine.iter().find(|(root, _)| is_below(root)).map(|(_, subresource)| subresource));
    let coarse = [
        ("/stats", "stats"),
        ("/metrics", "metrics"),
        ("/logs", "log"),
        ("/checkpoint", "checkpoint"),
        ("/statusz", "statusz"),
        ("/flagz", "configz"),
    ];
    let found = coarse.iter().find(|(root, _)| is_below(root));
    subresources.push(found.map_or("proxy", |(_, subresource)| subresource));
    Permission { verb, subresources }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_routes() {
        let logs = Route::ContainerLogs {
            namespace: "default".into(),
            pod: "web-1".into(),
            container: "app".into(),
        };
        assert_eq!(route("GET", "/containerLogs/default/web%2D1/app"), logs);
        assert_eq!(route("POST", "/containerLogs/default/web/app"), Route::WrongMethod);
        assert_eq!(route("GET", "/containerLogs/default/web"), Route::Unknown);
        assert_eq!(route("GET", "/runningpods/"), Route::RunningPods);
        assert_eq!(route("POST", "/exec/ns/pod/uid/c"), Route::Exec(place("ns", "pod", "uid", "c")));
        assert_eq!(route("GET", "/attach/ns/pod/c"), Route::Attach(place("ns", "pod", "", "c")));
        assert_eq!(route("POST", "/portForward/ns/pod"), Route::PortForward(place("ns", "pod", "", "")));
        assert_eq!(route("GET", "/run/ns/pod/c"), Route::WrongMethod);
        assert_eq!(route("GET", "/healthz/ping"), Route::HealthzPart("ping".into()));
        assert_eq!(route("GET", "/logs/syslog"), Route::Disabled("logs endpoint is disabled."));
        assert_eq!(route("GET", "/"), Route::Unknown);
    }

    #[test]
    fn permissions_are_those_of_a_kubelet() {
        let of = |method: &str, path: &str| {
            let permission = permission(method, path);
            (permission.verb, permission.subresources)
        };
        assert_eq!(of("GET", "/pods"), ("get", vec!["pods", "proxy"]));
        assert_eq!(of("GET", "/runningpods/"), ("get", vec!["pods", "proxy"]));
        assert_eq!(of("GET", "/healthz/ping"), ("get", vec!["healthz", "proxy"]));
        assert_eq!(of("GET", "/metrics/resource"), ("get", vec!["metrics"]));
        assert_eq!(of("GET", "/stats/summary"), ("get", vec!["stats"]));
        assert_eq!(of("GET", "/statsx"), ("get", vec!["proxy"]));
        assert_eq!(of("POST", "/exec/ns/pod/c"), ("create", vec!["proxy"]));
        assert_eq!(of("GET", "/containerLogs/ns/pod/c"), ("get", vec!["proxy"]));
        assert_eq!(of("GET", "/configz"), ("get", vec!["configz", "proxy"]));
    }

    #[test]
    fn queries_are_decoded() {
        let pairs = parameters("tailLines=5&sinceTime=2026-01-01T00%3A00%3A00%2B02%3A00&a+b=c+d&&flag");
        assert_eq!(pairs[0], ("tailLines".into(), "5".into()));
        assert_eq!(pairs[1].1, "2026-01-01T00:00:00+02:00");
        assert_eq!(pairs[2], ("a b".into(), "c d".into()));
        assert_eq!(pairs[3], ("flag".into(), String::new()));
        assert_eq!(percent_decode("100%", false), "100%");
    }
}
