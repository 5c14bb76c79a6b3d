//! `coracle events`: what happened to the pods, as `kubectl events` prints it.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use coracle_kubelet_core::events::{Event, EventType};

use crate::args::EventsArgs;
use crate::socket::{Agent, Answer, Request};
use crate::{events_file, table};

const HEADER: [&str; 5] = ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];

pub(crate) fn run(args: &EventsArgs) -> Result<ExitCode> {
    let state_dir = &args.state.state_dir;
    let is_meant = |event: &Event| args.r#for.as_ref().is_none_or(|pod| concerns(event, pod));
    let Some(agent) = Agent::connect(state_dir)? else {
        super::tell_records(state_dir);
        let events = events_file::read(state_dir)?;
        print_all(events.iter().filter(|event| is_meant(event)));
        return Ok(ExitCode::SUCCESS);
    };
    let mut events: Vec<Event> = Vec::new();
    agent.ask(Request::Events { follow: args.follow }, |answer| {
        match answer {
            // Following, each line stands alone; else all are printed with columns of one width.
            Answer::Event(event) if args.follow && is_meant(&event) => {
                println!("{}", row(&event).join("   "))
            }
            Answer::Event(event) if is_meant(&event) => events.push(*event),
            _ => {}
        }
        Ok(())
    })?;
    print_all(events.iter());
    Ok(ExitCode::SUCCESS)
}

fn concerns(event: &Event, pod: &str) -> bool {
    let (namespace, name) =
        pod.split_once('/').map_or((None, pod), |(namespace, name)| (Some(namespace), name));
    namespace.is_none_or(|namespace| namespace == event.namespace)
        && (event.name == name || event.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')))
}

fn print_all<'a>(events: impl Iterator<Item = &'a Event>) {
    let rows: Vec<Vec<String>> = events.map(row).collect();
    if rows.is_empty() {
        eprintln!("No events.");
    } else {
        print!("{}", table::render(&HEADER, &rows));
    }
}

fn row(event: &Event) -> Vec<String> {
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed());
    let last = table::age(now - event.last_timestamp.0);
    let seen = match event.count {
        0 | 1 => last,
        count => format!("{last} (x{count} over {})", table::age(now - event.first_timestamp.0)),
    };
    let kind = match event.r#type {
        EventType::Normal => "Normal",
        EventType::Warning => "Warning",
    };
    vec![
        seen,
        kind.to_owned(),
        event.reason.clone(),
        format!("{}/{}", event.kind, event.name),
        event.message.trim_end().to_owned(),
    ]
}
