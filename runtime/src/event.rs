//! The stream of container events: every change of a container's phase, to whoever listens.
//!
//! Senders never wait. A listener that falls behind by more than the ring holds gets an error and must list
//! everything again, which costs it time and never correctness.

use coracle_cri::{Status, Stream, v1};
use futures_util::StreamExt as _;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

/// Events held for a slow listener: a burst of 100 pods makes a few hundred.
const RING: usize = 1024;

/// The sending side, one per runtime.
pub(crate) struct Events {
    sender: broadcast::Sender<v1::ContainerEventResponse>,
}

impl Events {
    pub(crate) fn new() -> Events {
        Events { sender: broadcast::Sender::new(RING) }
    }

    /// Sends what `event` makes; without a listener nothing is made.
    pub(crate) fn send(&self, event: impl FnOnce() -> v1::ContainerEventResponse) {
        if self.sender.receiver_count() > 0 {
            // The last listener may have gone since: nobody misses the event then.
            let _ = self.sender.send(event());
        }
    }

    /// Every event from now on.
    pub(crate) fn subscribe(&self) -> Stream<v1::ContainerEventResponse> {
        BroadcastStream::new(self.sender.subscribe())
            .map(|event| {
                event.map_err(|BroadcastStreamRecvError::Lagged(count)| {
                    Status::out_of_range(format!("{count} events were missed; list the containers again"))
                })
            })
            .boxed()
    }
}
