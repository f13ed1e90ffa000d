// The door. A placeholder: it hands everything to Rust.
import * as rust from "../build/glue/index.js";

export { CatalogObject, TenantObject } from "../build/glue/index.js";

export default {
  fetch: (request, env, ctx) => rust.fetch(request, env, ctx),
  scheduled: (event, env, ctx) => rust.scheduled(event, env, ctx),
};
