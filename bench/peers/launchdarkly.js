// LaunchDarkly's SDK for Cloudflare: one client for the life of the isolate, one flag for each request.
import { init } from "@launchdarkly/cloudflare-server-sdk";

let client;

export default {
  async fetch(request, env) {
    if (!client) {
      client = init(env.LAUNCHDARKLY_KEY, env.KV);
      await client.waitForInitialization();
    }
    const context = { kind: "tenant", key: request.headers.get("x-api-key"), plan: env.PLAN };
    const on = await client.variation(env.FEATURE, context, false);
    return on ? new Response("ok") : new Response("Feature not available", { status: 403 });
  },
};
