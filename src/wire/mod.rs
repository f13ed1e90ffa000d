//! The shapes that cross a border: parsed once, then trusted.

pub mod answer;
pub mod caller;
pub mod change;
pub mod headers;
pub mod json;
pub mod jws;
pub mod kept;
pub mod object;
pub mod problem;
pub mod ratelimit;
pub mod rows;
pub mod sql;
pub mod verdict;

/// A number in decimal, by hand: this runs for every answer, and `fmt` costs more than the rest of it.
pub(crate) struct Decimal {
    digits: [u8; 20],
    first: usize,
}

impl Decimal {
    pub(crate) fn of(value: u64) -> Self {
        let mut digits = [b'0'; 20];
        let (mut first, mut rest) = (digits.len(), value);
        for (place, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            (first, rest) = (place, rest / 10);
            if rest == 0 {
                break;
            }
        }
        Self { digits, first }
    }

    pub(crate) fn as_str(&self) -> &str {
        self.digits.get(self.first..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default()
    }
}

/// Appends a number in decimal.
pub(crate) fn push_number(out: &mut String, value: u64) {
    out.push_str(Decimal::of(value).as_str());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_spoken() {
        for number in [0, 7, 10, 1_000_000, u64::MAX] {
            let mut text = "n=".to_owned();
            push_number(&mut text, number);
            assert_eq!(text, format!("n={number}"));
        }
    }
}
