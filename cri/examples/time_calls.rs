//! Times the calls of CRI runtimes: `cargo xtask bench runtime` runs it on two of them in turn.
//!
//! `time_calls pods ALONE ROUNDS SIDE IMAGE NAME=ENDPOINT…` takes pods through their life: ALONE times one pod, ROUNDS
//! times SIDE pods side by side, each call of all of them before the next. `time_calls pulls` does the same with images
//! IMAGE0, IMAGE1 and so on, in the place of pods. Every line printed is NAME MEASURE AT MILLISECONDS. The runtimes take
//! turns, so that a moment in which the machine is slow meets both.
//!
//! `time_calls hold PODS IMAGE NAME=ENDPOINT` makes pods, says so, and removes them when its input ends.
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use coracle_cri::client::Client;
use coracle_cri::v1::*;
use coracle_cri::{ImageService as _, RuntimeService as _, Status};
use futures_util::future::try_join_all;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// As long as a kubelet gives; the images' program ends at the signal at once.
const GRACE: i64 = 30;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [what @ ("pods" | "pulls"), alone, rounds, side, image, runtimes @ ..] => {
            let runtimes = connect(runtimes)?;
            let (alone, rounds, side): (usize, usize, usize) =
                (alone.parse()?, rounds.parse()?, side.parse()?);
            // The first of each kind reads what later ones find in memory.
            let plan = [(2, 1, false), (alone, 1, true), (rounds, side, true)];
            for (times, at, counts) in plan {
                for turn in 0..times {
                    for runtime in in_turn(&runtimes, turn) {
                        let mut times = Times { runtime, at, counts };
                        match *what {
                            "pods" => times.pods(image).await?,
                            _ => times.pulls(image, turn).await?,
                        }
                    }
                }
            }
            Ok(())
        }
        ["hold", pods, image, runtime] => hold(&connect(&[runtime])?[0], pods.parse()?, image).await,
        _ => Err("usage: time_calls pods|pulls ALONE ROUNDS SIDE IMAGE NAME=ENDPOINT… | hold PODS IMAGE NAME=ENDPOINT".into()),
    }
}

/// A runtime and its name.
struct Runtime {
    name: String,
    client: Client,
}

fn connect(words: &[&str]) -> Outcome<Vec<Runtime>> {
    let connect = |word: &&str| -> Outcome<Runtime> {
        let (name, endpoint) = word.split_once('=').ok_or("a runtime is NAME=ENDPOINT")?;
        Ok(Runtime { name: name.to_owned(), client: Client::new(endpoint)? })
    };
    words.iter().map(connect).collect()
}

/// Each round another one begins.
fn in_turn(runtimes: &[Runtime], turn: usize) -> impl Iterator<Item = &Runtime> {
    let first = turn % runtimes.len().max(1);
    runtimes[first..].iter().chain(&runtimes[..first])
}

/// Calls of one runtime, `at` side by side.
struct Times<'a> {
    runtime: &'a Runtime,
    at: usize,
    counts: bool,
}

impl Times<'_> {
    /// Makes the same call for all of `items` at once and tells how long each took.
    async fn each<I, T, F: Future<Output = Result<T, Status>>>(
        &self,
        measure: &str,
        items: &[I],
        call: impl Fn(&I) -> F,
    ) -> Outcome<Vec<T>> {
        let timed = items.iter().map(|item| {
            let call = call(item);
            async {
                let begun = Instant::now();
                let answer =
                    call.await.map_err(|status| format!("{}: {measure}: {status}", self.runtime.name))?;
                Ok::<_, String>((begun.elapsed(), answer))
            }
        });
        let mut answers = Vec::new();
        for (took, answer) in try_join_all(timed).await? {
            if self.counts {
                println!("{} {measure} {} {}", self.runtime.name, self.at, took.as_secs_f64() * 1000.0);
            }
            answers.push(answer);
        }
        Ok(answers)
    }

    async fn pods(&mut self, image: &str) -> Outcome<()> {
        let client = &self.runtime.client;
        ensure(client, image).await?;
        let configs: Vec<_> = (0..self.at).map(sandbox).collect();
        let sandboxes = self
            .each("run_pod_sandbox_ms", &configs, |config| {
                let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
                async move { Ok(client.run_pod_sandbox(request).await?.pod_sandbox_id) }
            })
            .await?;
        let pairs: Vec<_> = sandboxes.iter().cloned().zip(configs).collect();
        let containers = self
            .each("create_container_ms", &pairs, |(sandbox, config)| {
                let request = create(sandbox, config, container(image));
                async move { Ok(client.create_container(request).await?.container_id) }
            })
            .await?;
        self.each("start_container_ms", &containers, |id| {
            let request = StartContainerRequest { container_id: id.clone() };
            async move { client.start_container(request).await }
        })
        .await?;
        self.each("exec_sync_ms", &containers, |id| {
            let cmd = ["/pause", "-v"].map(str::to_owned).to_vec();
            let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 60 };
            async move {
                let answer = client.exec_sync(request).await?;
                if answer.exit_code == 0 { Ok(()) } else { Err(Status::internal(format!("{answer:?}"))) }
            }
        })
        .await?;
        self.each("stop_container_ms", &containers, |id| {
            let request = StopContainerRequest { container_id: id.clone(), timeout: GRACE };
            async move { client.stop_container(request).await }
        })
        .await?;
        self.each("remove_container_ms", &containers, |id| {
            let request = RemoveContainerRequest { container_id: id.clone() };
            async move { client.remove_container(request).await }
        })
        .await?;
        self.each("stop_pod_sandbox_ms", &sandboxes, |id| {
            let request = StopPodSandboxRequest { pod_sandbox_id: id.clone() };
            async move { client.stop_pod_sandbox(request).await }
        })
        .await?;
        self.each("remove_pod_sandbox_ms", &sandboxes, |id| {
            let request = RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
            async move { client.remove_pod_sandbox(request).await }
        })
        .await?;
        Ok(())
    }

    /// Images are numbered from a turn's own number on, so that all of them come up.
    async fn pulls(&mut self, prefix: &str, turn: usize) -> Outcome<()> {
        let client = &self.runtime.client;
        let first = if self.at == 1 { turn % 50 } else { 0 };
        let images: Vec<ImageSpec> =
            (first..first + self.at).map(|number| spec(&format!("{prefix}{number}:1"))).collect();
        self.each("pull_image_ms", &images, |image| {
            let request = PullImageRequest { image: Some(image.clone()), ..Default::default() };
            async move { client.pull_image(request).await }
        })
        .await?;
        for image in images {
            client.remove_image(RemoveImageRequest { image: Some(image) }).await?;
        }
        Ok(())
    }
}

/// Keeps pods until nobody wants them any more.
async fn hold(runtime: &Runtime, pods: usize, image: &str) -> Outcome<()> {
    let client = &runtime.client;
    ensure(client, image).await?;
    let mut sandboxes = Vec::new();
    for config in (0..pods).map(sandbox) {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let sandbox = client.run_pod_sandbox(request).await?.pod_sandbox_id;
        let request = create(&sandbox, &config, container(image));
        let container_id = client.create_container(request).await?.container_id;
        client.start_container(StartContainerRequest { container_id }).await?;
        sandboxes.push(sandbox);
    }
    println!("{pods} pods run");
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    for pod_sandbox_id in sandboxes {
        client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
        client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
    }
    Ok(())
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

async fn ensure(client: &Client, image: &str) -> Outcome<()> {
    let status = client.image_status(ImageStatusRequest { image: Some(spec(image)), verbose: false }).await?;
    if status.image.is_none() {
        client.pull_image(PullImageRequest { image: Some(spec(image)), ..Default::default() }).await?;
    }
    Ok(())
}

/// What a kubelet asks for: a cgroup of the pod's own, a folder of logs, three namespaces.
fn sandbox(number: usize) -> PodSandboxConfig {
    let metadata = PodSandboxMetadata {
        name: format!("bench-{number}"),
        uid: format!("uid-{number}"),
        namespace: "bench".into(),
        attempt: 0,
    };
    let namespaces = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    let linux = LinuxPodSandboxConfig {
        cgroup_parent: format!("/kubepods/bench-{number}"),
        security_context: Some(security),
        ..Default::default()
    };
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: format!("bench-{number}"),
        log_directory: format!("/var/log/pods/bench-{number}"),
        labels: HashMap::from([("app".into(), "bench".into())]),
        linux: Some(linux),
        ..Default::default()
    }
}

fn container(image: &str) -> ContainerConfig {
    let namespaces = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
    let security = LinuxContainerSecurityContext {
        namespace_options: Some(namespaces),
        no_new_privs: true,
        ..Default::default()
    };
    let resources =
        LinuxContainerResources { memory_limit_in_bytes: 32 << 20, cpu_shares: 102, ..Default::default() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(spec(image)),
        log_path: "main/0.log".into(),
        linux: Some(LinuxContainerConfig { resources: Some(resources), security_context: Some(security) }),
        ..Default::default()
    }
}

fn create(sandbox: &str, config: &PodSandboxConfig, container: ContainerConfig) -> CreateContainerRequest {
    CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(container),
        sandbox_config: Some(config.clone()),
    }
}
