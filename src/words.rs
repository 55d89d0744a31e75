//! Counts as people read them.

use crate::chat::FailureClass;

/// A count: `12,345`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut written = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            written.push(',');
        }
        written.push(digit);
    }
    written
}

/// So many of something whose plural takes an `s`: `1 request`, `12,345 requests`.
pub fn several(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(count))
}

/// Failures without a success between them: `it answers with errors (server_error), 5 in a row`.
pub fn in_a_row(class: FailureClass, count: u32) -> String {
    let words = class.in_words();
    if count > 1 { format!("{words}, {count} in a row") } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_in_groups_of_three() {
        for (count, written) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(count), written);
        }
    }

    #[test]
    fn one_has_no_plural() {
        assert_eq!([0, 1, 2_000].map(|count| several(count, "request")), ["0 requests", "1 request", "2,000 requests"]);
        let class = FailureClass::Billing;
        let words = "its account has no money or quota (billing)";
        assert_eq!([0, 1].map(|count| in_a_row(class, count)), [words, words]);
        assert_eq!(in_a_row(class, 2), format!("{words}, 2 in a row"));
    }
}
