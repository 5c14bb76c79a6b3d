//! `coracle images`: lists, pulls, loads, saves and removes images, with bars on a terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use coracle_runtime::image::ImageStore;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::args::{ImagesArgs, ImagesCommand, Output};
use crate::socket::{Agent, Answer, ImageRecord, Progress, Request};
use crate::table;

pub(crate) fn run(args: &ImagesArgs) -> Result<ExitCode> {
    let state_dir = &args.state.state_dir;
    match &args.command {
        ImagesCommand::Ls { output } => list(args, *output)?,
        ImagesCommand::Pull { image, auth_file } => {
            let auth_file = auth_file.as_deref().map(absolute).transpose()?;
            transfer(state_dir, Request::Pull { image: image.clone(), auth_file })?;
        }
        ImagesCommand::Load { path } => transfer(state_dir, Request::Load { path: absolute(path)? })?,
        ImagesCommand::Save { output, images } => {
            transfer(state_dir, Request::Save { path: absolute(output)?, images: images.clone() })?;
        }
        ImagesCommand::Rm { images } => return remove(state_dir, images),
        ImagesCommand::Prune { all } => transfer(state_dir, Request::Prune { all: *all })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The agent has another working directory.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}

fn list(args: &ImagesArgs, output: Output) -> Result<()> {
    let mut images: Vec<ImageRecord> = Vec::new();
    match Agent::connect(&args.state.state_dir)? {
        Some(agent) => agent.ask(Request::Images, |answer| {
            if let Answer::Image(image) = answer {
                images.push(*image);
            }
            Ok(())
        })?,
        None => {
            super::tell_records(&args.state.state_dir);
            images.extend(
                ImageStore::peek(&args.data_dir.join("images"))?.iter().map(|image| (&**image).into()),
            );
            images.sort_by(|a, b| a.tags.cmp(&b.tags));
        }
    }
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&images)?);
        return Ok(());
    }
    let wide = output == Output::Wide;
    let rows: Vec<Vec<String>> = images.iter().flat_map(|image| rows(image, wide)).collect();
    let header: &[&str] = if wide {
        &["IMAGE", "TAG", "IMAGE ID", "SIZE", "DIGEST"]
    } else {
        &["IMAGE", "TAG", "IMAGE ID", "SIZE"]
    };
    print!("{}", table::render(header, &rows));
    Ok(())
}

/// A row per tag, as crictl prints images.
fn rows(image: &ImageRecord, wide: bool) -> Vec<Vec<String>> {
    let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    let short: String = id.chars().take(13).collect();
    let names: Vec<(String, String)> = if image.tags.is_empty() {
        let name = image.digests.first().and_then(|digest| digest.split('@').next()).unwrap_or("<none>");
        vec![(name.to_owned(), "<none>".to_owned())]
    } else {
        let split = |tag: &String| tag.rsplit_once(':').map(|(name, tag)| (name.to_owned(), tag.to_owned()));
        image.tags.iter().filter_map(split).collect()
    };
    let row = |(name, tag): (String, String)| {
        let mut row = vec![name, tag, short.clone(), table::size(image.size_bytes)];
        if wide {
            let digest = image.digests.first().and_then(|digest| digest.split('@').nth(1));
            row.push(digest.unwrap_or("<none>").to_owned());
        }
        row
    };
    names.into_iter().map(row).collect()
}

fn remove(state_dir: &Path, images: &[String]) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for image in images {
        let agent = Agent::require(state_dir)?;
        match agent.ask(Request::Remove { image: image.clone() }, print_message) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("coracle: {image}: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn print_message(answer: Answer) -> Result<()> {
    if let Answer::Message(text) = answer {
        println!("{text}");
    }
    Ok(())
}

/// Asks for something that takes a while and shows how far it is.
fn transfer(state_dir: &Path, request: Request) -> Result<()> {
    let mut bars = Bars::new()?;
    let mut lines = Vec::new();
    let result = Agent::require(state_dir)?.ask(request, |answer| {
        match answer {
            Answer::Progress(progress) => bars.show(&progress),
            Answer::Message(text) => lines.push(text),
            _ => bail!("the agent's answer does not fit the request; is it of another release?"),
        }
        Ok(())
    });
    bars.finish();
    for line in lines {
        println!("{line}");
    }
    result
}

/// A bar per layer on a terminal, nothing elsewhere.
struct Bars {
    all: Option<MultiProgress>,
    style: ProgressStyle,
    by_item: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn new() -> Result<Self> {
        let style =
            ProgressStyle::with_template("{prefix:20} [{bar:30}] {bytes:>10}/{total_bytes:<10} {msg}")
                .context("the bars' template is not valid")?
                .progress_chars("=> ");
        let all = std::io::stderr().is_terminal().then(MultiProgress::new);
        Ok(Self { all, style, by_item: BTreeMap::new() })
    }

    fn show(&mut self, progress: &Progress) {
        let Some(all) = &self.all else { return };
        let bar = self.by_item.entry(progress.item.clone()).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(progress.total));
            bar.set_style(self.style.clone());
            bar.set_prefix(progress.item.clone());
            bar
        });
        bar.set_length(progress.total.max(progress.done));
        bar.set_position(progress.done);
    }

    fn finish(&self) {
        for bar in self.by_item.values() {
            bar.finish();
        }
    }
}
