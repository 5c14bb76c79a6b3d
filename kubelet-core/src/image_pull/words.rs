//! The kubelet's words: errors and durations as Go prints them.
//!
//! Called by the puller; pure.

use std::time::Duration;

use coracle_cri::{Code, Status};

/// An error of a runtime as the kubelet shows it: an unknown code says nothing and is left out.
pub(super) fn rpc_text(status: &Status) -> String {
    match status.code() {
        Code::Unknown => status.message().to_owned(),
        // The one code that Go spells otherwise.
        Code::Cancelled => format!("rpc error: code = Canceled desc = {}", status.message()),
        code => format!("rpc error: code = {code:?} desc = {}", status.message()),
    }
}

/// Several errors as one text, each once.
pub(super) fn joined(errors: &[Status]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in errors.iter().map(rpc_text) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match &texts[..] {
        [only] => only.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }
}

/// Waiting reason and message of a failed pull. Runtimes tell two causes apart by the start of the text.
pub(super) fn criterion(image: &str, text: &str) -> (&'static str, String) {
    for (reason, words) in [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ] {
        if let Some(rest) = text.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {words}{rest}"));
        }
    }
    ("ErrImagePull", text.to_owned())
}

/// A duration in whole milliseconds, as `time.Duration` prints itself.
pub(super) fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let fraction = format!("{:03}", rest % 1000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{dot}{fraction}s", rest / 1000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (millis, text) in [
            (0, "0s"),
            (7, "7ms"),
            (1000, "1s"),
            (1050, "1.05s"),
            (59_999, "59.999s"),
            (60_000, "1m0s"),
            (61_500, "1m1.5s"),
            (3_600_000, "1h0m0s"),
            (7_384_001, "2h3m4.001s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn errors_are_told_apart_by_how_they_begin() {
        let status = |code, text: &str| Status::new(code, text);
        let errors = [status(Code::Unknown, "a"), status(Code::NotFound, "b"), status(Code::Unknown, "a")];
        assert_eq!(joined(&errors), "[a, rpc error: code = NotFound desc = b]");
        assert_eq!(joined(&errors[..1]), "a");
        assert_eq!(rpc_text(&status(Code::Cancelled, "c")), "rpc error: code = Canceled desc = c");
        assert_eq!(
            criterion("i", "RegistryUnavailable: no route"),
            (
                "RegistryUnavailable",
                "image pull failed for i because the registry is unavailable: no route".to_owned()
            )
        );
        assert_eq!(
            criterion("i", "SignatureValidationFailed"),
            (
                "SignatureValidationFailed",
                "image pull failed for i because the signature validation failed".to_owned()
            )
        );
        assert_eq!(criterion("i", "other"), ("ErrImagePull", "other".to_owned()));
    }
}
