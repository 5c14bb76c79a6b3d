//! Taints as `--register-with-taints` gives them: `key=value:Effect`, `key:Effect`.
//!
//! Pure; the agent calls it while it reads its settings.

use crate::api::Taint;

/// Why a text is no taint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no taint; it looks like key=value:NoSchedule, with NoSchedule, PreferNoSchedule or NoExecute"
)]
pub struct TaintError(pub String);

/// Reads taints that are separated by commas.
pub fn parse_taints(text: &str) -> Result<Vec<Taint>, TaintError> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse).collect()
}

fn parse(text: &str) -> Result<Taint, TaintError> {
    let wrong = || TaintError(text.to_owned());
    let (left, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(wrong());
    }
    let (key, value) = left.split_once('=').unwrap_or((left, ""));
    if key.is_empty() || value.contains(['=', ':']) {
        return Err(wrong());
    }
    Ok(Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned(), time_added: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read_as_kubectl_writes_them() {
        let taints = parse_taints("dedicated=edge:NoSchedule,example.com/arm:NoExecute").unwrap();
        assert_eq!((taints[0].key.as_str(), taints[0].value.as_str()), ("dedicated", "edge"));
        assert_eq!((taints[1].key.as_str(), taints[1].effect.as_str()), ("example.com/arm", "NoExecute"));
        for wrong in ["a", "a=b", ":NoSchedule", "a=b:Never"] {
            assert!(parse_taints(wrong).is_err(), "{wrong}");
        }
    }
}
