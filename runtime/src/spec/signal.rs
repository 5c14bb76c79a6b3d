//! Signals by name and number, and which one stops a container. Pure.

use coracle_cri::v1;

/// Linux signals by name; the aliases of libc that images use are among them.
const NAMES: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", 34),
];

/// The highest signal number of Linux.
const MAX: i32 = 64;

/// The number of a signal given as `TERM`, `SIGTERM`, `sigterm`, `15`, `SIGRTMIN+3` or `RTMAX-1`.
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=MAX).contains(&number).then_some(number);
    }
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    // libc keeps 32 and 33 for itself, so RTMIN is 34 for programs.
    let number = match name.strip_prefix("RTMIN+") {
        Some(offset) => 34 + offset.parse::<i32>().ok()?,
        None if name == "RTMAX" => MAX,
        None => MAX - name.strip_prefix("RTMAX-")?.parse::<i32>().ok()?,
    };
    (34..=MAX).contains(&number).then_some(number)
}

/// The signal that stops a container: what the pod says, else its image, else SIGTERM. An image that names none
/// that exists is stopped by SIGTERM too.
pub fn stop_signal(pod: v1::Signal, image: &str) -> i32 {
    let named = match pod {
        v1::Signal::RuntimeDefault => number(image),
        signal => number(&oci_name(signal)),
    };
    named.filter(|number| *number > 0).unwrap_or(15)
}

/// CRI writes `SIGRTMINPLUS3` and `SIGRTMAXMINUS2` where everybody else has signs.
fn oci_name(signal: v1::Signal) -> String {
    signal.as_str_name().replace("PLUS", "+").replace("MINUS", "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-14", Some(50)),
            ("SIGRTMAX", Some(64)),
            ("SIGRTMIN+31", None),
            ("65", None),
            ("SIGNOPE", None),
            ("", None),
        ] {
            assert_eq!(number(text), want, "{text}");
        }
    }

    #[test]
    fn the_pod_comes_before_the_image() {
        assert_eq!(stop_signal(v1::Signal::RuntimeDefault, ""), 15);
        assert_eq!(stop_signal(v1::Signal::RuntimeDefault, "SIGQUIT"), 3);
        assert_eq!(stop_signal(v1::Signal::RuntimeDefault, "nonsense"), 15);
        assert_eq!(stop_signal(v1::Signal::Sigusr1, "SIGQUIT"), 10);
        assert_eq!(stop_signal(v1::Signal::Sigrtminplus3, ""), 37);
        assert_eq!(stop_signal(v1::Signal::Sigrtmaxminus2, ""), 62);
    }
}
