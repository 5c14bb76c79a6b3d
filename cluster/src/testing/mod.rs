//! A scripted API server for tests: keeps objects, serves watches as a real one does, and fails on request.
//!
//! It speaks HTTP/1.1 and HTTP/2, with TLS if given a configuration. Dropping [`FakeApi`] ends it. Concurrency: one
//! task per connection; the store is one lock over plain data.

mod fault;
mod freezable;
mod objects;
mod patch;
mod route;
mod serve;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::{Access, Server};

pub use fault::{Fault, Rule};
pub use freezable::Freezable;
use objects::Objects;

/// A request that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The HTTP method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The query, or an empty string.
    pub query: String,
    /// The value of `Authorization`.
    pub authorization: Option<String>,
    /// The client's certificate in DER.
    pub certificate: Option<Vec<u8>>,
    /// Counts the connections, from 0.
    pub connection: usize,
    /// The body, or null.
    pub body: Value,
}

/// What a path that a test answers itself says: the HTTP status and the body.
type Responder = Arc<dyn Fn(&Seen) -> (u16, Value) + Send + Sync>;

pub(crate) struct Shared {
    objects: Mutex<Objects>,
    /// Counts changes, so that watches look again.
    changed: watch::Sender<u64>,
    rules: Mutex<Vec<Rule>>,
    responders: Mutex<Vec<(Method, String, Responder)>>,
    seen: Mutex<Vec<Seen>>,
    connections: Mutex<usize>,
    frozen: watch::Sender<u64>,
    watches: watch::Sender<u64>,
    watch_list: Mutex<bool>,
    bookmarks: Mutex<Duration>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An API server of lies. See the module.
pub struct FakeApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    tasks: Option<tokio::task::JoinHandle<()>>,
}

impl FakeApi {
    /// Serves HTTP/1.1 without TLS.
    pub async fn start() -> Self {
        Self::launch(None).await
    }

    /// Serves TLS, and HTTP/2 if the configuration offers `h2`.
    pub async fn start_tls(tls: Arc<rustls::ServerConfig>) -> Self {
        Self::launch(Some(tls)).await
    }

    async fn launch(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            objects: Mutex::default(),
            changed: watch::Sender::new(0),
            rules: Mutex::default(),
            responders: Mutex::default(),
            seen: Mutex::default(),
            connections: Mutex::default(),
            frozen: watch::Sender::new(0),
            watches: watch::Sender::new(0),
            watch_list: Mutex::new(true),
            bookmarks: Mutex::new(Duration::from_secs(60)),
        });
        let tasks = tokio::spawn(serve::accept(listener, shared.clone(), tls.clone()));
        Self { shared, address, tls, tasks: Some(tasks) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn server(&self) -> Server {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address).parse().expect("a socket address makes a URL")
    }

    /// How to reach it without credentials. With TLS the caller adds its trust.
    pub fn access(&self) -> Access {
        Access::plain(self.server())
    }

    /// A client of it without credentials. Only without TLS.
    pub fn cluster(&self) -> crate::Cluster {
        crate::Cluster::with(self.access())
    }

    /// Adds or replaces an object under its collection, such as `/api/v1/pods`, whatever version it claims. Sets
    /// uid, resourceVersion and creationTimestamp. Returns it as it is held.
    pub fn put(&self, collection: &str, object: Value) -> Value {
        let held = lock(&self.shared.objects).put(collection, object);
        self.shared.wake();
        held
    }

    /// Takes an object away at once.
    pub fn remove(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let removed = lock(&self.shared.objects).remove(collection, namespace, name);
        self.shared.wake();
        removed
    }

    /// An object as it is held. Cluster-wide objects have an empty namespace.
    pub fn object(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        lock(&self.shared.objects).get(collection, namespace, name)
    }

    /// All objects of a collection.
    pub fn objects(&self, collection: &str) -> Vec<Value> {
        lock(&self.shared.objects).all(collection)
    }

    /// Waits until an object is as wanted and returns it. Panics after a minute, with the object's last state.
    pub async fn wait_for(
        &self,
        collection: &str,
        namespace: &str,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut changed = self.shared.changed.subscribe();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            changed.mark_unchanged();
            let object = self.object(collection, namespace, name);
            match object {
                Some(object) if wanted(&object) => return object,
                object => {
                    if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                        panic!("{collection} {namespace}/{name} is not as wanted: {object:#?}");
                    }
                }
            }
        }
    }

    /// Forgets old versions: lists that go on from a token and watches that begin before now get 410.
    pub fn compact(&self) {
        lock(&self.shared.objects).compact();
    }

    /// Ends all open watches: with an ERROR event of 410 in the stream.
    pub fn expire_watches(&self) {
        self.shared.watches.send_modify(|count| *count += 1);
    }

    /// Whether watches may ask for initial events; servers before 1.34 say no.
    pub fn set_watch_list(&self, offered: bool) {
        *lock(&self.shared.watch_list) = offered;
    }

    /// How often idle watches get a bookmark; a minute at first.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        *lock(&self.shared.bookmarks) = interval;
    }

    /// Something is to go wrong. Rules are tried in the order they came.
    pub fn add_rule(&self, rule: Rule) {
        lock(&self.shared.rules).push(rule);
    }

    /// Nothing goes wrong any more.
    pub fn clear_rules(&self) {
        lock(&self.shared.rules).clear();
    }

    /// Requests whose path begins so are answered by the test itself.
    pub fn respond(
        &self,
        method: Method,
        path: &str,
        responder: impl Fn(&Seen) -> (u16, Value) + Send + Sync + 'static,
    ) {
        lock(&self.shared.responders).push((method, path.to_owned(), Arc::new(responder)));
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        *lock(&self.shared.connections)
    }

    /// Every present connection stalls for good: nothing is read or written, nothing is closed. New ones work.
    pub fn freeze(&self) {
        self.shared.frozen.send_modify(|count| *count += 1);
    }

    /// Goes away with all connections; objects are kept.
    pub async fn stop(&mut self) {
        if let Some(tasks) = self.tasks.take() {
            tasks.abort();
            let _ = tasks.await;
        }
    }

    /// Comes back after [`FakeApi::stop`] at the same address.
    pub async fn restart(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("the option exists");
        socket.bind(self.address).expect("the old port is free");
        let listener = socket.listen(64).expect("a bound socket listens");
        self.tasks = Some(tokio::spawn(serve::accept(listener, self.shared.clone(), self.tls.clone())));
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(tasks) = &self.tasks {
            tasks.abort();
        }
    }
}

impl Shared {
    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}
