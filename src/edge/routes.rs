//! The table of contents of Tollgate's own API.
//!
//! Invariant: what is not in it is 404, and another method of a path that is in it 405.

use super::api::{Answer, Call, Serving};
use super::{caller, operator};
use crate::domain::decision::Code;
use crate::domain::path::CanonicalPath;
use crate::domain::route::Method;
use crate::wire::change::{catalog, tenant};
use crate::wire::problem::Failure;

/// How a route is served.
#[derive(Clone, Copy)]
pub(crate) enum Serve {
    /// At once.
    Say(fn(&Call) -> Result<Answer, Failure>),
    /// After asking databases or objects.
    Ask(fn(Call) -> Serving),
    /// A change of the catalog.
    Catalog(catalog::Decide),
    /// A change of one tenant.
    Tenant(tenant::Decide),
}

static ROUTES: [(&str, Method, Serve); 30] = {
    use Method::{Delete, Get, Post, Put};
    use Serve::{Ask, Catalog, Say, Tenant};
    [
        ("/healthz", Get, Say(caller::health)),
        ("/problems/{code}", Get, Say(caller::problem_page)),
        // What a tenant's keys may ask.
        ("/v1/check", Post, Ask(|call| Box::pin(caller::check(call)))),
        ("/v1/features", Get, Ask(|call| Box::pin(caller::features(call)))),
        ("/v1/features/{key}", Get, Ask(|call| Box::pin(caller::feature(call)))),
        ("/v1/usage", Get, Ask(|call| Box::pin(caller::usage(call)))),
        // What is sold.
        ("/v1/admin/catalog", Get, Ask(|call| Box::pin(operator::catalog(call)))),
        ("/v1/admin/features/{name}", Put, Catalog(catalog::put_feature)),
        ("/v1/admin/meters/{name}", Put, Catalog(catalog::put_meter)),
        ("/v1/admin/origins/{name}", Put, Catalog(catalog::put_origin)),
        ("/v1/admin/kill-switches/{name}", Put, Catalog(catalog::put_kill_switch)),
        ("/v1/admin/kill-switches/{name}", Delete, Catalog(catalog::delete_kill_switch)),
        ("/v1/admin/plans/{name}/versions", Post, Catalog(catalog::publish_plan)),
        ("/v1/admin/audit", Get, Ask(|call| Box::pin(operator::audit_records(call)))),
        // To whom.
        ("/v1/admin/tenants", Post, Ask(|call| Box::pin(operator::create_tenant(call)))),
        ("/v1/admin/tenants", Get, Ask(|call| Box::pin(operator::tenants(call)))),
        ("/v1/admin/tenants/{id}", Get, Ask(|call| Box::pin(operator::tenant(call)))),
        ("/v1/admin/tenants/{id}/status", Put, Tenant(tenant::put_status)),
        ("/v1/admin/tenants/{id}/subscription", Put, Tenant(tenant::put_subscription)),
        ("/v1/admin/tenants/{id}/overrides/{name}", Put, Tenant(tenant::put_override)),
        ("/v1/admin/tenants/{id}/overrides/{name}", Delete, Tenant(tenant::delete_override)),
        ("/v1/admin/tenants/{id}/limits/{name}", Put, Tenant(tenant::put_limit)),
        ("/v1/admin/tenants/{id}/limits/{name}", Delete, Tenant(tenant::delete_limit)),
        ("/v1/admin/tenants/{id}/relations/{name}", Put, Tenant(tenant::put_relation)),
        ("/v1/admin/tenants/{id}/relations/{name}", Delete, Tenant(tenant::delete_relation)),
        ("/v1/admin/tenants/{id}/keys", Post, Tenant(tenant::create_key)),
        ("/v1/admin/tenants/{id}/keys", Get, Ask(|call| Box::pin(operator::keys(call)))),
        ("/v1/admin/tenants/{id}/keys/{key}", Delete, Tenant(tenant::revoke_key)),
        ("/v1/admin/tenants/{id}/usage", Get, Ask(|call| Box::pin(operator::usage(call)))),
        ("/v1/admin/tenants/{id}/audit", Get, Ask(|call| Box::pin(operator::tenant_audit(call)))),
    ]
};

/// The route of a request.
///
/// # Errors
/// 404 for none, 405 where the path has routes for other methods.
pub(crate) fn find(method: &str, path: &CanonicalPath<'_>) -> Result<(Method, &'static str, Serve), Failure> {
    let mut allowed = Vec::new();
    for (pattern, served, serve) in ROUTES.iter().filter(|(pattern, ..)| path.fits(pattern)) {
        let served: &[Method] = if *served == Method::Get { &[Method::Get, Method::Head] } else { &[*served] };
        if let Some(method) = served.iter().find(|served| served.name() == method) {
            return Ok((*method, pattern, *serve));
        }
        allowed.extend_from_slice(served);
    }
    if allowed.is_empty() {
        return Err(Failure::new(Code::NotFound));
    }
    Err(Failure { allow: Some(Method::listed(&allowed)), ..Failure::new(Code::MethodNotAllowed) })
}
