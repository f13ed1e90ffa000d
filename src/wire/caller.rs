//! What an origin is told about who calls: headers, and a signature over them.
//!
//! Invariant: what is sent is the very text that was signed. What stays the same from one request of a caller to the next comes
//! first: it is written, hashed and sent to the door once.
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
//! anew on its way. To change the secret, let the origin accept either of two while the gate changes over.

use rustc_hash::FxHashMap;
use std::fmt;
use std::rc::Rc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::push_number;
use super::verdict::{Headers, Place};
use crate::domain::api_key::{Mode, WeakSecret};
use crate::domain::id::{KeyId, RequestId, TenantId};
use crate::domain::path::CanonicalPath;
use crate::domain::route::Method;
use crate::domain::time::UnixMillis;

/// The names of the signed headers, in the order of their lines. The last two are other ones for each request.
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

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Whose request it is.
    pub tenant: TenantId,
    /// The API key's public part.
    pub key: KeyId,
    /// Live or test.
    pub mode: Mode,
    /// The tenant's plan.
    pub plan: &'a str,
    /// The features that are on, joined by commas.
    pub features: &'a Rc<str>,
}

/// Signs with the origin's secret. Keyed once, since keying costs as much as signing.
#[derive(Clone)]
pub struct Signer(Hmac<Sha256>);

/// Says nothing of the secret.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

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
}

/// A caller, with what is signed about it already hashed.
pub struct Caller {
    plan: Box<str>,
    features: Rc<str>,
    mac: Hmac<Sha256>,
    head: Rc<str>,
    place: Place,
    is_kept: bool,
}

impl Caller {
    fn new(signer: &Signer, identity: &Identity<'_>, place: Place) -> Self {
        let Identity { tenant, key, mode, plan, features } = *identity;
        let lines = format!("tollgate-v1\n{tenant}\n{plan}\n{key}\n{mode}\n{features}\n");
        let mac = signer.0.clone().chain_update(&lines);
        let mut head = Headers::default();
        let values = lines.lines().skip(1);
        let mut names = SIGNED.into_iter();
        for (value, name) in values.zip(&mut names) {
            head.header(name, value);
        }
        let last = [names.as_slice(), &[SIGNATURE]].concat();
        Self {
            plan: plan.into(),
            features: Rc::clone(features),
            mac,
            head: head.last(&last).into(),
            place,
            is_kept: false,
        }
    }

    fn is_of(&mut self, identity: &Identity<'_>) -> bool {
        if !Rc::ptr_eq(&self.features, identity.features) {
            if self.features != *identity.features {
                return false;
            }
            self.features = Rc::clone(identity.features);
        }
        *self.plan == *identity.plan
    }

    /// Its headers: those that stay the same, name and value in turn, then the names of those that [`Self::sign`] appends the
    /// values of.
    #[must_use]
    pub const fn head(&self) -> &Rc<str> {
        &self.head
    }

    /// Where the door keeps its headers, and those, if it is not known to keep them yet: from now on it is.
    pub fn keep(&mut self) -> (Place, Option<Rc<str>>) {
        let unknown = !std::mem::replace(&mut self.is_kept, true);
        (self.place, unknown.then(|| Rc::clone(&self.head)))
    }

    /// Appends what is of one request alone, a line each: the timestamp, the request's id, and the signature for this method and
    /// path.
    pub fn sign(&self, method: Method, path: &CanonicalPath<'_>, at: UnixMillis, request: RequestId, out: &mut String) {
        let begins = out.len();
        push_number(out, at.0);
        out.push('\n');
        out.push_str(request.text().as_str());
        let ends = out.len();
        // For the hash alone.
        out.push('\n');
        out.push_str(method.name());
        out.push('\n');
        out.push_str(path.as_str());
        let mac = self.mac.clone().chain_update(out.get(begins..).unwrap_or_default());
        out.truncate(ends);
        out.push_str("\nv1=");
        push_hex(out, &mac.finalize().into_bytes().into());
    }
}

fn push_hex(out: &mut String, bytes: &[u8; 32]) {
    let digit = |four_bits: u8| if four_bits < 10 { b'0' + four_bits } else { b'a' - 10 + four_bits };
    let mut digits = [0; 64];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    out.push_str(std::str::from_utf8(&digits).unwrap_or_default());
}

/// The callers whose requests an isolate passed on.
pub struct Callers {
    signer: Signer,
    met: FxHashMap<(TenantId, KeyId, Mode), Caller>,
}

impl Callers {
    /// None yet.
    #[must_use]
    pub fn new(signer: Signer) -> Self {
        Self { signer, met: FxHashMap::default() }
    }

    /// This one, as it was met or is met now. As many are remembered as the door has places; then it begins anew.
    pub fn meet(&mut self, identity: &Identity<'_>) -> &mut Caller {
        let Self { signer, met } = self;
        let id = (identity.tenant, identity.key, identity.mode);
        if met.len() == Place::COUNT && !met.contains_key(&id) {
            met.clear();
        }
        let place = Place::numbered(met.len());
        let caller = met.entry(id).or_insert_with(|| Caller::new(signer, identity, place));
        if !caller.is_of(identity) {
            *caller = Caller::new(signer, identity, caller.place);
        }
        caller
    }
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

    fn callers() -> Callers {
        Callers::new(Signer::new(&SECRET).unwrap())
    }

    fn identity(features: &Rc<str>) -> Identity<'_> {
        let tenant = TenantId::new(Jurisdiction::Eu, NOW, [1, 2, 3, 4]);
        Identity { tenant, plan: "pro", key: KeyId::new(5), mode: Mode::Live, features }
    }

    /// What the door sets, in its order.
    fn headers(head: &str, values: &str) -> Vec<(String, String)> {
        let (head, values): (Vec<_>, Vec<_>) = (head.split('\n').collect(), values.split('\n').collect());
        let (same, names) = head.split_at(head.len() - values.len());
        let same = same.chunks(2).map(|pair| (pair[0], pair[1]));
        let all = same.chain(names.iter().copied().zip(values));
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn signed(method: Method, path: &str, features: &str) -> Vec<(String, String)> {
        let (mut callers, mut values) = (callers(), String::new());
        let caller = callers.meet(&identity(&features.into())).head().clone();
        let path = CanonicalPath::parse(path).unwrap();
        callers.meet(&identity(&features.into())).sign(method, &path, NOW, REQUEST, &mut values);
        headers(&caller, &values)
    }

    /// What an origin does, without its look at the clock.
    fn verifies(secret: &[u8], method: &str, path: &str, headers: &BTreeMap<String, String>) -> bool {
        let lines: Option<Vec<_>> = SIGNED.iter().map(|name| headers.get(*name).map(String::as_str)).collect();
        let Some(lines) = lines else { return false };
        let text = [&["tollgate-v1"][..], &lines, &[method, path]].concat().join("\n");
        let mac = Hmac::<Sha256>::new_from_slice(secret).unwrap().chain_update(text).finalize().into_bytes();
        let hex = mac.iter().fold("v1=".to_owned(), |hex, byte| format!("{hex}{byte:02x}"));
        headers.get(SIGNATURE) == Some(&hex)
    }

    #[test]
    fn the_signature_is_the_documented_one() {
        let lines: Vec<_> = signed(Method::Post, "/v1/reports", "analytics,pdf-export")
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect();
        // The file was made by another implementation (Python hmac), so it proves the text above as well.
        assert_eq!(lines.concat(), include_str!("../../tests/golden/signed_headers.txt"));
    }

    #[test]
    fn every_part_is_bound() {
        let headers: BTreeMap<_, _> = signed(Method::Post, "/v1/reports/", "").into_iter().collect();
        assert!(verifies(&SECRET, "POST", "/v1/reports/", &headers));
        assert!(!verifies(&SECRET, "GET", "/v1/reports/", &headers));
        assert!(!verifies(&SECRET, "POST", "/v1/reports", &headers));
        for name in SIGNED.into_iter().chain([SIGNATURE]) {
            let mut other = headers.clone();
            other.get_mut(name).unwrap().push('0');
            assert!(!verifies(&SECRET, "POST", "/v1/reports/", &other), "{name} changed");
            other.remove(name);
            assert!(!verifies(&SECRET, "POST", "/v1/reports/", &other), "{name} missing");
        }
        assert!(!verifies(&[8; 32], "POST", "/v1/reports/", &headers));
    }

    #[test]
    fn a_short_secret_makes_no_signer() {
        assert_eq!(Signer::new(&[7; 31]).err(), Some(WeakSecret));
        assert_eq!(format!("{:?}", Signer::new(&SECRET).unwrap()), "Signer");
    }

    #[test]
    fn the_door_is_told_once_of_each_caller_as_it_is() {
        let mut callers = callers();
        let (a, same, ab): (Rc<str>, Rc<str>, Rc<str>) = ("a".into(), "a".into(), "a,b".into());
        let (place, head) = callers.meet(&identity(&a)).keep();
        assert!(head.unwrap().contains("\nX-Tollgate-Features\na\n"));
        assert_eq!(callers.meet(&identity(&same)).keep(), (place, None));
        let (again, head) = callers.meet(&identity(&ab)).keep();
        assert!(again == place && head.unwrap().contains("\nX-Tollgate-Features\na,b\n"));
        let other_plan = Identity { plan: "free", ..identity(&ab) };
        assert!(callers.meet(&other_plan).keep().1.unwrap().contains("\nX-Tollgate-Plan\nfree\n"));
        let other_key = Identity { key: KeyId::new(6), ..identity(&ab) };
        let (elsewhere, head) = callers.meet(&other_key).keep();
        assert!(elsewhere != place && head.is_some());
    }

    #[test]
    fn callers_that_are_met_again_after_all_others_are_told_of_again() {
        let (mut callers, features) = (callers(), Rc::from(""));
        let meet =
            |callers: &mut Callers, key| callers.meet(&Identity { key: KeyId::new(key), ..identity(&features) }).keep();
        let places: std::collections::BTreeSet<_> =
            (0..Place::COUNT as u64).map(|key| meet(&mut callers, key).0.number()).collect();
        assert_eq!(places.len(), Place::COUNT);
        assert_eq!(meet(&mut callers, 0).1, None);
        assert!(meet(&mut callers, 1 << 20).1.is_some());
        assert!(meet(&mut callers, 0).1.is_some());
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies(path in "(/[a-z0-9,.]{0,3}[a-z0-9]){1,4}/?", features in "([a-z]{1,4}(,[a-z]{1,4})?)?") {
            for method in Method::ALL {
                let headers = signed(method, &path, &features).into_iter().collect();
                prop_assert!(verifies(&SECRET, method.name(), &path, &headers));
            }
        }
    }
}
