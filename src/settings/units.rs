//! Text forms of the units that settings use, and the wrapper that keeps secrets out of every print.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

/// A secret: prints as `[redacted]`, whatever prints it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(Arc<str>);

/// Characters of a secret of which four may be shown.
const LONG_ENOUGH: usize = 16;

impl Secret {
    /// Wraps a text.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The last four characters, by which operators tell keys apart; `None` where they would be too much of it.
    pub fn tail(&self) -> Option<String> {
        let letters = self.0.chars().count();
        (letters >= LONG_ENOUGH).then(|| self.0.chars().skip(letters - 4).collect())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Longest duration that can be configured: ten years.
const LONGEST: Duration = Duration::from_secs(3_653 * 86_400);

/// Reads `250ms`, `30s`, `1m 30s`.
///
/// # Errors
/// Text that is no duration, in words.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .ok()
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| format!("`{text}` is not a duration; write it like 250ms, 30s or 2m, at most ten years"))
}

/// Reads `512KiB`, `32MiB`, `1GB`, or a plain number of bytes.
///
/// # Errors
/// Text that is no size, in words.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => 0,
    };
    number
        .parse::<u64>()
        .ok()
        .filter(|_| factor > 0)
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| format!("`{text}` is not a size; write it like 512KiB, 32MiB or a number of bytes"))
}

/// Writes bytes the way settings do, for messages.
pub fn format_size(bytes: u64) -> String {
    for (factor, unit) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_written() {
        for text in ["512KiB", "64MiB", "2GiB", "7B"] {
            assert_eq!(format_size(parse_size(text).unwrap()), text);
        }
        for wrong in ["", "MiB", "12 parsecs", "-1", "99999999999999999999GiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_never_prints() {
        let secret = Secret::new("sk-123");
        assert_eq!(format!("{secret} {secret:?}"), "[redacted] [redacted]");
    }
}
