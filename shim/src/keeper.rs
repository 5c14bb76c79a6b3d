//! Keeps the logs of containers that another shim runs, as methods of [`Shim`] called by the loop.
//!
//! The runtime starts this shim beside the other, which is given named pipes for output: what comes through them is
//! written to the CRI log and copied to who is attached, whether the runtime lives or not. The other's events come here
//! too, because it stops when nobody takes them; of these an end is recorded, as for containers of our own.

use std::path::{Path, PathBuf};

use coracle_shim::protocol::events::{Event, ForwardRequest, TaskExit, TaskOOM};
use coracle_shim::protocol::{Code, Empty, Status, shim};
use prost::Message;

use crate::bundle::Facts;
use crate::connection::ReplyTo;
use crate::container::{Container, Phase};
use crate::exit_record::{self, Exit};
use crate::job::failed;
use crate::maker;
use crate::server::Shim;
use crate::stdio::{Addresses, Streams};

impl Shim {
    /// Opens a container's pipes and its log.
    pub(crate) fn keep_log(&mut self, reply: ReplyTo, request: shim::KeepLogRequest) -> Result<(), Status> {
        let id = request.id.clone();
        if !maker::is_plain_name(&id) || !Path::new(&request.bundle).is_absolute() {
            return Err(Status::new(
                Code::InvalidArgument,
                format!("{id:?} or its bundle has no usable name"),
            ));
        }
        if self.containers.iter().any(|container| container.id == id) {
            return Err(Status::new(Code::AlreadyExists, format!("container {id} exists")));
        }
        let streams = Streams::keep(&request)
            .map_err(|error| failed(Code::InvalidArgument, "cannot open the container's streams", &error))?;
        let addresses = Addresses { terminal: request.terminal, ..Addresses::default() };
        let bundle = PathBuf::from(request.bundle);
        let mut container = Container::new(id.clone(), bundle, Facts::default(), addresses);
        container.init.phase = Phase::Running;
        container.init.streams = streams;
        container.kept = true;
        self.containers.push(container);
        self.start_streams(&id, "");
        self.reply_message(reply, &Empty {});
        Ok(())
    }

    /// Writes what is left in a container's pipes and closes them.
    pub(crate) fn forget_log(
        &mut self,
        reply: ReplyTo,
        request: &shim::ForgetLogRequest,
    ) -> Result<(), Status> {
        if !self.container(&request.id)?.kept {
            let message = format!("container {} is not only a log", request.id);
            return Err(Status::new(Code::FailedPrecondition, message));
        }
        let gone = Status::new(Code::NotFound, format!("container {} was deleted", request.id));
        self.forget(&request.id, None, gone);
        self.reply_message(reply, &Empty {});
        Ok(())
    }

    /// Takes an event of the other shim.
    pub(crate) fn hear(&mut self, reply: ReplyTo, request: ForwardRequest) {
        let envelope = request.envelope.unwrap_or_default();
        let event = envelope.event.unwrap_or_default();
        match envelope.topic.as_str() {
            TaskOOM::TOPIC => {
                if let Ok(oom) = TaskOOM::decode(event.value.as_slice())
                    && let Some(container) = self.kept(&oom.container_id)
                {
                    container.oom = true;
                }
            }
            TaskExit::TOPIC => {
                if let Ok(exit) = TaskExit::decode(event.value.as_slice()) {
                    self.record_exit(&exit);
                }
            }
            _ => {}
        }
        self.reply_message(reply, &Empty {});
    }

    fn kept(&mut self, id: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.kept && container.id == id)
    }

    fn record_exit(&mut self, event: &TaskExit) {
        if event.id != event.container_id {
            return;
        }
        let Some(container) = self.kept(&event.container_id) else { return };
        let at_unix_ns = event.exited_at.map_or_else(crate::sys::unix_ns, |at| at.unix_ns());
        let exit = Exit { status: event.exit_status, at_unix_ns };
        if let Err(error) = exit_record::write(&container.bundle, &exit, container.oom) {
            let bundle = container.bundle.display();
            crate::tell(format_args!("cannot write the exit record of {} into {bundle}: {error}", event.id));
        }
    }
}
