//! The device rules of a spec as a BPF program for a cgroup v2 cgroup. Pure generation of instructions; `sys.rs`
//! loads and attaches them.
//!
//! The kernel hands the program `struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }`, where
//! `access_type` is `access << 16 | kind`, and refuses the access when the program returns 0. A v1 devices cgroup
//! applies its rules in order, the last word standing; the program asks them in reverse and takes the first match.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// `BPF_DEVCG_ACC_*`.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
/// `BPF_DEVCG_DEV_*`.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// Devices that every container may use, after the rules of the spec, as runc allows them: nodes of its own may be
/// made (not opened), the ones in every /dev, terminals.
const ALWAYS: [Rule; 11] = [
    Rule::new(CHAR, None, None, MKNOD),
    Rule::new(BLOCK, None, None, MKNOD),
    Rule::new(CHAR, Some(1), Some(3), MKNOD | READ | WRITE),
    Rule::new(CHAR, Some(1), Some(5), MKNOD | READ | WRITE),
    Rule::new(CHAR, Some(1), Some(7), MKNOD | READ | WRITE),
    Rule::new(CHAR, Some(1), Some(8), MKNOD | READ | WRITE),
    Rule::new(CHAR, Some(1), Some(9), MKNOD | READ | WRITE),
    Rule::new(CHAR, Some(5), Some(0), MKNOD | READ | WRITE),
    Rule::new(CHAR, Some(5), Some(1), MKNOD | READ | WRITE),
    Rule::new(CHAR, Some(5), Some(2), MKNOD | READ | WRITE),
    Rule::new(CHAR, Some(136), None, MKNOD | READ | WRITE),
];

/// One rule; `None` matches every number, a kind of 0 both kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: u32,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    const fn new(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Self {
        Self { allow: true, kind, major, minor, access }
    }

    fn from_oci(rule: &LinuxDeviceCgroup) -> Self {
        let kind = match rule.typ() {
            Some(LinuxDeviceType::B) => BLOCK,
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => CHAR,
            _ => 0,
        };
        let letters = rule.access().as_deref().unwrap_or("rwm");
        let access = letters.bytes().fold(0, |set, letter| {
            set | match letter {
                b'r' => READ,
                b'w' => WRITE,
                b'm' => MKNOD,
                _ => 0,
            }
        });
        // A negative number stands for every one.
        let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
        Self { allow: rule.allow(), kind, major: number(rule.major()), minor: number(rule.minor()), access }
    }

    fn matches_all(&self) -> bool {
        self.kind == 0 && self.major.is_none() && self.minor.is_none() && self.access == MKNOD | READ | WRITE
    }
}

/// Instructions for these rules; `None` when they allow everything, so that nothing needs attaching.
pub(crate) fn program(rules: &[LinuxDeviceCgroup]) -> Option<Vec<u64>> {
    let mut rules: Vec<Rule> = rules.iter().map(Rule::from_oci).collect();
    // What stands before a rule for everything has no effect.
    if let Some(last) = rules.iter().rposition(Rule::matches_all) {
        rules.drain(..last);
    }
    if rules.first().is_some_and(|rule| rule.allow && rule.matches_all())
        && rules.iter().all(|rule| rule.allow)
    {
        return None;
    }
    rules.extend(ALWAYS);
    Some(assemble(&rules))
}

// Registers: r1 context, r2 kind, r3 access, r4 major, r5 minor, r0 the answer.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    let mut code = vec![
        load_word(2, 1, 0),
        alu64_imm(AND, 2, 0xffff),
        load_word(3, 1, 0),
        alu64_imm(RSH, 3, 16),
        load_word(4, 1, 4),
        load_word(5, 1, 8),
    ];
    for rule in rules.iter().rev() {
        block(&mut code, rule);
        if rule.matches_all() {
            // Nothing behind it is ever reached, and the kernel refuses programs with such parts.
            return code;
        }
    }
    // Without a rule that speaks, the kernel's v1 controller refuses too once it was told to deny all, as every
    // spec does first.
    code.extend([mov_imm(0, 0), EXIT]);
    code
}

fn block(code: &mut Vec<u64>, rule: &Rule) {
    let mut tests = Vec::new();
    if rule.kind != 0 {
        tests.push(jump_ne_imm(2, rule.kind));
    }
    if rule.access != MKNOD | READ | WRITE {
        // An allowing rule must cover all of what is asked; a denying one needs to touch any of it.
        tests.push(mov_reg(1, 3));
        if rule.allow {
            tests.extend([alu64_imm(AND, 1, rule.access), jump_ne_reg(1, 3)]);
        } else {
            tests.extend([alu64_imm(AND, 1, rule.access), jump_eq_imm(1, 0)]);
        }
    }
    tests.extend(rule.major.map(|major| jump_ne_imm(4, major)));
    tests.extend(rule.minor.map(|minor| jump_ne_imm(5, minor)));
    let verdict = [mov_imm(0, u32::from(rule.allow)), EXIT];
    let length = tests.len() + verdict.len();
    for (index, instruction) in tests.iter_mut().enumerate() {
        if is_jump(*instruction) {
            // Jumps count from the next instruction; a failed test leaves the block.
            *instruction |= ((length - index - 1) as u64) << 16;
        }
    }
    code.extend(tests);
    code.extend(verdict);
}

// Encoding of one instruction: opcode in bits 0-7, destination 8-11, source 12-15, offset 16-31, immediate 32-63.
const AND: u8 = 0x50;
const RSH: u8 = 0x70;
const EXIT: u64 = 0x95;
const JNE_IMM: u8 = 0x55;
const JNE_REG: u8 = 0x5d;
const JEQ_IMM: u8 = 0x15;

const fn encode(opcode: u8, dst: u8, src: u8, offset: i16, imm: u32) -> u64 {
    opcode as u64 | (dst as u64) << 8 | (src as u64) << 12 | (offset as u16 as u64) << 16 | (imm as u64) << 32
}

fn load_word(dst: u8, src: u8, offset: i16) -> u64 {
    encode(0x61, dst, src, offset, 0)
}

fn alu64_imm(operation: u8, dst: u8, imm: u32) -> u64 {
    encode(0x07 | operation, dst, 0, 0, imm)
}

fn mov_imm(dst: u8, imm: u32) -> u64 {
    encode(0xb7, dst, 0, 0, imm)
}

fn mov_reg(dst: u8, src: u8) -> u64 {
    encode(0xbf, dst, src, 0, 0)
}

fn jump_ne_imm(dst: u8, imm: u32) -> u64 {
    encode(JNE_IMM, dst, 0, 0, imm)
}

fn jump_eq_imm(dst: u8, imm: u32) -> u64 {
    encode(JEQ_IMM, dst, 0, 0, imm)
}

fn jump_ne_reg(dst: u8, src: u8) -> u64 {
    encode(JNE_REG, dst, src, 0, 0)
}

fn is_jump(instruction: u64) -> bool {
    matches!(instruction as u8, JNE_IMM | JNE_REG | JEQ_IMM)
}

#[cfg(test)]
mod tests;
