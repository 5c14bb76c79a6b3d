//! Every file of the corpus through its target once: what a fuzzer found stays found.
#![allow(clippy::unwrap_used, reason = "a test says what it expects with unwrap")]

use std::path::Path;

use coracle_fuzz::TARGETS;

#[test]
fn every_input_that_was_kept_passes() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            let passes = std::panic::catch_unwind(|| (target.run)(&input)).is_ok();
            assert!(passes, "{} fails on {}", target.name, path.display());
            count += 1;
        }
        assert!(count > 0, "{} has no corpus", target.name);
    }
}
