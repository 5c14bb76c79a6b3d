//! Tells clients of logs that refuse output, as methods of [`Shim`] called by the loop.
//!
//! A client asks once and is answered when something has changed, as with the end of a process; nobody polls. What is
//! compared is who refuses now with what the client knows, so nothing is missed between an answer and the next question.

use coracle_shim::protocol::{Code, Status, shim};

use crate::connection::ReplyTo;
use crate::container::Container;
use crate::server::Shim;

/// Clients that may wait; our runtime is one.
const MAX_WATCHERS: usize = 16;

/// A client that waits for news.
#[derive(Debug)]
pub(crate) struct LogWatcher {
    pub(crate) reply: ReplyTo,
    /// The containers of which it knows that their log refuses output.
    refusing: Vec<String>,
}

impl Shim {
    /// Keeps a client until there is news for it, which there may be already.
    pub(crate) fn watch_logs(
        &mut self,
        reply: ReplyTo,
        request: shim::WatchLogsRequest,
    ) -> Result<(), Status> {
        if self.log_watchers.len() >= MAX_WATCHERS {
            let message = format!("{MAX_WATCHERS} clients watch the logs already");
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        // The loop looks after every request.
        self.log_watchers.push(LogWatcher { reply, refusing: request.refusing });
        Ok(())
    }

    /// Answers those for whom there is news.
    pub(crate) fn tell_of_logs(&mut self) {
        let containers = &self.containers;
        let news = self.log_watchers.iter().position(|watcher| watcher.has_news(containers));
        let Some(at) = news else { return };
        let watcher = self.log_watchers.swap_remove(at);
        let states = |wanted: &dyn Fn(&Container) -> bool| -> Vec<shim::LogState> {
            self.containers.iter().filter(|container| wanted(container)).map(state).collect()
        };
        let response = shim::WatchLogsResponse {
            refusing: states(&|container| container.init.streams.log_refuses()),
            resumed: states(&|container| watcher.knows(container) && !container.init.streams.log_refuses()),
        };
        self.reply_message(watcher.reply, &response);
        self.tell_of_logs();
    }
}

impl LogWatcher {
    fn knows(&self, container: &Container) -> bool {
        self.refusing.contains(&container.id)
    }

    fn has_news(&self, containers: &[Container]) -> bool {
        let changed = |container: &Container| container.init.streams.log_refuses() != self.knows(container);
        let is_gone = |id: &String| !containers.iter().any(|container| container.id == *id);
        containers.iter().any(changed) || self.refusing.iter().any(is_gone)
    }
}

fn state(container: &Container) -> shim::LogState {
    let log = container.init.streams.log_summary();
    shim::LogState { id: container.id.clone(), bytes_dropped: log.dropped, error: log.error }
}
