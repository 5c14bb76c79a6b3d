//! What the processes of a small node hold in memory, beyond what they use.
//!
//! Called by the agent and the image workers; keeps nothing.

use crate::sys;

/// Keeps the heap of a process small: one arena, and freed memory goes back early.
///
/// Called once at the start, before any thread.
pub fn keep_heap_small() {
    sys::keep_heap_small();
}

/// Gives back what a burst of work needed and what follows does not: free heap pages, and the code that ran for it,
/// which stays in the page cache while there is room and comes back at its next use.
///
/// Costs a millisecond or two. Called after bursts and between stages of work, never in a loop.
pub fn give_back() {
    Code::find().give_back();
}

/// The code and constants of this process, for one that will lose sight of /proc.
pub(crate) struct Code(Vec<std::ops::Range<usize>>);

impl Code {
    /// Finds them. Without the table of mappings there are none: they stay mapped, which costs memory and nothing else.
    pub(crate) fn find() -> Self {
        Self(unchanged_code(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default()))
    }

    /// As [`give_back`].
    pub(crate) fn give_back(&self) {
        sys::trim_heap();
        self.0.iter().cloned().for_each(sys::unmap_code);
    }
}

/// The mappings of files, by their addresses, that cannot be written and of which no page differs from its file.
fn unchanged_code(smaps: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        if let Some(range) = mapping_of_file(line) {
            mapping = range;
        } else if line.split_whitespace().take(2).eq(["Anonymous:", "0"]) {
            found.extend(mapping.take());
        }
    }
    found
}

/// `None` where the line begins no mapping; `Some(None)` where it begins one of another kind.
fn mapping_of_file(line: &str) -> Option<Option<std::ops::Range<usize>>> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    let access = fields.next()?;
    let inode = fields.nth(2)?;
    Some((matches!(access, "r-xp" | "r--p") && inode != "0").then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_its_file_has_it_is_unmapped() {
        let smaps = "00400000-00500000 r--p 00000000 fe:00 12 /bin/coracle\nRss: 8 kB\nAnonymous:             0 kB\n\
            00500000-00600000 r-xp 00100000 fe:00 12 /bin/coracle\nAnonymous:             0 kB\nVmFlags: rd ex\n\
            00600000-00610000 r--p 00200000 fe:00 12 /bin/coracle\nAnonymous:            64 kB\n\
            00610000-00620000 rw-p 00210000 fe:00 12 /bin/coracle\nAnonymous:             0 kB\n\
            7ffc0000-7ffc1000 r-xp 00000000 00:00 0 [vdso]\nAnonymous:             0 kB\n";
        assert_eq!(unchanged_code(smaps), [0x40_0000..0x50_0000, 0x50_0000..0x60_0000]);
    }
}
