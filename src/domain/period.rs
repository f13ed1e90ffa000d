//! Usage periods: the windows in which quotas are counted.
//!
//! Invariant: the windows of a cycle tile time. Every instant is in exactly one of them, and a window's bounds depend on
//! the cycle alone, never on the window before: an anchor on the 31st returns to the 31st after a short month.

use super::closed::closed;
use super::time::UnixMillis;

closed! {
    /// How long a usage period is.
    pub enum Period {
        /// 24 hours.
        Day = "day",
        /// Seven days.
        Week = "week",
        /// A month, from the anchor's day to the same day of the next, or to that month's last day.
        Month = "month",
        /// Three months.
        Quarter = "quarter",
        /// Twelve months.
        Year = "year",
    }
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

fn months(step: i64, anchor: UnixMillis, now: UnixMillis) -> Window {
    let endless = Window { start: anchor, end: UnixMillis((1 << 53) - 1) };
    let (Some(from), Some(at)) = (Civil::of(anchor), Civil::of(now)) else { return endless };
    // The calendar months apart say the window up to one: an anchor late in its month may not have come round yet.
    let mut count = (at.month - from.month).div_euclid(step);
    if from.after(count * step).is_some_and(|start| start > now) {
        count -= 1;
    }
    match (from.after(count * step), from.after((count + 1) * step)) {
        (Some(start), Some(end)) => Window { start, end },
        _ => endless,
    }
}

/// The last instant that the calendar holds, late on 9999-12-30.
const LAST_MS: u64 = 253_402_207_200_999;

/// An instant in the proleptic Gregorian calendar, UTC.
#[derive(Clone, Copy)]
struct Civil {
    /// Months since January of the year 0.
    month: i64,
    /// From 1.
    day: i64,
    /// Milliseconds since midnight.
    ms: u64,
}

impl Civil {
    /// Days are counted from the first of March of the year 0, so that a leap day is the last of its year: 146,097 days in
    /// 400 years, 153 in five months.
    fn of(at: UnixMillis) -> Option<Self> {
        let days = i64::try_from(at.0 / DAY_MS).ok().filter(|_| at.0 <= LAST_MS)? + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        Some(Self { month: (era * 400 + year) * 12 + month + 2, day, ms: at.0 % DAY_MS })
    }

    /// `months` later, on the same day or the last of a shorter month; the epoch for what lies before it.
    fn after(self, months: i64) -> Option<UnixMillis> {
        let first = first_of(self.month + months);
        let length = first_of(self.month + months + 1) - first;
        let days = first + self.day.min(length) - 1;
        let at = u64::try_from(days).map_or(0, |days| days * DAY_MS + self.ms);
        (at <= LAST_MS).then_some(UnixMillis(at))
    }
}

/// The day of the first of a month, from the epoch.
const fn first_of(month: i64) -> i64 {
    let (year, of_year) = ((month - 2).div_euclid(12), (month - 2).rem_euclid(12));
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * of_year + 2) / 5 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;
    use jiff::{Timestamp, ToSpan};
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
        fn the_calendar_is_the_worlds(at in 0..=LAST_MS, months in -1_500_i64..1_500) {
            let theirs = Timestamp::from_millisecond(at.cast_signed()).unwrap().to_zoned(TimeZone::UTC).datetime();
            let then = theirs.checked_add(months.months()).ok().and_then(|then| TimeZone::UTC.to_timestamp(then).ok());
            let then = then.map(|then| UnixMillis(u64::try_from(then.as_millisecond()).unwrap_or(0)));
            prop_assert_eq!(Civil::of(UnixMillis(at)).unwrap().after(months), then);
        }

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
