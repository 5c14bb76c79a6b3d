//! A log as the body of an answer: read piece by piece, and followed while its container runs.
//!
//! Polled by the connection's task and nothing else: there is no task behind it. While nothing is written it holds a
//! file, an inotify instance and less than a kilobyte, and sleeps; the client's going away drops it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use hyper::body::Bytes;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::watch;

use super::log_options::is_running;
use crate::container_log::{LogError, LogFilter, LogReader};
use crate::kubelet::PodViews;

/// So much is read before the client gets it.
const PIECE: usize = 16 * 1024;
/// For the events of inotify; what does not fit comes with the next read.
const EVENTS: usize = 512;

/// Reads a log for one client.
pub(super) struct LogStreamer {
    log: LogReader,
    filter: LogFilter,
    /// The statuses, and the pod and the instance whose end ends the log.
    follow: Option<(watch::Receiver<PodViews>, Arc<str>, String)>,
    events: Option<EventStream<[u8; EVENTS]>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There may be more.
    Reading,
    /// The container has ended; what it wrote last is read once more.
    LastRound,
    Over,
}

impl LogStreamer {
    pub(super) fn new(
        log: LogReader,
        filter: LogFilter,
        follow: Option<(watch::Receiver<PodViews>, Arc<str>, String)>,
    ) -> Self {
        Self { log, filter, follow, events: None, state: State::Reading }
    }

    /// The pieces, until the log is over.
    pub(super) fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::unfold(self, |mut streamer| async move {
            match streamer.next().await {
                Ok(Some(piece)) => Some((Ok(piece), streamer)),
                Ok(None) => None,
                Err(error) => {
                    tracing::debug!(%error, "a log broke off");
                    streamer.state = State::Over;
                    Some((Err(error), streamer))
                }
            }
        })
    }

    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.state == State::Over {
                return Ok(None);
            }
            let mut piece = Vec::new();
            let is_end = self.read(&mut piece).map_err(io::Error::other)?;
            if !piece.is_empty() {
                return Ok(Some(piece.into()));
            }
            if is_end && let Some(rest) = self.at_end().await? {
                return Ok(Some(rest));
            }
        }
    }

    /// Reads one piece; whether that reached the present end.
    fn read(&mut self, piece: &mut Vec<u8>) -> Result<bool, LogError> {
        while piece.len() < PIECE {
            let Some(record) = self.log.next_record()? else { return Ok(true) };
            if !self.filter.show(&record, piece) {
                self.state = State::Over;
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Decides how to go on where there is nothing to read; may find the rest of a file that was rotated away.
    async fn at_end(&mut self) -> io::Result<Option<Bytes>> {
        // What was written to the old file until the rotation is read before the new one is opened.
        if self.log.is_rotated().map_err(io::Error::other)? {
            let mut rest = Vec::new();
            self.read(&mut rest).map_err(io::Error::other)?;
            if !rest.is_empty() {
                return Ok(Some(rest.into()));
            }
            self.log.reopen_if_rotated().map_err(io::Error::other)?;
            return Ok(None);
        }
        let Some((pods, uid, id)) = &mut self.follow else {
            self.state = State::Over;
            return Ok(None);
        };
        if self.state == State::LastRound {
            self.state = State::Over;
            return Ok(None);
        }
        let Some(events) = &mut self.events else {
            // What was written before the watch stood is read by the next round.
            self.events = Some(watch_folder(self.log.path())?);
            return Ok(None);
        };
        let runs = pods.borrow_and_update().get(uid).is_some_and(|view| is_running(&view.status, id));
        if !runs {
            self.state = State::LastRound;
            return Ok(None);
        }
        tokio::select! {
            // Cancel-safe: an event is taken only once the arm is won, and any event means the same.
            event = events.next() => {
                event.transpose()?;
            }
            // Cancel-safe: a change that is not taken here is still marked.
            changed = pods.changed() => {
                if changed.is_err() {
                    self.state = State::LastRound;
                }
            }
        }
        Ok(None)
    }
}

/// Tells of growth and of new files: a rotation makes one.
fn watch_folder(log: &Path) -> io::Result<EventStream<[u8; EVENTS]>> {
    let folder = log.parent().unwrap_or(Path::new("/"));
    let inotify = Inotify::init()?;
    inotify.watches().add(folder, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
    inotify.into_event_stream([0; EVENTS])
}
