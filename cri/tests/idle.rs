//! An open connection without a call costs no wake-up, on either side. Alone in its process, to count in peace.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::client::Client;
use coracle_cri::server::Listener;
use coracle_cri::testing::FakeRuntime;
use coracle_cri::{RuntimeService, v1::*};
use futures_util::StreamExt;

/// How often the threads of this process went to sleep so far.
fn wake_ups() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().join("status"));
    tasks
        .filter_map(|status| std::fs::read_to_string(status).ok())
        .filter_map(|text| {
            let line = text.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?.to_owned();
            line.split_whitespace().last()?.parse::<u64>().ok()
        })
        .sum()
}

#[tokio::test]
async fn an_idle_connection_wakes_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(FakeRuntime::new());
    let listener = Listener::bind(dir.path().join("cri.sock")).unwrap();
    let client = Client::new(listener.path().to_str().unwrap()).unwrap();
    let server = tokio::spawn(listener.serve(fake.clone(), fake, std::future::pending()));
    client.version(VersionRequest::default()).await.unwrap();
    let mut events = client.get_container_events(GetEventsRequest {}).await.unwrap();
    let before = wake_ups();
    // The window is the measure here, not a wait for something.
    let quiet = tokio::time::timeout(Duration::from_secs(2), events.next()).await;
    assert!(quiet.is_err());
    let woken = wake_ups() - before;
    server.abort();
    // One for the end of the window; a keepalive or a poll would come with every interval of its own.
    assert!(woken <= 4, "{woken} wake-ups in two idle seconds");
}
