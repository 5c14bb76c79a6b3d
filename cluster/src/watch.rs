//! One watch: lists, follows, and begins again without its caller's doing. Runs in the task that polls it.
//!
//! ```text
//!             ┌──────────── 410, ERROR Expired ────────────┐
//!             ▼                                            │
//!   list (WatchList, or pages) ──► Ready ──► follow from a version ──► body ends ──► follow again
//!             │                                                          │
//!             └───────────── an error: back off, then the same again ◄───┘
//! ```

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use http::header;
use kube::client::Body;
use kube::core::params::ListParams;

use crate::backoff::{Backoff, random_u32};
use crate::client::{Cluster, What, collection};
use crate::error::ApiError;
use crate::event::{self, Event, Unreadable};
use crate::lines::{Line, Lines};
use crate::pool::{Connection, chain};
use crate::resource::{Object, Scope};

/// A watch that lasted longer than this before it ended was a good one.
const GOOD: Duration = Duration::from_secs(5);

/// How long a server is asked to let a watch last, in seconds, at least and at most: as Go's clients ask, so that
/// servers can spread load.
const LIFETIME: (u32, u32) = (300, 600);

/// Unreadable objects that are remembered as told.
const TOLD: usize = 256;

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K> {
    /// A list begins: what is not in it is to be forgotten once [`Change::Ready`] comes. If the list breaks off,
    /// another `Restart` comes first.
    Restart,
    /// In the list.
    Listed(K),
    /// The list is complete.
    Ready,
    /// Added or changed since.
    Applied(K),
    /// Gone; the object as it was last.
    Deleted(K),
}

pub(crate) struct Watcher<K> {
    cluster: Cluster,
    scope: Scope,
    access: tokio::sync::watch::Receiver<std::sync::Arc<crate::Access>>,
    /// Where to go on; absent before the first list and when the server no longer holds it.
    version: Option<String>,
    /// The server does not know WatchList.
    pages: bool,
    state: State,
    ready: VecDeque<Change<K>>,
    backoff: Backoff,
    /// What was last logged as failing.
    failing: Option<u16>,
    told: HashSet<String>,
}

enum State {
    Closed,
    Pages { token: Option<String> },
    Open(Open),
}

struct Open {
    lines: Lines,
    since: Instant,
    /// The initial events of a WatchList are still coming.
    listing: bool,
}

impl<K: Object> Watcher<K> {
    pub(crate) fn new(cluster: Cluster, scope: Scope) -> Self {
        let access = cluster.access();
        let backoff = Backoff::new(cluster.patience().back_off);
        Self {
            cluster,
            scope,
            access,
            version: None,
            pages: false,
            state: State::Closed,
            ready: VecDeque::new(),
            backoff,
            failing: None,
            told: HashSet::new(),
        }
    }

    pub(crate) async fn next(&mut self) -> Change<K> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return change;
            }
            match std::mem::replace(&mut self.state, State::Closed) {
                State::Closed => self.open().await,
                State::Pages { token } => self.page(token).await,
                State::Open(open) => self.follow(open).await,
            }
        }
    }

    async fn open(&mut self) {
        if self.version.is_none() && (self.pages || self.scope.is_one()) {
            self.ready.push_back(Change::Restart);
            self.state = State::Pages { token: None };
            return;
        }
        let listing = self.version.is_none();
        self.access.mark_unchanged();
        match self.request(listing).await {
            Ok(body) => {
                if listing {
                    self.ready.push_back(Change::Restart);
                }
                self.recovered();
                self.state = State::Open(Open { lines: Lines::new(body), since: Instant::now(), listing });
            }
            // A server without WatchList calls its parameters invalid or forbidden.
            Err(error) if listing && matches!(error.code(), Some(400 | 422)) => {
                tracing::debug!(kind = K::RESOURCE.kind, "the API server lists in pages");
                self.pages = true;
            }
            Err(error) => self.failed(error).await,
        }
    }

    async fn request(&mut self, listing: bool) -> Result<Body, ApiError> {
        let what = What::of::<K>("watch", self.scope.namespace.as_deref(), None, None);
        let params = ListParams {
            field_selector: self.scope.field_selector.clone(),
            label_selector: self.scope.label_selector.clone(),
            ..ListParams::default()
        };
        let failed = |source| ApiError::Request { what: what.to_string(), source };
        let request = collection::<K>(self.scope.namespace.as_deref()).list(&params).map_err(failed)?;
        let timeout = LIFETIME.0 + random_u32() % (LIFETIME.1 - LIFETIME.0);
        let mut uri = format!("{}&watch=true&timeoutSeconds={timeout}", request.uri());
        // A bookmark a minute costs more than one object that is listed anew when a watch has ended.
        if !self.scope.is_one() {
            uri.push_str("&allowWatchBookmarks=true");
        }
        match &self.version {
            _ if listing => uri.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
            Some(version) => {
                uri.push_str("&resourceVersion=");
                uri.push_str(version);
            }
            None => {}
        }
        let failed = |error| ApiError::Request {
            what: what.to_string(),
            source: kube::core::request::Error::BuildRequest(error),
        };
        let request = http::Request::get(uri)
            .header(header::ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(failed)?;
        let after = self.cluster.patience().request;
        match tokio::time::timeout(after, self.cluster.send(&what, request)).await {
            Ok(response) => Ok(response?.into_body()),
            Err(_) => Err(ApiError::Deadline { what: what.to_string(), after }),
        }
    }

    async fn page(&mut self, token: Option<String>) {
        match self.cluster.page::<K>(&self.scope, token.as_deref()).await {
            Ok(page) => {
                self.recovered();
                for object in page.objects {
                    match object {
                        Ok(object) => self.ready.push_back(Change::Listed(object)),
                        Err(unreadable) => self.tell(unreadable),
                    }
                }
                if page.token.is_some() {
                    self.state = State::Pages { token: page.token };
                } else {
                    self.version = Some(page.version.unwrap_or_default());
                    self.ready.push_back(Change::Ready);
                }
            }
            Err(error) => self.failed(error).await,
        }
    }

    async fn follow(&mut self, mut open: Open) {
        let patience = self.cluster.patience();
        let silence = match open.listing {
            true => patience.list_silence,
            false if self.scope.is_one() => patience.silence + Duration::from_secs(LIFETIME.1.into()),
            false => patience.silence,
        };
        let line = tokio::select! {
            // Cancel-safe: what was read of a line stays in its buffer, which is dropped with the stream anyway.
            line = tokio::time::timeout(silence, open.lines.next()) => line,
            // Cancel-safe: a watch channel keeps what was sent. New credentials: go on over a new connection.
            Ok(()) = self.access.changed() => return,
        };
        match line {
            Ok(Ok(Some(Line::Text(line)))) => self.event(&line, open).await,
            Ok(Ok(Some(Line::TooLong))) => {
                tracing::warn!(
                    kind = K::RESOURCE.kind,
                    "an object of the API server is too large and is passed over"
                );
                self.state = State::Open(open);
            }
            Ok(Ok(None)) => self.ended(open.since, None).await,
            Ok(Err(error)) => self.ended(open.since, Some(error)).await,
            Err(_) => {
                tracing::debug!(kind = K::RESOURCE.kind, "a watch was silent for too long");
                self.ended(open.since, None).await;
            }
        }
    }

    async fn event(&mut self, line: &[u8], mut open: Open) {
        if line.is_empty() {
            self.state = State::Open(open);
            return;
        }
        let (event, version) = event::decode::<K>(line);
        // The initial events come in no order of versions: a list that breaks off begins anew.
        if !open.listing && !matches!(event, Event::Error { .. }) && version.is_some() {
            self.version.clone_from(&version);
        }
        // A list that never comes to its end is no success, however often it begins.
        if !open.listing && !matches!(event, Event::Error { .. }) {
            self.backoff.reset();
        }
        match event {
            Event::Applied(object) if open.listing => self.ready.push_back(Change::Listed(object)),
            Event::Applied(object) => self.ready.push_back(Change::Applied(object)),
            Event::Deleted(object) => self.ready.push_back(Change::Deleted(object)),
            Event::Bookmark { listed } => {
                if listed && open.listing {
                    open.listing = false;
                    self.version = version;
                    self.ready.push_back(Change::Ready);
                }
            }
            Event::Unreadable(unreadable) => self.tell(unreadable),
            Event::Error { code, reason, message } => {
                tracing::debug!(
                    kind = K::RESOURCE.kind,
                    code,
                    reason,
                    message,
                    "the API server ended a watch"
                );
                if code == 410 || reason == "Expired" || reason == "Gone" {
                    self.version = None;
                }
                return self.ended(open.since, None).await;
            }
        }
        self.state = State::Open(open);
    }

    /// A watch ends every few minutes; one that ends at once is a failure.
    async fn ended(&mut self, since: Instant, error: Option<kube::Error>) {
        if let Some(error) = &error {
            tracing::debug!(kind = K::RESOURCE.kind, error = chain(error), "a watch broke off");
        }
        if since.elapsed() < GOOD {
            self.wait(None).await;
        } else {
            self.backoff.reset();
        }
    }

    async fn failed(&mut self, error: ApiError) {
        if error.is_expired() {
            self.version = None;
        }
        // That no server answers is told once for all, where it is found.
        let code = error.code();
        if let Some(code) = code.filter(|code| *code != 401)
            && self.failing != Some(code)
        {
            self.failing = Some(code);
            tracing::warn!(
                kind = K::RESOURCE.kind,
                error = chain(&error),
                "a watch fails and is tried again"
            );
        }
        self.wait(error.retry_after()).await;
    }

    fn recovered(&mut self) {
        if self.failing.take().is_some() {
            tracing::info!(kind = K::RESOURCE.kind, "a watch goes on");
        }
    }

    /// Waits, but not past the moment when a server answers again.
    async fn wait(&mut self, asked: Option<Duration>) {
        let delay = self.backoff.fail(asked);
        let mut connection = self.cluster.connection();
        let is_down = matches!(&*connection.borrow_and_update(), Connection::Down { .. });
        let answers = async {
            if !is_down || connection.wait_for(Connection::is_up).await.is_err() {
                std::future::pending::<()>().await;
            }
            // Not all at once.
            tokio::time::sleep(Duration::from_millis((random_u32() % 500).into())).await;
        };
        tokio::select! {
            // Both arms are cancel-safe: they only wait.
            () = tokio::time::sleep(delay) => {}
            () = answers => {}
        }
    }

    fn tell(&mut self, unreadable: Unreadable) {
        if self.told.len() >= TOLD {
            self.told.clear();
        }
        if self.told.insert(format!("{} {}", unreadable.name, unreadable.uid)) {
            unreadable.tell(&K::RESOURCE);
        }
    }
}
