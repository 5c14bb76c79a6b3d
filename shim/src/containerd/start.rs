//! `start`: answers where the pod's shim listens; starts it when there is none. Called once, in a process of its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use coracle_shim::protocol::bootstrap::{BootstrapParams, BootstrapResult};
use prost::Message;

use super::options::{self, Options, OptionsError, Record};
use super::publisher::Publisher;
use super::{Caller, Command};
use crate::bundle;
use crate::cgroup;
use crate::maker::Maker;
use crate::serve::{self, ServeError};
use crate::server::Shim;
use crate::sys;

/// Where sockets go when containerd does not say.
const SOCKETS: &str = "/run/containerd/s";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot tell the folder of the bundle")]
    Bundle(#[source] io::Error),
    #[error("cannot read the runtime options")]
    Options(#[source] OptionsError),
    #[error("cannot make {path}")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the shim")]
    Serve(#[source] ServeError),
    #[error("cannot answer")]
    Answer(#[source] io::Error),
}

/// What containerd says beyond its arguments.
#[derive(Debug, Default)]
struct Said {
    options: Options,
    socket_dir: Option<String>,
    ttrpc_address: String,
    /// Whether it speaks the protocol of containerd 2.3, and so version 3 of the Task API.
    bootstrap: bool,
}

pub(crate) fn start(command: &Command) -> Result<(), StartError> {
    sys::close_inherited();
    let said = listen(command)?;
    let bundle = command.bundle.clone().unwrap_or(std::env::current_dir().map_err(StartError::Bundle)?);
    let group = bundle::group(&bundle).unwrap_or_else(|| command.id.clone());
    let folder = PathBuf::from(said.socket_dir.as_deref().unwrap_or(SOCKETS));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|source| StartError::Folder { path: folder.clone(), source })?;
    let socket = folder.join(socket_name([&command.address, &command.namespace, &group]));
    if UnixStream::connect(&socket).is_err() {
        let started =
            serve::in_background(|| open_log(&bundle), || set_up(command, &said, group, socket.clone()));
        match started {
            // The loop has ended in the process that was to be the shim.
            Ok(None) => return Ok(()),
            Ok(Some(_)) => {}
            Err(error) => return Err(StartError::Serve(error)),
        }
    }
    answer(&said, &socket, &bundle).map_err(StartError::Answer)
}

fn listen(command: &Command) -> Result<Said, StartError> {
    let input = options::input().map_err(StartError::Options)?;
    let ttrpc_address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    // An older containerd writes its options, which may pass for parameters but for their names.
    match BootstrapParams::decode(input.as_slice()) {
        Ok(params) if params.instance_id == command.id && params.namespace == command.namespace => {
            let any = params.extensions.into_iter().filter_map(|extension| extension.value);
            let options = any.map(|any| Options::decode(&any)).find_map(Result::ok).unwrap_or_default();
            let ttrpc_address = match params.containerd_ttrpc_address {
                address if address.is_empty() => ttrpc_address,
                address => address,
            };
            Ok(Said { options, socket_dir: params.socket_dir, ttrpc_address, bootstrap: true })
        }
        _ => {
            let (_, options) = Options::alone(&input).map_err(StartError::Options)?;
            Ok(Said { options, ttrpc_address, ..Said::default() })
        }
    }
}

/// The name of a pod's socket, as short as a path to it must be: FNV-1a of 128 bits over what tells pods apart.
fn socket_name(parts: [&str; 3]) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    format!("coracle-{hash:032x}")
}

/// The pipe beside the bundle that containerd reads. It is open for both directions, so that it breaks for nobody's end.
fn open_log(bundle: &Path) -> Result<File, ServeError> {
    let path = bundle.join("log");
    let open = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
    match open {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            File::options().write(true).open("/dev/null").map_err(|source| ServeError::Open { path, source })
        }
        other => other.map_err(|source| ServeError::Open { path, source }),
    }
}

fn set_up(command: &Command, said: &Said, group: String, socket: PathBuf) -> Result<Shim, ServeError> {
    crate::SANDBOX.get_or_init(|| group.clone());
    let options = &said.options;
    let own_score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    // One more than containerd itself, of whom it has the score, as containerd's own shims do it.
    let score = own_score.trim().parse::<i32>().map_or(0, |score| (score + 1).min(1000));
    serve::protect(&score.to_string());
    if !options.shim_cgroup.is_empty() {
        cgroup::join(&options.shim_cgroup).map_err(ServeError::Cgroup)?;
    }
    let listener = serve::bind(&socket)?;
    std::env::set_current_dir("/").map_err(ServeError::SetUp)?;
    let maker = Maker::new(
        vec![options.program()],
        options.maker_root(&command.namespace),
        options.systemd_cgroup,
        own_score,
    );
    let publisher = Publisher::new(&said.ttrpc_address, command.namespace.clone());
    let record = Record { version: 1, socket: socket.clone(), options: options.clone() };
    let mut shim = Shim::new(group, maker, listener, socket).map_err(ServeError::SetUp)?;
    shim.caller = Some(Caller { publisher, record });
    sys::trim_allocator();
    Ok(shim)
}

fn answer(said: &Said, socket: &Path, bundle: &Path) -> io::Result<()> {
    let address = format!("unix://{}", socket.display());
    let mut stdout = io::stdout();
    if said.bootstrap {
        let result = BootstrapResult { version: 3, address, protocol: "ttrpc".into() };
        stdout.write_all(&result.encode_to_vec())?;
    } else {
        // Every containerd takes this, and asks for version 2 then. An old one that is restarted finds its shims by
        // this file; a newer one writes its own.
        fs::write(bundle.join("address"), &address)?;
        stdout.write_all(address.as_bytes())?;
    }
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_different_pods_have_different_names() {
        let name = socket_name(["/run/containerd.sock", "k8s.io", "pod"]);
        assert_eq!(name.len(), 40);
        assert_eq!(name, socket_name(["/run/containerd.sock", "k8s.io", "pod"]));
        for other in [["/run/containerd.sock", "k8s.iop", "od"], ["/run/c.sock", "k8s.io", "pod"]] {
            assert_ne!(name, socket_name(other));
        }
    }
}
