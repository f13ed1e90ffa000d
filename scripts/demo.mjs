// The demo: what a first look needs, made through the operator API alone, as an operator would.

const FEATURES = {
  reports: { kind: "boolean", description: "Reports on what was used." },
  analytics: { kind: "boolean", description: "Dashboards and funnels." },
  exports: { kind: "metered", description: "Exports, each at ten times the cost of a request." },
  branding: { kind: "config", default: { color: "#335577" }, description: "Colours of the tenant's own." },
};

const METERS = {
  api_calls: { description: "Requests to the API." },
  export_jobs: { description: "Exports, recorded one by one.", recording: "exact" },
};

const ROUTES = [
  { method: "GET", path: "/api/v1/reports", feature: "reports", meter: "api_calls" },
  { method: "GET", path: "/api/v1/reports/{id}", feature: "reports", meter: "api_calls" },
  { method: "GET", path: "/api/v1/analytics/{*rest}", feature: "analytics", meter: "api_calls" },
  { method: "POST", path: "/api/v1/exports", feature: "exports", meter: "export_jobs" },
  { method: "GET", path: "/api/v1/status", meter: "api_calls" },
];

const rate = (units, burst) => ({ meter: "api_calls", rate: { units, per_ms: 1000, burst } });
const quota = (units) => ({ meter: "api_calls", quota: { units, per: "month" } });
const exports = (units) => ({ meter: "export_jobs", quota: { units, per: "month" } });

const PLANS = {
  free: {
    title: "Free",
    features: { reports: true, analytics: false, exports: false },
    limits: { requests: rate(1, 5), monthly: quota(10_000) },
    upgrade_url: "/pricing",
  },
  pro: {
    title: "Pro",
    features: { reports: true, analytics: true, exports: true },
    limits: { requests: rate(100, 200), monthly: quota(5_000_000), exports: exports(1_000) },
    upgrade_url: "/pricing",
  },
  enterprise: {
    title: "Enterprise",
    features: { reports: true, analytics: true, exports: true, branding: { color: "#112233" } },
    limits: { requests: rate(1_000, 3_000), exports: exports(100_000) },
  },
};

/** Five tenants and a team of each kind under the last: one shares, one is capped, one has a part of its own. */
const TENANTS = [
  { slug: "hobby", name: "Hobby Ltd", plan: "free" },
  { slug: "studio", name: "Studio GmbH", plan: "pro", jurisdiction: "eu" },
  { slug: "agency", name: "Agency Inc", plan: "pro" },
  { slug: "bank", name: "Bank AG", plan: "enterprise", jurisdiction: "eu" },
  { slug: "acme", name: "Acme Group", plan: "enterprise" },
];
const amount = (units, burst) => ({ rate: { units, per_ms: 1000, burst } });
const TEAMS = [
  { slug: "acme-web", name: "Acme Web" },
  { slug: "acme-mobile", name: "Acme Mobile", relation: { cap: amount(50, 100) } },
  { slug: "acme-research", name: "Acme Research", relation: { carve: amount(200, 600) } },
];

/** Publishes the demo data. Returns the API keys, by slug. */
export async function seed({ url, operatorKey }) {
  const call = async (method, path, body) => {
    const response = await fetch(`${url}${path}`, {
      method,
      headers: { Authorization: `Bearer ${operatorKey}`, "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() },
      body: JSON.stringify(body),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return JSON.parse(text);
  };
  for (const [name, feature] of Object.entries(FEATURES)) await call("PUT", `/v1/admin/features/${name}`, feature);
  for (const [name, meter] of Object.entries(METERS)) await call("PUT", `/v1/admin/meters/${name}`, meter);
  await call("PUT", "/v1/admin/origins/default", { target: "demo", unmatched: "deny", routes: ROUTES });
  for (const [name, plan] of Object.entries(PLANS)) await call("POST", `/v1/admin/plans/${name}/versions`, plan);
  const made = {};
  for (const tenant of TENANTS) made[tenant.slug] = await call("POST", "/v1/admin/tenants", tenant);
  for (const { relation, ...team } of TEAMS) {
    made[team.slug] = await call("POST", "/v1/admin/tenants", { ...team, parent: made.acme.id });
    if (relation) await call("PUT", `/v1/admin/tenants/${made[team.slug].id}/relations/requests`, relation);
  }

  return Object.fromEntries(Object.entries(made).map(([slug, { api_key }]) => [slug, api_key]));
}

/** The keys and the curl lines that `npm start` prints, for a gate at `url`. */
export function shown(url, keys) {
  const plans = { hobby: "Free", studio: "Pro, in the EU", agency: "Pro", bank: "Enterprise, in the EU", acme: "Enterprise, an organisation",
    "acme-web": "its team that shares the limit", "acme-mobile": "its team that is capped", "acme-research": "its team with a part of its own" };
  return {
    keys: Object.entries(keys).map(([slug, key]) => ({ label: `${slug.padEnd(14)} ${plans[slug].padEnd(32)}`, key })),
    curls: [
      { says: "Allowed", line: `curl -i ${url}/gate/api/v1/reports -H 'X-API-Key: ${keys.hobby}'` },
      { says: "Refused for its plan", line: `curl -i ${url}/gate/api/v1/analytics -H 'X-API-Key: ${keys.hobby}'` },
      { says: "Refused for its rate: 20 at once, where the plan allows 5", line: `curl -s -o /dev/null -w '%{http_code} ' --parallel --parallel-immediate '${url}/gate/api/v1/reports?n=[1-20]' -H 'X-API-Key: ${keys.hobby}'` },
    ],
  };
}
