//! Log files as runtimes write them, read whole, from the end, and while they are written.

use std::fs;
use std::io::Write as _;

use super::*;

fn show(log: &mut LogReader, filter: &mut LogFilter) -> String {
    let mut out = Vec::new();
    while let Some(record) = log.next_record().unwrap() {
        if !filter.show(&record, &mut out) {
            break;
        }
    }
    String::from_utf8(out).unwrap()
}

fn read(text: &str, tail: Option<u64>, mut filter: LogFilter) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    show(&mut LogReader::open(file.path(), tail).unwrap(), &mut filter)
}

const LOG: &str = "2026-01-01T00:00:00.1Z stdout P ab\n\
                   2026-01-01T00:00:00.2Z stdout F cd ef\n\
                   what is this\n\
                   2026-01-01T00:00:01Z stderr F oh\n\
                   2026-01-01T00:00:02+00:00 stdout F \n\
                   2026-01-01T00:00:03Z stdout F half";

#[test]
fn records_are_joined_and_what_is_not_whole_waits() {
    assert_eq!(read(LOG, None, LogFilter::default()), "abcd ef\noh\n\n");
    let with_times = LogFilter { timestamps: true, ..LogFilter::default() };
    assert_eq!(
        read(LOG, None, with_times),
        "2026-01-01T00:00:00.1Z abcd ef\n2026-01-01T00:00:01Z oh\n2026-01-01T00:00:02+00:00 \n"
    );
}

#[test]
fn filters_leave_out() {
    let at = "2026-01-01T00:00:01Z".parse::<jiff::Timestamp>().unwrap().as_nanosecond();
    assert_eq!(read(LOG, None, LogFilter { since: Some(at), ..LogFilter::default() }), "oh\n\n");
    assert_eq!(
        read(LOG, None, LogFilter { stream: Some(LogStream::Stderr), ..LogFilter::default() }),
        "oh\n"
    );
    for (limit, expected) in [(3, "abc"), (8, "abcd ef\n"), (9, "abcd ef\no")] {
        assert_eq!(read(LOG, None, LogFilter { limit: Some(limit), ..LogFilter::default() }), expected);
    }
}

#[test]
fn the_last_lines_are_whole_lines() {
    let log = LOG.replace("what is this\n", "");
    for (tail, expected) in
        [(0, ""), (1, "\n"), (2, "oh\n\n"), (3, "abcd ef\noh\n\n"), (9, "abcd ef\noh\n\n")]
    {
        assert_eq!(read(&log, Some(tail), LogFilter::default()), expected, "{tail}");
    }
}

#[test]
fn the_last_lines_of_a_long_log_are_found_from_its_end() {
    let mut text = String::new();
    for number in 0..20_000 {
        let tag = if number % 3 == 0 { "P" } else { "F" };
        text.push_str(&format!("2026-01-01T00:00:00Z stdout {tag} {number:010}\n"));
    }
    let all = read(&text, None, LogFilter::default());
    let lines: Vec<&str> = all.split_inclusive('\n').collect();
    for tail in [1, 10, 5_000, 13_000, 50_000] {
        let expected = lines[lines.len().saturating_sub(tail)..].concat();
        assert_eq!(read(&text, Some(tail as u64), LogFilter::default()), expected, "{tail}");
    }
}

#[test]
fn a_log_is_followed_over_its_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    fs::write(&path, "t stdout F 1\nt stdout F ").unwrap();
    let mut log = LogReader::open(&path, None).unwrap();
    let mut filter = LogFilter::default();
    assert_eq!(show(&mut log, &mut filter), "1\n");
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"2\n").unwrap();
    assert_eq!(show(&mut log, &mut filter), "2\n");
    assert!(!log.reopen_if_rotated().unwrap());
    fs::rename(&path, dir.path().join("0.log.20260101")).unwrap();
    file.write_all(b"t stdout F 3\n").unwrap();
    assert!(!log.reopen_if_rotated().unwrap());
    fs::write(&path, "t stdout F 4\n").unwrap();
    assert!(log.is_rotated().unwrap());
    assert_eq!(show(&mut log, &mut filter), "3\n");
    assert!(log.reopen_if_rotated().unwrap());
    assert_eq!(show(&mut log, &mut filter), "4\n");
}

#[test]
fn a_line_without_an_end_costs_bounded_memory() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), [vec![b'x'; 3 << 20], b"\nt stdout F ok\n".to_vec()].concat()).unwrap();
    let mut log = LogReader::open(file.path(), None).unwrap();
    assert_eq!(show(&mut log, &mut LogFilter::default()), "ok\n");
    assert!(log.line.capacity() <= 2 << 20);
}
