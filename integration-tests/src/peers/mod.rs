//! The programs that judge the node or stand beside it: a real control plane, a stock node, the suites.
//!
//! They are built from the Go modules in `peers/`, whose go.mod and go.sum pin every version and hash, into a cache
//! outside the tree; a folder there is named by the hash of what it was built from, so a changed module is
//! built anew and an unchanged one never. Several processes may build at once: each file appears by a rename.

mod go;
mod recipe;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

pub use go::toolchain;
use recipe::{Compiler, MODULES, Module, Product};

/// What the cluster itself needs.
pub const CONTROL_PLANE: &[&str] = &["control-plane", "registry", "pause"];
/// What a stock node needs besides.
pub const REFERENCE_NODE: &[&str] = &[
    "kubelet",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "bridge",
    "host-local",
    "loopback",
    "portmap",
];
/// What every node's pods get their network from.
pub const CNI: &[&str] = &["bridge", "host-local", "loopback", "portmap"];
/// OCI runtimes that make containers in the place of our maker, besides Debian's.
pub const MAKERS: &[&str] = &["runc", "nvidia-container-runtime"];
/// What judges a runtime, and the runtime that is the reference.
pub const CRI_TOOLS: &[&str] =
    &["crictl", "critest", "registry", "pause", "containerd", "containerd-shim-runc-v2", "runc"];
/// What the conformance suite needs besides.
pub const CONFORMANCE: &[&str] = &["e2e.test", "ginkgo", "agnhost"];

/// Where the built programs are.
#[derive(Clone, Debug)]
pub struct Peers {
    cache: PathBuf,
}

impl Default for Peers {
    fn default() -> Self {
        Self::new()
    }
}

impl Peers {
    /// The cache of this machine: `CORACLE_PEERS_DIR`, `XDG_CACHE_HOME/coracle-peers` or `/var/cache/coracle-peers`.
    pub fn new() -> Self {
        let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        let cache = named("CORACLE_PEERS_DIR")
            .or_else(|| Some(named("XDG_CACHE_HOME")?.join("coracle-peers")))
            .unwrap_or_else(|| PathBuf::from("/var/cache/coracle-peers"));
        Self { cache }
    }

    /// The names of all programs.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MODULES.iter().flat_map(|module| module.products).map(|product| product.name)
    }

    /// The program of that name, which must have been built.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let (module, product) = find(name)?;
        let path = self.folder(module)?.join(product.name);
        if !path.exists() {
            bail!("{name} is not built yet: run `cargo xtask peers` ({} is missing)", path.display());
        }
        Ok(path)
    }

    /// Builds what is missing of `names`, one after the other, and says what it does.
    pub fn build(&self, names: &[&str]) -> Result<()> {
        let mut missing = Vec::new();
        for name in names {
            let (module, product) = find(name)?;
            let folder = self.folder(module)?;
            if !folder.join(product.name).exists() {
                missing.push((module, product, folder));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let go = go::toolchain(&self.cache)?;
        let count = missing.len();
        for (number, (module, product, folder)) in missing.into_iter().enumerate() {
            eprint!("peers: {}/{count} {} ({}) ...", number + 1, product.name, module.version()?);
            let start = Instant::now();
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
            build(&go, module, product, &folder).with_context(|| format!("cannot build {}", product.name))?;
            eprintln!(" {:.0} s", start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// The folder of what a module gives, named by a hash of all that decides about it.
    fn folder(&self, module: &Module) -> Result<PathBuf> {
        let mut files = Vec::new();
        collect(&module.folder(), &mut files)?;
        files.sort();
        let mut hash = Sha256::new();
        for path in files {
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(module.folder()).unwrap_or(&path);
            hash.update(format!("{} {}\n", name.display(), bytes.len()));
            hash.update(bytes);
        }
        hash.update(format!("{module:?} {}", std::env::consts::ARCH));
        Ok(self.cache.join(format!("{}-{}", module.name, &hex::encode(hash.finalize())[..16])))
    }
}

fn find(name: &str) -> Result<(&'static Module, &'static Product)> {
    let all = MODULES.iter().flat_map(|module| module.products.iter().map(move |product| (module, product)));
    all.clone().find(|(_, product)| product.name == name).with_context(|| {
        format!("no such program: {name} ({})", Peers::names().collect::<Vec<_>>().join(", "))
    })
}

/// The files below a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn build(go: &Path, module: &Module, product: &Product, folder: &Path) -> Result<()> {
    let draft = folder.join(format!(".{}.{}", product.name, std::process::id()));
    let mut command = match product.compiler {
        Compiler::C => {
            let source = go::module_folder(go, module)?.join(product.package);
            let mut command = Command::new("cc");
            command.args(["-Os", "-static", "-s", "-o"]).arg(&draft).arg(source);
            command
        }
        Compiler::Go | Compiler::GoTest | Compiler::Cgo => {
            let mut command = go::command(go);
            command.args(if product.compiler == Compiler::GoTest {
                &["test", "-c", "-vet=off"][..]
            } else {
                &["build"]
            });
            command.args([
                "-trimpath",
                "-buildvcs=false",
                "-tags",
                product.tags,
                "-ldflags",
                &module.ldflags()?,
            ]);
            command.arg("-o").arg(&draft).arg(product.package);
            command.env("CGO_ENABLED", if product.compiler == Compiler::Cgo { "1" } else { "0" });
            command
        }
    };
    let output = command
        .current_dir(module.folder())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !output.status.success() {
        let _ = std::fs::remove_file(&draft);
        bail!(
            "{:?} ended with {}:\n{}",
            command.get_program(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for alias in product.aliases {
        let path = folder.join(alias);
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(product.name, &path)
            .with_context(|| format!("cannot link {}", path.display()))?;
    }
    // Last, since its presence says that all is there.
    let path = folder.join(product.name);
    std::fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))
}
