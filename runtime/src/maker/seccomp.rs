//! Compiles the seccomp section of a spec with libseccomp into a filter, and loads it. The filter is built before
//! the container's process exists as far as errors go, and loaded at the last moment that privileges allow.

use std::collections::HashSet;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

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
    #[error("loading the seccomp filter")]
    Load(#[source] libseccomp::error::SeccompError),
}

/// A filter ready to be loaded.
pub(crate) struct Filter(ScmpFilterContext);

impl Filter {
    /// Compiles a profile. Names that libseccomp does not know belong to other architectures or newer kernels and
    /// are passed over, as runc does.
    pub(crate) fn build(profile: &LinuxSeccomp) -> Result<Self, SeccompError> {
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        let mut ctx = ScmpFilterContext::new(default).map_err(SeccompError::Build)?;
        for arch in profile.architectures().iter().flatten() {
            ctx.add_arch(architecture(*arch)?).map_err(SeccompError::Build)?;
        }
        // `no_new_privs` is the spec's decision, not the filter's.
        ctx.set_ctl_nnp(false).map_err(SeccompError::Build)?;
        for flag in profile.flags().iter().flatten() {
            set_flag(&mut ctx, *flag).map_err(SeccompError::Build)?;
        }
        // A binary tree over the numbers costs each system call of the container a handful of comparisons instead
        // of hundreds. Older libraries lack it; the filter means the same without.
        let _ = ctx.set_ctl_optimize(2);
        for rule in profile.syscalls().iter().flatten() {
            add_rule(&mut ctx, rule, default)?;
        }
        Ok(Self(ctx))
    }

    /// Applies the filter to this process for good.
    pub(crate) fn load(&self) -> Result<(), SeccompError> {
        self.0.load().map_err(SeccompError::Load)
    }
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

fn set_flag(
    ctx: &mut ScmpFilterContext,
    flag: LinuxSeccompFilterFlag,
) -> Result<(), libseccomp::error::SeccompError> {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => ctx.set_ctl_log(true),
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => ctx.set_ctl_tsync(true),
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => ctx.set_ctl_ssb(true),
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => ctx.set_ctl_waitkill(true),
    }
    .map(drop)
}
