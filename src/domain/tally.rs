//! Counting what was decided: what is billed, and what is only shown.
//!
//! Invariant: a request is counted when it is decided, before anything is released, so that hanging up changes nothing.
//! What is billed names the lease that paid.

use std::fmt;
use std::str::FromStr;

use super::api_key::Mode;
use super::catalog::Recording;
use super::decision::Code;
use super::gate::{Compiled, Standpoint};
use super::id::{KeyId, RequestId, TenantId};
use super::name::MeterName;
use super::outbox;
use super::resident::{Counted, Resident};
use super::route::Route;
use super::time::UnixMillis;

/// A minute, in milliseconds.
pub const MINUTE_MS: u64 = 60_000;

/// The words that a count is reported under: `minute meter mode key route`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The minute it happened in, since 1970.
    pub minute: u64,
    /// The meter; none for what is only shown.
    pub meter: Option<MeterName>,
    /// Live or test.
    pub mode: Mode,
    /// With which key.
    pub key: KeyId,
    /// Which route, or what became of it.
    pub route: String,
}

impl Label {
    /// When its minute began.
    #[must_use]
    pub const fn at(&self) -> UnixMillis {
        UnixMillis(self.minute.saturating_mul(MINUTE_MS))
    }
}

/// The text is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidLabel;

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meter = self.meter.as_ref().map_or("-", MeterName::as_str);
        write!(f, "{} {meter} {} {} {}", self.minute, self.mode.name(), self.key, self.route)
    }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let mut words = text.splitn(5, ' ');
        let mut next = || words.next().ok_or(InvalidLabel);
        let minute = next()?.parse().map_err(|_| InvalidLabel)?;
        let meter = match next()? {
            "-" => None,
            name => Some(name.parse().map_err(|_| InvalidLabel)?),
        };
        let mode = next()?;
        let mode = Mode::ALL.into_iter().find(|known| known.name() == mode).ok_or(InvalidLabel)?;
        let key = next()?.parse().map_err(|_| InvalidLabel)?;
        Ok(Self { minute, meter, mode, key, route: next()?.to_owned() })
    }
}

/// Counts a request that a live lease paid for.
pub fn admitted(standpoint: &mut Standpoint<'_, '_>, now: UnixMillis) {
    let (key, mode, route) = (standpoint.key, standpoint.mode, standpoint.route);
    let Some((way, limits)) = standpoint.way(now) else { return };
    let Some(metering) = &way.meter else { return };
    if metering.recording != Recording::Leased {
        return;
    }
    let (cost, payer) = (metering.cost, way.payer);
    let paid = payer.map(|slot| (slot, limits.payer(slot)));
    limits.count(paid, way.label(Counted::Used, key, mode, named(route), now), cost, None, now);
}

/// Counts a request that was let pass although it would have been refused: shown, not billed.
pub fn observed(standpoint: &mut Standpoint<'_, '_>, code: Code, request: RequestId, now: UnixMillis) {
    shown(standpoint, Counted::Observed(code), request, now);
}

/// Counts a refusal: shown, not billed.
pub fn refused(standpoint: &mut Standpoint<'_, '_>, code: Code, request: RequestId, now: UnixMillis) {
    shown(standpoint, Counted::Refused(code), request, now);
}

fn shown(standpoint: &mut Standpoint<'_, '_>, counted: Counted, request: RequestId, now: UnixMillis) {
    let (key, mode, route) = (standpoint.key, standpoint.mode, standpoint.route);
    let Some((way, limits)) = standpoint.way(now) else { return };
    limits.count(None, way.label(counted, key, mode, named(route), now), 1, Some(request), now);
}

/// A route's own words for itself, for reports.
fn named(route: Option<&Route>) -> &dyn fmt::Display {
    route.map_or(&"unmatched", |route| route)
}

/// The event of a request that its meter records by itself, or that the limiter paid for directly.
pub fn event(
    standpoint: &mut Standpoint<'_, '_>,
    id: &str,
    request: RequestId,
    now: UnixMillis,
) -> Option<outbox::Event> {
    let (key, mode, route) = (standpoint.key, standpoint.mode, named(standpoint.route).to_string());
    let period = standpoint.resident.period(now);
    let (way, _) = standpoint.way(now)?;
    let metering = way.meter.as_ref()?;
    Some(outbox::Event {
        source: "gate".to_owned(),
        id: id.to_owned(),
        meter: metering.meter.clone(),
        mode,
        quantity: metering.cost,
        reverses: None,
        at: now,
        period,
        detail: serde_json::json!({ "key": key, "route": route, "request": request }),
    })
}

/// The event of a count that a limiter accepted for the first time: none where it is only shown, or makes no sense.
#[must_use]
pub fn entry(id: &str, label: &Label, units: u64, period: UnixMillis) -> Option<outbox::Event> {
    let meter = label.meter.clone()?;
    Some(outbox::Event {
        source: "gate".to_owned(),
        id: id.to_owned(),
        meter,
        mode: label.mode,
        quantity: units,
        reverses: None,
        at: label.at(),
        period,
        detail: serde_json::json!({ "key": label.key, "route": label.route }),
    })
}

/// What is to be done behind a reply: who it is about, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Whose leases and document.
    pub tenant: TenantId,
    /// Renew leases and report.
    pub limits: bool,
    /// Read the tenant's document anew.
    pub document: bool,
    /// Read the catalog anew.
    pub catalog: bool,
}

impl Behind {
    /// What is to be done about `resident` behind a reply that was made from `catalog`, if anything. Whoever is told has to
    /// do it: others are not told for a while.
    pub fn of(resident: &mut Resident, catalog: &Compiled, now: UnixMillis) -> Option<Self> {
        let behind = Self {
            tenant: resident.tenant().tenant,
            limits: resident.limits.is_due(),
            document: resident.wants_refresh(now),
            catalog: catalog.wants_refresh(now),
        };
        (behind.limits || behind.document || behind.catalog).then_some(behind)
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |on, letter| if on { letter } else { "-" };
        write!(f, "{} {}{}{}", self.tenant, flag(self.limits, "l"), flag(self.document, "d"), flag(self.catalog, "c"))
    }
}

impl FromStr for Behind {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let (tenant, flags) = text.split_once(' ').ok_or(InvalidLabel)?;
        Ok(Self {
            tenant: tenant.parse().map_err(|_| InvalidLabel)?,
            limits: flags.contains('l'),
            document: flags.contains('d'),
            catalog: flags.contains('c'),
        })
    }
}

/// What is to be done behind the reply to this request, if anything.
pub fn behind(standpoint: &mut Standpoint<'_, '_>, now: UnixMillis) -> Option<Behind> {
    Behind::of(standpoint.resident, standpoint.held, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_round_trip() {
        for text in
            ["29916666 api_calls live key_000000001 GET /v1/{id}", "1 - test key_zzzzzzzzz refused rate_limited * /"]
        {
            assert_eq!(text.parse::<Label>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1 a live", "x a live key_000000001 r", "1 a dead key_000000001 r"] {
            assert_eq!(text.parse::<Label>(), Err(InvalidLabel), "{text}");
        }
    }

    #[test]
    fn notes_of_what_is_behind_round_trip() {
        let text = "ten_g000000000000001 l-c";
        assert_eq!(text.parse::<Behind>().unwrap().to_string(), text);
    }
}
