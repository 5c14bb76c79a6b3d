//! `guest`: the whole node in a virtual machine of its own, on kernels and cgroups that this machine has not.
//!
//! QEMU without KVM boots Debian's cloud kernel on a Debian root that is made once ([`root`]); a second disk brings
//! what was built here and the script that the guest begins with ([`payload`]). What the guest prints comes out as
//! it is printed ([`machine`]), and its verdict is the exit code. Nothing here needs anything of the machine but
//! root and Debian packages; nothing of the root or the disks is kept in the repository.

mod machine;
mod payload;
mod root;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::test::MAKER_TESTS;
use crate::{artifacts, setup};

/// How long a guest may take: the processor is emulated, and may be shared with a build.
const LIMIT: Duration = Duration::from_secs(1800);

/// What the guest is and what it does.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// systemd is the guest's first process and runs the node as the repository's unit.
    systemd: bool,
    /// The guest's cgroups are those of version 1.
    cgroup_v1: bool,
    /// The OCI runtime of the guest that makes the containers of the runtime's tests, in the place of our own.
    maker: Option<String>,
    /// Further words of the kernel's command line.
    kernel_arguments: Vec<String>,
    /// Test programs to run instead of those that fit the guest.
    tests: Vec<String>,
}

impl Options {
    /// Reads the words after `guest`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().map(|value| (*value).to_owned()).context(format!("{word} what?"));
            match *word {
                "--systemd" => options.systemd = true,
                "--cgroup-v1" => options.cgroup_v1 = true,
                "--maker" => options.maker = Some(value()?),
                "--kernel-arg" => options.kernel_arguments.push(value()?),
                "--test" => options.tests.push(value()?),
                other => bail!("guest does not know {other}"),
            }
        }
        Ok(options)
    }

    /// The test programs that fit this guest, each with the arguments it is run with.
    fn test_programs(&self) -> Vec<String> {
        if !self.tests.is_empty() {
            return self.tests.clone();
        }
        let lacks_memory = self.kernel_arguments.iter().any(|word| word == "cgroup_disable=memory");
        let programs: &[&str] = if self.maker.is_some() {
            MAKER_TESTS
        } else if self.systemd {
            &["systemd --ignored"]
        } else if lacks_memory {
            &["no_memory_controller --ignored"]
        } else {
            &[
                "limits",
                "pods",
                "bad_input",
                "old_kernel",
                "chaos",
                "apparmor --ignored",
                "hugepages --ignored",
            ]
        };
        programs.iter().map(|program| (*program).to_owned()).collect()
    }
}

/// Boots the guest and runs the tests in it.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::for_guest()?;
    let built = artifacts::build_or_given()?;
    let tests = artifacts::static_tests(&options.test_programs())?;
    let root = root::make()?;
    let disk = payload::make(&built, &tests, options)?;
    machine::run(&root, &disk, &options.kernel_arguments, LIMIT)
}
