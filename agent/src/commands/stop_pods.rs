//! `coracle stop-pods`: ends every pod gracefully, for maintenance and before a shutdown.

use std::process::ExitCode;

use anyhow::Result;

use crate::args::StopPodsArgs;
use crate::socket::{Agent, Answer, Request};

pub(crate) fn run(args: &StopPodsArgs) -> Result<ExitCode> {
    let agent = Agent::require(&args.state.state_dir)?;
    agent.ask(Request::StopPods { timeout_seconds: args.timeout }, |answer| {
        if let Answer::Message(text) = answer {
            println!("{text}");
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
