//! Switches and numbers by the rules of Go's library (`strconv.ParseBool`, `strconv.ParseUint` with base 0), which flags and
//! annotations are written for.

/// A switch: `1 t T TRUE true True 0 f F FALSE false False`; `None` for anything else.
pub fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// A number that may have a base prefix (`0x`, `0o`, `0b`, or a leading `0` for octal) and `_` between digits; `None` for
/// anything else, a sign included.
pub fn number(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, base, prefixed) = if let Some(digits) = lower.strip_prefix("0x") {
        (digits, 16, true)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (digits, 8, true)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (digits, 2, true)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (lower.get(1..)?, 8, true)
    } else {
        (lower.as_str(), 10, false)
    };
    // One `_` may stand between two digits, or between the prefix and the first digit.
    let groups = if prefixed { digits.strip_prefix('_').unwrap_or(digits) } else { digits };
    if groups.split('_').any(|group| group.is_empty() || !group.chars().all(|c| c.is_digit(base))) {
        return None;
    }
    u64::from_str_radix(&groups.replace('_', ""), base).ok()
}
