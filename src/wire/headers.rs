//! What of a client's headers reaches the origin, and what the gate says to it in its own.
//!
//! Invariant: under a name that an origin could take for one of ours, only what the gate set itself arrives. So a header
//! is judged by its folded name (letter case, and any byte that is no letter or digit as `-`: servers that make
//! environment variables of headers fold so), and the order is fixed: first delete what [`reaches_origin`] refuses, what
//! `Connection` names included, then set what [`Caller::sign`] gives. So a client can neither add to ours nor have them
//! dropped.
//!
//! **What an origin verifies.** `X-Tollgate-Signature` is `v1=` and, in hexadecimal, HMAC-SHA256 under the secret shared
//! with this origin over these ten lines, joined by `\n`, none at the end:
//!
//! ```text
//! tollgate-v1
//! ten_g...                      X-Tollgate-Tenant
//! pro                           X-Tollgate-Plan
//! key_...                       X-Tollgate-Key
//! live                          X-Tollgate-Mode
//! analytics,pdf-export          X-Tollgate-Features, the features that are on; may be empty
//! 1795000000000                 X-Tollgate-Timestamp, milliseconds since 1970
//! req_...                       X-Tollgate-Request
//! POST                          the method
//! /v1/reports                   the path as it arrives, without the query
//! ```
//!
//! It then compares the timestamp with its own clock (5 minutes are usual). The query is not signed: platforms write it
//! anew on its way. What stays the same from one request of a caller to the next comes first, so that the gate need not
//! hash it again. To change the secret, let the origin accept either of two while the gate changes over.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::domain::id::{KeyId, RequestId, TenantId};
use crate::domain::path::CanonicalPath;
use crate::domain::route::Method;
use crate::domain::time::UnixMillis;

/// The names of the signed headers, in the order of their lines.
pub const SIGNED: [&str; 7] = [
    "X-Tollgate-Tenant",
    "X-Tollgate-Plan",
    "X-Tollgate-Key",
    "X-Tollgate-Mode",
    "X-Tollgate-Features",
    "X-Tollgate-Timestamp",
    "X-Tollgate-Request",
];

/// The name of the header that signs them.
pub const SIGNATURE: &str = "X-Tollgate-Signature";

/// Names that never pass, folded.
const REFUSED: [&str; 35] = [
    // Of one hop only (RFC 9110, 7.6.1), or about framing, which every hop does anew.
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
    // Credentials of the gate.
    "x-api-key",
    // Another host, path or method than the ones decided about.
    "host",
    "x-host",
    "x-http-destinationurl",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-override-url",
    "x-proxy-url",
    "x-rewrite-url",
    // Who is said to call: the gate knows, and says so itself.
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-real-ip",
];

/// Families of names that never pass, folded.
const REFUSED_FAMILIES: [&str; 3] = ["x-tollgate", "tollgate", "x-forwarded"];

/// Whether a client's header of this name may reach the origin.
///
/// `connection` is the value of the client's `Connection`, whose list it may not reach either. `Authorization` passes
/// unless it carried the API key.
///
/// `Upgrade` does not pass: for a WebSocket the gate asks for its own.
#[must_use]
pub fn reaches_origin(name: &str, connection: Option<&str>, key_in_authorization: bool) -> bool {
    let named_by_connection =
        || connection.is_some_and(|list| list.split(',').any(|one| folded(one.trim()).eq(folded(name))));
    !(REFUSED.iter().any(|known| folds_to(name, known))
        || REFUSED_FAMILIES.iter().any(|family| folded(name).take(family.len()).eq(family.bytes()))
        || key_in_authorization && folds_to(name, "authorization")
        || named_by_connection())
}

/// The names among `names` that have to be deleted before the request goes on.
pub fn refused<'a>(
    names: impl IntoIterator<Item = &'a str>,
    connection: Option<&str>,
    key_in_authorization: bool,
) -> impl Iterator<Item = &'a str> {
    names.into_iter().filter(move |name| !reaches_origin(name, connection, key_in_authorization))
}

fn folded(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' })
}

fn folds_to(name: &str, known: &str) -> bool {
    name.len() == known.len() && folded(name).eq(known.bytes())
}

/// What the gate tells the origin about who calls.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Whose request it is.
    pub tenant: TenantId,
    /// The tenant's plan.
    pub plan: &'a str,
    /// The API key's public part.
    pub key: KeyId,
    /// `live` or `test`.
    pub mode: &'static str,
    /// The features that are on, from [`write_features`].
    pub features: &'a str,
}

/// Appends the compact list of features: names joined by commas. By their type they hold none themselves.
pub fn write_features<'a>(names: impl IntoIterator<Item = &'a str>, out: &mut String) {
    for (place, name) in names.into_iter().enumerate() {
        out.push_str(if place == 0 { "" } else { "," });
        out.push_str(name);
    }
}

/// The headers to set. What is read from here is the very text that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<'a> {
    caller: &'a str,
    request: String,
    signature: String,
}

impl Signed<'_> {
    /// Each header to set, by name and value.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let values = self.caller.split('\n').skip(1).chain(self.request.split('\n'));
        SIGNED.into_iter().zip(values).chain([(SIGNATURE, self.signature.as_str())])
    }
}

/// Signs with one origin's secret. Keyed once, since keying costs as much as signing.
#[derive(Clone)]
pub struct Signer(Hmac<Sha256>);

/// Says nothing of the secret.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

/// The secret is shorter than 32 bytes, so it could be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeakSecret;

impl fmt::Display for WeakSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the origin's secret has fewer than 32 bytes")
    }
}

impl std::error::Error for WeakSecret {}

impl Signer {
    /// A signer with this secret.
    ///
    /// # Errors
    /// When it is too short.
    pub fn new(secret: &[u8]) -> Result<Self, WeakSecret> {
        if secret.len() < 32 {
            return Err(WeakSecret);
        }
        Hmac::new_from_slice(secret).map(Self).map_err(|_| WeakSecret)
    }

    /// A caller, to sign its requests.
    #[must_use]
    pub fn caller(&self, identity: &Identity<'_>) -> Caller {
        let Identity { tenant, plan, key, mode, features } = identity;
        let lines = format!("tollgate-v1\n{tenant}\n{plan}\n{key}\n{mode}\n{features}");
        let mac = self.0.clone().chain_update(&lines);
        Caller { lines, mac }
    }

    /// Whether the headers that arrived with a request were signed with this secret: what an origin does, without its look
    /// at the clock. `get` reads a header by name.
    #[must_use]
    pub fn verify<'a>(&self, method: &str, path: &str, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        let mut lines = "tollgate-v1".to_owned();
        for name in SIGNED {
            let Some(value) = get(name) else { return false };
            lines.push('\n');
            lines.push_str(value);
        }
        lines.extend(["\n", method, "\n", path]);
        let signature = get(SIGNATURE).and_then(|value| value.strip_prefix("v1=")).and_then(from_hex);
        signature.is_some_and(|signature| self.0.clone().chain_update(&lines).verify_slice(&signature).is_ok())
    }
}

/// One caller of one origin, with what is signed about it already hashed.
#[derive(Clone)]
pub struct Caller {
    lines: String,
    mac: Hmac<Sha256>,
}

/// Says nothing of the secret.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Caller").field(&self.lines).finish()
    }
}

impl Caller {
    /// The headers for a request that is forwarded with this method to this path.
    #[must_use]
    pub fn sign(
        &self,
        method: Method,
        path: &CanonicalPath<'_>,
        timestamp: UnixMillis,
        request: RequestId,
    ) -> Signed<'_> {
        let request = format!("{}\n{request}", timestamp.0);
        let mut mac = self.mac.clone();
        for line in [&request, method.name(), path.as_str()] {
            mac.update(b"\n");
            mac.update(line.as_bytes());
        }
        let mut signature = String::with_capacity(3 + 64);
        signature.push_str("v1=");
        for byte in mac.finalize().into_bytes() {
            signature.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')));
        }
        Signed { caller: &self.lines, request, signature }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    digits
        .chunks(2)
        .map(|pair| if let [high, low] = pair { u8::try_from(high << 4 | low).ok() } else { None })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Jurisdiction;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SECRET: [u8; 32] = [7; 32];
    const NOW: UnixMillis = UnixMillis(1_795_000_000_000);

    const REQUEST: RequestId = RequestId::new(NOW, 42);

    fn caller(features: &str) -> Caller {
        let plan = "pro";
        let tenant = TenantId::new(Jurisdiction::Eu, NOW, [1, 2, 3, 4]);
        let identity = Identity { tenant, plan, key: KeyId::new(5), mode: "live", features };
        Signer::new(&SECRET).unwrap().caller(&identity)
    }

    fn signed(method: Method, path: &str, features: &str) -> BTreeMap<&'static str, String> {
        let (caller, path) = (caller(features), CanonicalPath::parse(path).unwrap());
        let signed = caller.sign(method, &path, NOW, REQUEST);
        signed.headers().map(|(name, value)| (name, value.to_owned())).collect()
    }

    fn verifies(method: &str, path: &str, headers: &BTreeMap<&'static str, String>) -> bool {
        Signer::new(&SECRET).unwrap().verify(method, path, |name| headers.get(name).map(String::as_str))
    }

    #[test]
    fn tables_are_in_folded_form_and_order() {
        for table in [&REFUSED[..], &REFUSED_FAMILIES] {
            assert!(table.iter().all(|name| folded(name).eq(name.bytes())));
        }
        for name in SIGNED.into_iter().chain([SIGNATURE]) {
            assert!(!reaches_origin(name, None, false), "{name}");
        }
    }

    #[test]
    fn no_spelling_of_our_names_passes() {
        for name in [
            "x-tollgate-tenant",
            "X-Tollgate-Plan",
            "X_TOLLGATE_KEY",
            "x_tollgate-Features",
            "X-TollGate_Signature",
            "tollgate-tenant",
            "Tollgate_Anything",
            "x-tollgate-not-yet-invented",
            "X.Tollgate.Tenant",
            "x~tollgate!mode",
            "X-API-Key",
            "x_api_key",
            "X-Original-URL",
            "x_rewrite_url",
            "X-HTTP-Method-Override",
            "X-Method-Override",
            "X-Forwarded-For",
            "x_forwarded_host",
            "X-Forwarded",
            "Forwarded",
            "X-Real-IP",
            "CF-Connecting-IP",
            "Connection",
            "Keep-Alive",
            "TE",
            "Transfer-Encoding",
            "transfer_encoding",
            "Content-Length",
            "Upgrade",
            "Proxy-Authorization",
            "Trailer",
            "Host",
        ] {
            assert!(!reaches_origin(name, None, false), "{name}");
        }
    }

    #[test]
    fn ordinary_headers_pass() {
        for name in [
            "accept",
            "Content-Type",
            "content-encoding",
            "Cookie",
            "If-None-Match",
            "Range",
            "traceparent",
            "Idempotency-Key",
            "Sec-WebSocket-Key",
            "User-Agent",
            "X-Request-ID",
            "X-My-Header",
            "Authorization",
            "Origin",
        ] {
            assert!(reaches_origin(name, Some("close, keep-alive"), false), "{name}");
        }
    }

    #[test]
    fn authorization_passes_unless_it_carried_the_key() {
        assert!(reaches_origin("Authorization", None, false));
        assert!(!reaches_origin("Authorization", None, true));
        assert!(!reaches_origin("AUTHORIZATION", None, true));
    }

    #[test]
    fn what_connection_names_is_dropped_in_any_spelling() {
        let connection = Some("close, X-Secret ,x_other,");
        for name in ["x-secret", "X_Secret", "X-Other"] {
            assert!(!reaches_origin(name, connection, false), "{name}");
        }
        assert!(reaches_origin("x-secrets", connection, false));
        let names = ["Accept", "X-Secret", "x-tollgate-tenant", "cookie"];
        assert_eq!(refused(names, connection, false).collect::<Vec<_>>(), ["X-Secret", "x-tollgate-tenant"]);
    }

    #[test]
    fn a_client_cannot_add_to_what_is_set_nor_have_it_dropped() {
        // As the gate does it: first delete, then set.
        let client = [
            ("connection", "X-Tollgate-Tenant, X-Tollgate-Signature, cookie"),
            ("x-tollgate-tenant", "ten_g000000000000000"),
            ("X_Tollgate_Plan", "enterprise"),
            ("accept", "*/*"),
            ("cookie", "a=b"),
        ];
        let connection = Some(client[0].1);
        let mut arrived: Vec<(String, String)> = (client.iter())
            .filter(|(name, _)| reaches_origin(name, connection, false))
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(arrived, [("accept".to_owned(), "*/*".to_owned())]);
        arrived.extend(signed(Method::Get, "/", "").into_iter().map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(arrived.len(), 1 + SIGNED.len() + 1);
    }

    #[test]
    fn the_signature_is_the_documented_one() {
        let (caller, path) = (caller("analytics,pdf-export"), CanonicalPath::parse("/v1/reports").unwrap());
        let signed = caller.sign(Method::Post, &path, NOW, REQUEST);
        let lines: Vec<_> = signed.headers().map(|(name, value)| format!("{name}: {value}")).collect();
        // The file was made by another implementation (Python hmac), so it proves the text above as well.
        assert_eq!(lines.join("\n") + "\n", include_str!("../../tests/golden/signed_headers.txt"));
    }

    #[test]
    fn every_part_is_bound() {
        let headers = signed(Method::Post, "/v1/reports/", "");
        assert!(verifies("POST", "/v1/reports/", &headers));
        assert!(!verifies("GET", "/v1/reports/", &headers));
        assert!(!verifies("POST", "/v1/reports", &headers));
        for name in SIGNED.into_iter().chain([SIGNATURE]) {
            let mut other = headers.clone();
            other.get_mut(name).unwrap().push('0');
            assert!(!verifies("POST", "/v1/reports/", &other), "{name} changed");
            other.remove(name);
            assert!(!verifies("POST", "/v1/reports/", &other), "{name} missing");
        }
        let other = Signer::new(&[8; 32]).unwrap();
        assert!(!other.verify("POST", "/v1/reports/", |name| headers.get(name).map(String::as_str)));
    }

    #[test]
    fn a_short_secret_makes_no_signer() {
        assert_eq!(Signer::new(&[7; 31]).err(), Some(WeakSecret));
        assert_eq!(format!("{:?}", Signer::new(&SECRET).unwrap()), "Signer");
        assert!(format!("{:?}", caller("a")).starts_with("Caller(\"tollgate-v1"));
    }

    #[test]
    fn features_are_a_compact_list() {
        let mut out = String::new();
        write_features(["analytics", "pdf-export"], &mut out);
        assert_eq!(out, "analytics,pdf-export");
    }

    proptest! {
        #[test]
        fn any_spelling_of_a_refused_name_is_refused(
            which in 0..REFUSED.len() + REFUSED_FAMILIES.len(),
            upper: Vec<bool>,
            separator in "[-_.!~]",
        ) {
            let name = REFUSED.iter().chain(&REFUSED_FAMILIES).nth(which).unwrap();
            let spelled: String = name.chars().enumerate().map(|(at, c)| match upper.get(at) {
                Some(true) => c.to_ascii_uppercase().to_string(),
                _ if c == '-' => separator.clone(),
                _ => c.to_string(),
            }).collect();
            prop_assert!(!reaches_origin(&spelled, None, false), "{}", spelled);
        }

        #[test]
        fn what_is_signed_verifies(path in "(/[a-z0-9,.]{0,3}[a-z0-9]){1,4}/?", features in "([a-z]{1,4}(,[a-z]{1,4})?)?") {
            for method in Method::ALL {
                prop_assert!(verifies(method.name(), &path, &signed(method, &path, &features)));
            }
        }
    }
}
