//! The programs are run by a small interpreter and, where the kernel lets us, loaded and attached for real.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};

use super::*;

/// Runs a program over a context, by the rules of the kernel's interpreter for the instructions that we emit.
fn run(code: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0_u64; 11];
    let mut at = 0_usize;
    for _ in 0..10_000 {
        let word = code[at];
        let (dst, src) = ((word >> 8 & 0xf) as usize, (word >> 12 & 0xf) as usize);
        let offset = (word >> 16) as u16 as i16;
        let imm = (word >> 32) as u32 as i32 as i64 as u64;
        at += 1;
        let jump = match word as u8 {
            0x61 => {
                assert_eq!(src, 1, "only the context is read");
                registers[dst] = u64::from(context[offset as usize / 4]);
                false
            }
            0x57 => {
                registers[dst] &= imm;
                false
            }
            0x77 => {
                registers[dst] >>= imm;
                false
            }
            0xb7 => {
                registers[dst] = imm;
                false
            }
            0xbf => {
                registers[dst] = registers[src];
                false
            }
            0x55 => registers[dst] != imm,
            0x15 => registers[dst] == imm,
            0x5d => registers[dst] != registers[src],
            0x95 => return registers[0] != 0,
            other => panic!("opcode {other:#x}"),
        };
        if jump {
            at = at.checked_add_signed(offset as isize).unwrap();
        }
    }
    panic!("the program does not end");
}

fn rule(
    allow: bool,
    typ: Option<LinuxDeviceType>,
    major: i64,
    minor: i64,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut builder = LinuxDeviceCgroupBuilder::default().allow(allow).access(access);
    if let Some(typ) = typ {
        builder = builder.typ(typ);
    }
    if major >= 0 {
        builder = builder.major(major);
    }
    if minor >= 0 {
        builder = builder.minor(minor);
    }
    builder.build().unwrap()
}

fn deny_all() -> LinuxDeviceCgroup {
    rule(false, None, -1, -1, "rwm")
}

#[test]
fn an_unprivileged_container_sees_the_common_devices_only() {
    let code = program(&[deny_all(), rule(true, Some(LinuxDeviceType::C), 10, 229, "rw")]).unwrap();
    for (kind, access, major, minor, want) in [
        (CHAR, READ | WRITE, 1, 3, true),
        (CHAR, READ, 136, 7, true),
        (CHAR, MKNOD, 9, 9, true),
        (BLOCK, MKNOD, 8, 0, true),
        (BLOCK, READ, 8, 0, false),
        (BLOCK, READ | MKNOD, 8, 0, false),
        (CHAR, READ | WRITE, 10, 229, true),
        (CHAR, READ, 10, 229, true),
        (CHAR, READ | WRITE | MKNOD, 10, 229, false),
        (BLOCK, READ, 10, 229, false),
        (CHAR, READ, 10, 200, false),
        (CHAR, READ, 1, 1, false),
    ] {
        assert_eq!(run(&code, kind, access, major, minor), want, "{kind} {access} {major}:{minor}");
    }
}

#[test]
fn later_rules_win_and_a_denial_touches_any_of_the_access() {
    let code = program(&[
        rule(true, None, -1, -1, "rwm"),
        rule(false, Some(LinuxDeviceType::B), 8, -1, "w"),
        rule(true, Some(LinuxDeviceType::B), 8, 3, "rwm"),
    ])
    .unwrap();
    assert!(run(&code, BLOCK, READ, 8, 1));
    assert!(!run(&code, BLOCK, WRITE, 8, 1));
    assert!(!run(&code, BLOCK, READ | WRITE, 8, 1));
    assert!(run(&code, BLOCK, READ | WRITE, 8, 3));
    assert!(run(&code, CHAR, WRITE, 10, 1));
}

#[test]
fn privileged_needs_no_program() {
    assert_eq!(program(&[deny_all(), rule(true, None, -1, -1, "rwm")]), None);
    assert!(program(&[rule(true, None, -1, -1, "rwm"), deny_all()]).is_some());
    assert!(program(&[]).is_some());
}

#[test]
fn the_kernel_takes_the_program_and_obeys_it() {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .find(|root| std::path::Path::new(root).join("cgroup.controllers").exists())
        .expect("a cgroup v2 mount");
    let cgroup = std::path::Path::new(root).join(format!("coracle-bpf-{}", std::process::id()));
    std::fs::create_dir(&cgroup).unwrap();
    let code = program(&[deny_all(), rule(true, Some(LinuxDeviceType::C), 10, 229, "rw")]).unwrap();
    let dir = std::fs::File::open(&cgroup).unwrap().into();
    let attached = crate::maker::sys::attach_device_program(&dir, &code);

    // /dev/kmsg (1:11) is refused inside, /dev/zero is not.
    let node = std::env::temp_dir().join(format!("coracle-bpf-{}", std::process::id()));
    let dev = rustix::fs::makedev(1, 11);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, mode, dev).unwrap();
    let procs = cgroup.join("cgroup.procs");
    let inside = |script: String| {
        Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("echo $$ > {}; {script}", procs.display()))
            .stderr(Stdio::null())
            .process_group(0)
            .status()
            .unwrap()
            .success()
    };
    let kmsg = inside(format!("exec 3< {}", node.display()));
    let zero = inside("exec 3< /dev/zero".to_owned());
    std::fs::remove_file(&node).unwrap();
    std::fs::remove_dir(&cgroup).unwrap();
    attached.expect("the program is attached");
    assert!(!kmsg && zero, "kmsg {kmsg}, zero {zero}");
}
