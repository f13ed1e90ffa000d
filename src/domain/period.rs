//! Usage periods: the windows in which quotas are counted.
//!
//! Invariant: the windows of a cycle tile time. Every instant is in exactly one of them, and a window's bounds depend on
//! the cycle alone, never on the window before: an anchor on the 31st returns to the 31st after a short month.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use super::time::UnixMillis;

/// How long a usage period is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// 24 hours.
    Day,
    /// Seven days.
    Week,
    /// A month, from the anchor's day to the same day of the next, or to that month's last day.
    Month,
    /// Three months.
    Quarter,
    /// Twelve months.
    Year,
}

/// One usage period: from its start to its end, exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first instant in it.
    pub start: UnixMillis,
    /// The first instant after it.
    pub end: UnixMillis,
}

const DAY_MS: u64 = 24 * 3600 * 1000;

impl Period {
    /// The window around `now` of the cycle that has one beginning at `anchor` (UTC).
    ///
    /// An instant that the calendar cannot hold (past the year 9999) falls into one endless last window.
    #[must_use]
    pub fn window(self, anchor: UnixMillis, now: UnixMillis) -> Window {
        match self {
            Self::Day => fixed(DAY_MS, anchor, now),
            Self::Week => fixed(7 * DAY_MS, anchor, now),
            Self::Month => months(1, anchor, now),
            Self::Quarter => months(3, anchor, now),
            Self::Year => months(12, anchor, now),
        }
    }
}

fn fixed(length: u64, anchor: UnixMillis, now: UnixMillis) -> Window {
    // Counted from the anchor's phase, so that an anchor in the future works as well as one in the past.
    let phase = anchor.0 % length;
    let start = if now.0 < phase { 0 } else { (now.0 - phase) / length * length + phase };
    let end = if now.0 < phase { phase } else { start.saturating_add(length) };
    Window { start: UnixMillis(start), end: UnixMillis(end) }
}

fn months(step: i32, anchor: UnixMillis, now: UnixMillis) -> Window {
    let endless = Window { start: anchor, end: UnixMillis((1 << 53) - 1) };
    let (Some(from), Some(at)) = (civil(anchor), civil(now)) else { return endless };
    let apart = (i32::from(at.year()) - i32::from(from.year())) * 12 + i32::from(at.month()) - i32::from(from.month());
    // The calendar months apart say the window up to one: an anchor late in its month may not have come round yet.
    let mut count = apart.div_euclid(step);
    if bound(from, count * step).is_some_and(|start| start > now) {
        count -= 1;
    }
    match (bound(from, count * step), bound(from, (count + 1) * step)) {
        (Some(start), Some(end)) => Window { start, end },
        _ => endless,
    }
}

/// `months` after `from`, on the same day or the last of a shorter month; the epoch for what lies before it.
fn bound(from: DateTime, months: i32) -> Option<UnixMillis> {
    let at = from.checked_add(months.months()).ok()?;
    let ms = TimeZone::UTC.to_timestamp(at).ok()?.as_millisecond();
    Some(UnixMillis(u64::try_from(ms).unwrap_or(0)))
}

fn civil(at: UnixMillis) -> Option<DateTime> {
    let ms = i64::try_from(at.0).ok()?;
    Timestamp::from_millisecond(ms).ok().map(|at| TimeZone::UTC.to_datetime(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> UnixMillis {
        UnixMillis(text.parse::<Timestamp>().unwrap().as_millisecond().cast_unsigned())
    }

    #[test]
    fn an_anchor_on_the_31st_returns_to_the_31st() {
        let anchor = at("2026-01-31T09:00:00Z");
        let window = Period::Month.window(anchor, at("2026-03-15T00:00:00Z"));
        assert_eq!((window.start, window.end), (at("2026-02-28T09:00:00Z"), at("2026-03-31T09:00:00Z")));
        let window = Period::Month.window(anchor, at("2028-02-29T09:00:00Z"));
        assert_eq!((window.start, window.end), (at("2028-02-29T09:00:00Z"), at("2028-03-31T09:00:00Z")));
    }

    #[test]
    fn a_leap_day_anchor_keeps_its_year() {
        let window = Period::Year.window(at("2024-02-29T00:00:00Z"), at("2027-06-01T00:00:00Z"));
        assert_eq!((window.start, window.end), (at("2027-02-28T00:00:00Z"), at("2028-02-29T00:00:00Z")));
    }

    proptest! {
        #[test]
        fn windows_tile_time(anchor in 0_u64..4_000_000_000_000, now in 0_u64..4_000_000_000_000, which in 0_usize..5) {
            let period = [Period::Day, Period::Week, Period::Month, Period::Quarter, Period::Year][which];
            let (anchor, now) = (UnixMillis(anchor), UnixMillis(now));
            let window = period.window(anchor, now);
            prop_assert!(window.start <= now && now < window.end);
            prop_assert_eq!(period.window(anchor, window.end).start, window.end);
            prop_assert_eq!(period.window(anchor, window.start), window);
            prop_assert_eq!(period.window(anchor, window.end.minus(1)), window);
        }
    }
}
