//! Starts a shim: binds its socket, leaves its parent, moves to its cgroup, then runs the loop.
//!
//! The caller waits for the process that it started: when that ends with 0, it has printed the shim's pid and the
//! socket takes connections. Anything else is a failure, told on its standard error.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::args::Serve;
use crate::cgroup::{self, JoinError};
use crate::maker::Maker;
use crate::server::Shim;
use crate::sys::{self, Forked};

/// Below this the kernel kills nearly everything else first; the kubelet gives runtimes -999.
const OOM_SCORE_ADJ: &str = "-998";

/// A shim that did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("cannot serve on {path}")]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another shim serves on {0}")]
    Taken(PathBuf),
    #[error("cannot open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot leave the caller's session")]
    Detach(#[source] io::Error),
    #[error("the shim ended before it was ready")]
    NotReady,
    #[error("cannot move to the shim's own cgroup")]
    Cgroup(#[source] JoinError),
    #[error("cannot set up the loop")]
    SetUp(#[source] io::Error),
    #[error("the loop failed")]
    Loop(#[source] io::Error),
}

/// Runs the role; in the process that the caller waits for it returns early.
pub(crate) fn serve(options: Serve) -> Result<(), ServeError> {
    crate::SANDBOX.get_or_init(|| options.id.clone());
    // What the caller forgot to close would be open in every container.
    sys::close_inherited();
    if options.foreground {
        let shim = set_up(options)?;
        print_pid(std::process::id());
        return shim.run().map_err(ServeError::Loop);
    }
    let log = options.log.clone();
    if let Some(child) = in_background(|| open_log(log.as_deref()), || set_up(options))? {
        print_pid(child.unsigned_abs());
    }
    Ok(())
}

/// Runs the loop in a process of its own. Returns its pid once it serves; in that process itself nothing, at the end.
pub(crate) fn in_background(
    open_log: impl FnOnce() -> Result<File, ServeError>,
    set_up: impl FnOnce() -> Result<Shim, ServeError>,
) -> Result<Option<i32>, ServeError> {
    let (mut ready, mut tell_ready) = sys::pipe().map_err(ServeError::Detach)?;
    match sys::fork_session().map_err(ServeError::Detach)? {
        Forked::Parent { child } => {
            drop(tell_ready);
            let mut word = Vec::new();
            ready.read_to_end(&mut word).map_err(ServeError::Detach)?;
            // Without a word the child has told why on the standard error that both share.
            if word.is_empty() { Err(ServeError::NotReady) } else { Ok(Some(child)) }
        }
        Forked::Child => {
            drop(ready);
            let log = open_log()?;
            let shim = set_up()?;
            leave_stdio(&log)?;
            tell_ready.write_all(b"1").map_err(ServeError::Detach)?;
            drop((tell_ready, log));
            shim.run().map_err(ServeError::Loop)?;
            Ok(None)
        }
    }
}

fn print_pid(pid: u32) {
    // A caller that does not read it knows the pid by Connect.
    drop(writeln!(io::stdout(), "{pid}"));
}

fn set_up(options: Serve) -> Result<Shim, ServeError> {
    let own_score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    protect(OOM_SCORE_ADJ);
    if let Some(limit) = options.descriptors
        && let Err(error) = sys::limit_descriptors(limit)
    {
        crate::tell(format_args!("containers begin with the runtime's limit of open files: {error}"));
    }
    if let Some(path) = &options.cgroup {
        cgroup::join(path).map_err(ServeError::Cgroup)?;
    }
    let listener = bind(&options.socket)?;
    std::env::set_current_dir("/").map_err(ServeError::SetUp)?;
    let maker = Maker::new(options.maker, options.maker_root, options.systemd_cgroup, own_score);
    let shim = Shim::new(options.id, maker, listener, options.socket).map_err(ServeError::SetUp)?;
    sys::trim_allocator();
    Ok(shim)
}

/// Says how willingly the kernel may kill this process for want of memory.
pub(crate) fn protect(oom_score_adj: &str) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", oom_score_adj) {
        crate::tell(format_args!("the shim is not protected from the OOM killer: oom_score_adj: {error}"));
    }
}

/// Binds a socket that root alone may reach, of any length of path.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, ServeError> {
    let broken = |source| ServeError::Bind { path: path.to_path_buf(), source };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(broken(io::ErrorKind::InvalidInput.into()));
    };
    let folder = File::open(folder).map_err(broken)?;
    // The kernel takes 107 bytes; through an open folder only the name counts.
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    if path.exists() {
        if UnixStream::connect(&short).is_ok() {
            return Err(ServeError::Taken(path.to_path_buf()));
        }
        fs::remove_file(path).map_err(broken)?;
    }
    let before = sys::umask(0o177);
    let listener = UnixListener::bind(&short);
    sys::umask(before);
    // What containers inherit when their spec names no umask.
    sys::umask(0o022);
    listener.map_err(broken)
}

fn open_log(path: Option<&Path>) -> Result<File, ServeError> {
    let path = path.unwrap_or(Path::new("/dev/null"));
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| ServeError::Open { path: path.to_path_buf(), source })
}

/// Lets go of the caller's standard streams: who reads them to their end must not wait for the shim's.
fn leave_stdio(log: &File) -> Result<(), ServeError> {
    let null = File::options().read(true).write(true).open("/dev/null").map_err(ServeError::Detach)?;
    for (file, target) in [(&null, 0), (&null, 1), (log, 2)] {
        sys::replace_stdio(file, target).map_err(ServeError::Detach)?;
    }
    Ok(())
}
