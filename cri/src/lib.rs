//! The Kubernetes Container Runtime Interface, version 1, in Rust.
//!
//! [`v1`] holds the messages, [`RuntimeService`] and [`ImageService`] the calls as object-safe traits. Whoever
//! drives a runtime holds `Arc<dyn RuntimeService>` and does not know which: the `client` module talks to
//! containerd or CRI-O, an embedded runtime implements the traits itself, the `testing` module has one in
//! memory. The `server` module puts any of them behind a socket. The crate holds no state besides the
//! client's connection and the fake, and every method may be called from any task.
//!
//! A pod of one container, on whichever runtime listens:
//!
//! ```no_run
//! use coracle_cri::{ImageService, RuntimeService, Status, client::Client, v1::*};
//!
//! async fn run(client: &Client) -> Result<String, Status> {
//!     let image = Some(ImageSpec { image: "docker.io/library/busybox:1.37".into(), ..Default::default() });
//!     client.pull_image(PullImageRequest { image: image.clone(), ..Default::default() }).await?;
//!
//!     let metadata = PodSandboxMetadata { name: "hello".into(), uid: "1".into(), ..Default::default() };
//!     let sandbox = PodSandboxConfig {
//!         metadata: Some(metadata),
//!         log_directory: "/var/log/pods/hello".into(),
//!         ..Default::default()
//!     };
//!     let request = RunPodSandboxRequest { config: Some(sandbox.clone()), ..Default::default() };
//!     let pod_sandbox_id = client.run_pod_sandbox(request).await?.pod_sandbox_id;
//!
//!     let config = ContainerConfig {
//!         metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
//!         image,
//!         command: vec!["echo".into(), "hello".into()],
//!         log_path: "main.log".into(),
//!         ..Default::default()
//!     };
//!     let request =
//!         CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: Some(sandbox) };
//!     let container_id = client.create_container(request).await?.container_id;
//!     client.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
//!     Ok(container_id)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("unix:///run/containerd/containerd.sock")?;
//! println!("{}", run(&client).await?);
//! # Ok(())
//! # }
//! ```
//!
//! Facts that a caller of several runtimes must know: `StopPodSandbox` of a sandbox that is gone answers
//! `NotFound` on containerd 1.6 though it is idempotent by definition; a container that ends at once may report
//! an end before its start; containerd 1.6 has neither events nor `RuntimeConfig` (`Unimplemented`).

#[cfg(any(feature = "client", feature = "server"))]
mod calls;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
mod deadline;
mod error;
mod redact;
#[cfg(feature = "server")]
pub mod server;
mod service;
#[cfg(feature = "testing")]
pub mod testing;

/// The messages of `runtime.v1`, and the gRPC client and server stubs that tonic makes of its services.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

#[cfg(feature = "client")]
pub use deadline::Deadlines;
pub use error::bounded;
pub use service::{ImageService, RuntimeService, Stream};
pub use tonic::{Code, Status};

/// The largest message either side takes: 16 MiB, as the kubelet and containerd have it.
#[cfg(any(feature = "client", feature = "server"))]
pub const MAX_MESSAGE: usize = 16 << 20;
