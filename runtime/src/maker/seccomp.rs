//! The seccomp section of a spec as a filter: compiled by libseccomp, kept for the next container, loaded by the
//! container's process at the last moment that privileges allow.
//!
//! Compiling takes several times the rest of `create`, and a node has few different profiles: compiled filters lie in
//! a directory below the maker's root (a tmpfs), named by the digest of what they were made of.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Seek};
use std::path::Path;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};
use sha2::{Digest, Sha256};

use super::sys;

/// Instructions that the kernel takes in one filter.
const MAX_INSTRUCTIONS: usize = 4096;

/// Kept filters beyond this number are all dropped: no node has so many profiles at a time.
const MAX_KEPT: usize = 64;

/// Why a profile cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("seccomp action {0:?} is not supported")]
    Action(LinuxSeccompAction),
    #[error("seccomp architecture {0:?} is not supported")]
    Arch(Arch),
    #[error("building the seccomp filter")]
    Build(#[source] libseccomp::error::SeccompError),
    #[error("seccomp rule for {syscall}")]
    Rule { syscall: String, source: libseccomp::error::SeccompError },
    #[error("writing the seccomp filter")]
    Write(#[source] io::Error),
    #[error("the seccomp filter has {0} instructions, the kernel takes {MAX_INSTRUCTIONS}")]
    Size(usize),
    #[error("loading the seccomp filter")]
    Load(#[source] io::Error),
}

/// A filter ready to be loaded.
#[derive(Clone)]
pub(crate) struct Filter {
    instructions: Vec<u64>,
    flags: u32,
}

impl Filter {
    /// The filter of a profile, from `kept` or compiled and put there. A directory that cannot be used costs time,
    /// nothing else.
    pub(crate) fn of(profile: &LinuxSeccomp, kept: &Path) -> Result<Self, SeccompError> {
        let flags = profile.flags().iter().flatten().fold(0, |set, flag| set | flag_bit(*flag));
        let file = kept.join(name(profile));
        if let Some(instructions) = fs::read(&file).ok().and_then(|bytes| decode(&bytes).ok()) {
            return Ok(Self { instructions, flags });
        }
        let bytes = compile(profile)?;
        let instructions = decode(&bytes)?;
        let _ = keep(kept, &file, &bytes);
        Ok(Self { instructions, flags })
    }

    /// Applies the filter to this process for good.
    pub(crate) fn load(&self) -> Result<(), SeccompError> {
        sys::load_seccomp(&self.instructions, self.flags).map_err(SeccompError::Load)
    }
}

/// A name that changes with everything that the filter depends on.
fn name(profile: &LinuxSeccomp) -> String {
    let text = serde_json::to_vec(profile).unwrap_or_default();
    let library = libseccomp::ScmpVersion::current().map(|v| format!("{v:?}")).unwrap_or_default();
    let mut digest = Sha256::new();
    for part in [text.as_slice(), library.as_bytes(), env!("CARGO_PKG_VERSION").as_bytes()] {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize())
}

fn decode(bytes: &[u8]) -> Result<Vec<u64>, SeccompError> {
    let (words, rest) = bytes.as_chunks::<8>();
    if words.is_empty() || !rest.is_empty() || words.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::Size(words.len()));
    }
    Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

fn keep(dir: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if fs::read_dir(dir)?.count() >= MAX_KEPT {
        fs::remove_dir_all(dir)?;
        fs::create_dir_all(dir)?;
    }
    let temporary = file.with_extension(std::process::id().to_string());
    fs::write(&temporary, bytes)?;
    fs::rename(temporary, file)
}

/// Compiles a profile. Names that libseccomp does not know belong to other architectures or newer kernels and are
/// passed over, as runc does.
fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut ctx = ScmpFilterContext::new(default).map_err(SeccompError::Build)?;
    for arch in profile.architectures().iter().flatten() {
        ctx.add_arch(architecture(*arch)?).map_err(SeccompError::Build)?;
    }
    // A binary tree over the numbers costs each system call of the container a handful of comparisons instead of
    // hundreds. Older libraries lack it; the filter means the same without.
    let _ = ctx.set_ctl_optimize(2);
    for rule in profile.syscalls().iter().flatten() {
        add_rule(&mut ctx, rule, default)?;
    }
    let file = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = fs::File::from(file.map_err(|error| SeccompError::Write(error.into()))?);
    ctx.export_bpf(&file).map_err(SeccompError::Build)?;
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(SeccompError::Write)?;
    Ok(bytes)
}

fn add_rule(
    ctx: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
) -> Result<(), SeccompError> {
    let action = action(rule.action(), rule.errno_ret())?;
    // libseccomp refuses a rule that says what the default says.
    if action == default {
        return Ok(());
    }
    for name in rule.names() {
        let Ok(number) = ScmpSyscall::from_name(name) else { continue };
        let fault = |source| SeccompError::Rule { syscall: name.clone(), source };
        let comparisons: Vec<_> = rule.args().iter().flatten().map(comparison).collect();
        let indices: HashSet<_> = rule.args().iter().flatten().map(LinuxSeccompArg::index).collect();
        if comparisons.is_empty() {
            ctx.add_rule(action, number).map_err(fault)?;
        } else if indices.len() == comparisons.len() {
            ctx.add_rule_conditional(action, number, &comparisons).map_err(fault)?;
        } else {
            // One rule may compare an argument once; several comparisons of one argument are rules of their own.
            for comparison in &comparisons {
                ctx.add_rule_conditional(action, number, std::slice::from_ref(comparison)).map_err(fault)?;
            }
        }
    }
    Ok(())
}

fn comparison(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let op = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        // In the OCI form `value` is the mask and `valueTwo` what the masked argument must be.
        LinuxSeccompOperator::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(arg.value()),
    };
    let datum = match arg.op() {
        LinuxSeccompOperator::ScmpCmpMaskedEq => arg.value_two().unwrap_or(0),
        _ => arg.value(),
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    let errno = errno.map_or(libc::EPERM, |value| value as i32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(errno as u16),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        // A notifier needs a listener process that outlives the maker; nothing here offers one.
        LinuxSeccompAction::ScmpActNotify => return Err(SeccompError::Action(action)),
    })
}

fn architecture(arch: Arch) -> Result<ScmpArch, SeccompError> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        other => return Err(SeccompError::Arch(other)),
    })
}

/// `SECCOMP_FILTER_FLAG_*`.
fn flag_bit(flag: LinuxSeccompFilterFlag) -> u32 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 1 << 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_is_compiled_once() {
        let caps = oci_spec::runtime::LinuxCapabilities::default();
        let profile = crate::spec::seccomp_default::profile(&caps, std::env::consts::ARCH);
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        let first = Filter::of(&profile, &kept).unwrap();
        assert!(first.instructions.len() > 100 && first.flags == 0);
        let files: Vec<_> = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        assert_eq!(Filter::of(&profile, &kept).unwrap().instructions, first.instructions);
        // What is torn is made anew.
        fs::write(&files[0], b"torn").unwrap();
        assert_eq!(Filter::of(&profile, &kept).unwrap().instructions, first.instructions);
        assert_eq!(fs::metadata(&files[0]).unwrap().len(), first.instructions.len() as u64 * 8);
    }

    #[test]
    fn what_needs_a_listener_is_refused() {
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(LinuxSeccompAction::ScmpActNotify);
        assert!(matches!(Filter::of(&profile, Path::new("/nonexistent")), Err(SeccompError::Action(_))));
    }
}
