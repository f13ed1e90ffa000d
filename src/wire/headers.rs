//! What of a client's headers reaches the origin.
//!
//! Invariant: under a name that an origin could take for one of ours, only what the gate set itself arrives. So a header
//! is judged by its folded name (letter case, and any byte that is no letter or digit as `-`: servers that make
//! environment variables of headers fold so), and the order is fixed: first delete what [`reaches_origin`] refuses, what
//! `Connection` names included, then set what [`super::caller`] says. So a client can neither add to ours nor have them
//! dropped.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::caller::{SIGNATURE, SIGNED};
    use proptest::prelude::*;

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
        let client = [
            ("connection", "X-Tollgate-Tenant, X-Tollgate-Signature, cookie"),
            ("x-tollgate-tenant", "ten_g000000000000000"),
            ("X_Tollgate_Plan", "enterprise"),
            ("accept", "*/*"),
            ("cookie", "a=b"),
        ];
        let connection = Some(client[0].1);
        let arrived: Vec<_> = client.iter().filter(|(name, _)| reaches_origin(name, connection, false)).collect();
        assert_eq!(arrived, [&("accept", "*/*")]);
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
    }
}
