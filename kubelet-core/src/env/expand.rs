//! `$(VAR)` references in commands, arguments, variables and subPathExpr.
//!
//! Pure. `$(NAME)` is replaced if NAME is known and stays as it is if not; `$$` is a plain `$`, so `$$(NAME)`
//! stays literal; anything else after a `$` is text.

/// Replaces the references that `lookup` knows.
///
/// ```
/// use coracle_kubelet_core::env::expand;
///
/// let lookup = |name: &str| (name == "PORT").then_some("8080");
/// assert_eq!(expand("--listen=:$(PORT) $(OTHER) $$(PORT)", lookup), "--listen=:8080 $(OTHER) $(PORT)");
/// ```
pub fn expand<'v>(text: &str, lookup: impl Fn(&str) -> Option<&'v str>) -> String {
    walk(text, |name, out| match lookup(name) {
        Some(value) => out.push_str(value),
        None => {
            out.push_str("$(");
            out.push_str(name);
            out.push(')');
        }
    })
}

/// Expands a subPathExpr, where every reference must be known and not empty; else the names that are not.
pub fn expand_sub_path<'v>(
    text: &str,
    lookup: impl Fn(&str) -> Option<&'v str>,
) -> Result<String, Vec<String>> {
    let mut missing = Vec::new();
    let expanded = walk(text, |name, out| match lookup(name) {
        Some(value) if !value.is_empty() => out.push_str(value),
        _ => missing.push(name.to_owned()),
    });
    if missing.is_empty() {
        return Ok(expanded);
    }
    missing.sort();
    missing.dedup();
    Err(missing)
}

fn walk(text: &str, mut reference: impl FnMut(&str, &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('(') {
            match after.split_once(')') {
                Some((name, tail)) => {
                    reference(name, &mut out);
                    rest = tail;
                }
                None => {
                    out.push_str("$(");
                    rest = after;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}
