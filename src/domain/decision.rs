//! The words of a decision: its stable code, who made it, and what a rule wants done with it.
//!
//! Invariant: a [`Code`] owns all its facts (stored form, status, title, meaning, remedy) in one line of one table, so
//! that an answer, a log line and the page at `/problems/{code}` can never tell different stories.

use super::closed::stored_as_name;

macro_rules! codes {
    ($($(#[doc = $means:literal])+ $code:ident = $status:literal $name:literal $title:literal, $remedy:literal;)*) => {
        /// Why a request was refused, for ever: clients branch on it, so a code is never renamed and never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[doc = $means])+ $code,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$code),*];

            /// Its stored form: what `code` holds in an answer, and the last segment of its page.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }

            /// The HTTP status of an answer with this code.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$code => $status,)* }
            }

            /// A short headline, the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$code => $title,)* }
            }

            /// What it means, for its page. (A doc comment begins with the space after its slashes; the page does not.)
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$code => concat!($($means),+).trim_start(),)* }
            }

            /// What the reader can do about it, for its page.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$code => $remedy,)* }
            }
        }
    };
}

codes! {
    // Who asks.
    /// The request carries no API key.
    KeyMissing = 401 "key_missing" "API key missing",
        "Send the key as `X-API-Key: tg_live_...` or as `Authorization: Bearer tg_live_...`.";
    /// The key is not one that Tollgate made, or its tenant no longer knows it.
    KeyInvalid = 401 "key_invalid" "API key not valid",
        "Check that the key was copied whole. If it was, ask for a new one.";
    /// The request carries two different API keys, so it is not clear who asks.
    KeyConflict = 400 "key_conflict" "Two different API keys",
        "Send one key, in one header.";
    /// The key was revoked.
    KeyRevoked = 401 "key_revoked" "API key revoked",
        "Use another key, or ask for a new one.";
    /// The key's own end has come.
    KeyExpired = 401 "key_expired" "API key expired",
        "Use another key, or ask for a new one.";
    /// The tenant is suspended: none of its keys is served.
    TenantSuspended = 403 "tenant_suspended" "Tenant suspended",
        "Its administrators were told why. Settle that, or write to the operator.";

    // What it may use.
    /// The tenant's plan, overrides and the global default leave this feature off.
    FeatureNotAvailable = 403 "feature_not_available" "Feature not available",
        "Choose a plan with the feature, at the address in `upgrade_url`.";
    /// The operator switched this feature off for everyone, for now.
    FeatureKilled = 503 "feature_killed" "Feature switched off",
        "Nothing on your side is wrong. Try again later.";
    /// No rule names this route, and the API refuses what no rule names.
    RouteDenied = 403 "route_denied" "Route not offered",
        "Check method and path. If the route should exist, the operator has to add a rule for it.";

    // How much of it.
    /// Requests came faster than the limit named in the answer allows.
    RateLimited = 429 "rate_limited" "Rate limit exceeded",
        "Wait as many seconds as `Retry-After` says. `RateLimit` shows what is left before it comes to this.";
    /// The quota named in the answer is used up for this usage period.
    QuotaExceeded = 429 "quota_exceeded" "Quota exceeded",
        "Wait for the next period (`Retry-After`), add a top-up, or choose a larger plan.";
    /// The cost of this one request is larger than the limit itself, so waiting would never help.
    CostExceedsLimit = 422 "cost_exceeds_limit" "Cost exceeds the limit",
        "Split the request into smaller ones, or choose a plan with a larger limit.";

    // What the gate could not find out.
    /// The limiter could not be asked, and the rule for this route is to refuse then.
    LimiterUnavailable = 503 "limiter_unavailable" "Limiter unavailable",
        "Try again after `Retry-After`. Nothing was counted.";
    /// No signed document about this tenant could be read.
    SnapshotUnavailable = 503 "snapshot_unavailable" "Entitlements unavailable",
        "Try again shortly.";
    /// A document was found but its signature, name or shape is not right, so nothing was decided from it.
    SnapshotUntrusted = 503 "snapshot_untrusted" "Entitlements not trusted",
        "Try again shortly. If it stays, the operator has to publish the document again.";
    /// The newest document that could be read is past its signed end.
    SnapshotExpired = 503 "snapshot_expired" "Entitlements expired",
        "Try again shortly. If it stays, the operator's publishing has stopped.";
    /// The request was allowed, but the API behind Tollgate did not answer.
    OriginUnreachable = 502 "origin_unreachable" "Origin unreachable",
        "Try again shortly.";
    /// Use could not be recorded, and this meter answers only what is recorded.
    UseNotRecorded = 503 "use_not_recorded" "Use not recorded",
        "Try again with the same idempotency key: the same use is never counted twice.";

    // What was asked.
    /// The path can be read in more than one way, so it could mean another route to the API than to the gate.
    PathNotCanonical = 400 "path_not_canonical" "Path not canonical",
        "Send the path in its plain form: no encoded slash, backslash, percent sign, `?`, `#` or `;`, no dot segments.";
    /// There is nothing of this name here, or nothing that this key may see.
    NotFound = 404 "not_found" "Not found",
        "Check the path and the ids in it.";
    /// The method is not one that this path, or Tollgate at all, answers.
    MethodNotAllowed = 405 "method_not_allowed" "Method not allowed",
        "Use a method named in `Allow`.";
    /// The body is of a media type that this call does not take.
    UnsupportedMediaType = 415 "unsupported_media_type" "Media type not supported",
        "Send `Content-Type: application/json`.";
    /// The body is longer than this call takes.
    BodyTooLarge = 413 "body_too_large" "Body too large",
        "Send less at once; the answer names the limit.";
    /// The body is no JSON text.
    MalformedJson = 400 "malformed_json" "Malformed JSON",
        "The answer names the line and column at which reading stopped.";
    /// The body nests deeper than 32 levels.
    DepthExceeded = 400 "depth_exceeded" "Nested too deeply",
        "Flatten the body; the pointer names the place.";
    /// An object names the same member twice, so it is not clear which is meant.
    DuplicateField = 400 "duplicate_field" "Duplicate field",
        "Send each member once; the pointer names it.";
    /// A number is outside the range that this place takes, or outside -(2^53-1) to 2^53-1, where JSON stops being exact.
    NumberOutOfRange = 422 "number_out_of_range" "Number out of range",
        "Send a number within the range; the pointer names the place.";
    /// A member that this call does not know.
    UnknownField = 422 "unknown_field" "Unknown field",
        "Leave it out, or correct its spelling; the pointer names it.";
    /// A member that this call needs is missing.
    MissingField = 422 "missing_field" "Missing field",
        "Add it; the pointer names it.";
    /// A value is of another type than the one wanted here.
    WrongType = 422 "wrong_type" "Wrong type",
        "Send the type that the detail names; the pointer names the place.";
    /// A value is of the right type but not one that is allowed here.
    InvalidValue = 422 "invalid_value" "Value not allowed",
        "The detail says what is allowed; the pointer names the place.";
    /// An event is dated before the retention of the ledger, or too far in the future.
    EventOutOfWindow = 422 "event_out_of_window" "Event outside the accepted window",
        "Events are accepted for the time that the answer names; older ones can only be corrected by the operator.";

    // Changing things.
    /// This call changes something and therefore needs an `Idempotency-Key`.
    IdempotencyKeyMissing = 400 "idempotency_key_missing" "Idempotency key missing",
        "Send `Idempotency-Key` with a new random value per change; repeat it when you retry.";
    /// The `Idempotency-Key` is not 1 to 255 visible characters.
    IdempotencyKeyInvalid = 400 "idempotency_key_invalid" "Idempotency key not valid",
        "Send 1 to 255 visible ASCII characters; a UUID is usual.";
    /// The same `Idempotency-Key` was used for another request.
    IdempotencyKeyReused = 422 "idempotency_key_reused" "Idempotency key reused",
        "Send a new key for a new change.";
    /// The first request with this `Idempotency-Key` is still being worked on.
    IdempotencyInProgress = 409 "idempotency_in_progress" "Still in progress",
        "Wait a moment and repeat the same request to get its answer.";
    /// This call changes a known version and therefore needs `If-Match`.
    PreconditionRequired = 428 "precondition_required" "Precondition required",
        "Read the resource and send its `ETag` as `If-Match`.";
    /// The resource is no longer the version that `If-Match` names.
    PreconditionFailed = 412 "precondition_failed" "Precondition failed",
        "Read it again, decide again, and send the new `ETag`.";
    /// The change cannot be made to what is there now.
    Conflict = 409 "conflict" "Conflict",
        "The detail says with what; read it again and decide again.";

    // What broke.
    /// Something that Tollgate needs for this call does not answer.
    Unavailable = 503 "unavailable" "Temporarily unavailable",
        "Try again after `Retry-After`.";
    /// Tollgate failed in a way that it does not know.
    Internal = 500 "internal" "Internal error",
        "Try again. If it stays, send the `request_id` to the operator.";
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The isolate alone, from signed documents.
    Isolate,
    /// The isolate, paying from a live lease.
    Lease,
    /// The limiter in the tenant object.
    Limiter,
}

impl Tier {
    /// Every tier.
    pub const ALL: [Self; 3] = [Self::Isolate, Self::Lease, Self::Limiter];

    /// Its stored form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Isolate => "isolate",
            Self::Lease => "lease",
            Self::Limiter => "limiter",
        }
    }
}

/// Whether a refusal is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// A refused request does not pass.
    #[default]
    Enforce,
    /// Decide, record, let pass: how a gate is tried before it is switched on.
    Observe,
}

impl Mode {
    /// Both modes.
    pub const ALL: [Self; 2] = [Self::Enforce, Self::Observe];

    /// Its stored form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

/// What happens to a request when no decision can be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fail {
    /// It is refused.
    #[default]
    Closed,
    /// It passes, and that is recorded.
    Open,
}

impl Fail {
    /// Both fail modes.
    pub const ALL: [Self; 2] = [Self::Closed, Self::Open];

    /// Its stored form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

stored_as_name!(Code, Tier, Mode, Fail);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::closed::Unknown;
    use serde::{Deserialize, Serialize};
    use std::collections::BTreeSet;
    use std::fmt;
    use std::str::FromStr;

    fn round_trips<T>(all: &[T])
    where
        T: Copy
            + fmt::Debug
            + fmt::Display
            + PartialEq
            + FromStr<Err = Unknown>
            + Serialize
            + for<'de> Deserialize<'de>,
    {
        for one in all {
            assert_eq!(one.to_string().parse(), Ok(*one));
            let json = serde_json::to_string(one).unwrap();
            assert_eq!(json, format!("\"{one}\""));
            assert_eq!(serde_json::from_str::<T>(&json).unwrap(), *one);
        }
        let names: BTreeSet<_> = all.iter().map(T::to_string).collect();
        assert_eq!(names.len(), all.len(), "two share a name");
    }

    #[test]
    fn every_stored_form_round_trips() {
        round_trips(&Code::ALL);
        round_trips(&Tier::ALL);
        round_trips(&Mode::ALL);
        round_trips(&Fail::ALL);
        round_trips(&crate::domain::api_key::Mode::ALL);
        round_trips(&crate::domain::tenant::Status::ALL);
        round_trips(&crate::domain::limit::Code::ALL);
        assert!("Enforce".parse::<Mode>().is_err());
        let error = serde_json::from_str::<Fail>("\"ajar\"").unwrap_err().to_string();
        assert!(error.starts_with("must be one of closed, open"), "{error}");
    }

    #[test]
    fn a_code_is_a_problem_that_a_reader_can_act_on() {
        let titles: BTreeSet<_> = Code::ALL.iter().map(|code| code.title()).collect();
        assert_eq!(titles.len(), Code::ALL.len(), "two share a title");
        for code in Code::ALL {
            assert!((400..=599).contains(&code.status()), "{code}");
            assert!(code.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
            for text in [code.meaning(), code.remedy()] {
                assert!(text.ends_with('.') && text.trim() == text && !text.contains("  "), "{code}: {text}");
            }
        }
    }
}
