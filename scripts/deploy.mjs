// `npm run deploy`: puts the Worker on Cloudflare, the first time and every time.
//
//   --dry-run        everything that needs no account: build, configuration, and what Wrangler would upload
//   --message TEXT   what this version is, for the list of deployments
//
// It may be interrupted and run again at any point: every step looks first at what the account already has. Migrations go
// before the code, one database after another. New code must work with the schema before it and old code with the one after,
// so both this order and a rollback are safe.

import fs from "node:fs";
import path from "node:path";
import { build } from "./build.mjs";
import { Failed, Missing, checkMachine, command, has, inPinnedNode, option, pinnedNode, root, run, say, sinceBegan, stateDir, step } from "./tools.mjs";

// Known once the packages are installed.
let stringify, config, generateSecrets;

const dir = path.join(stateDir, "deploy");
const configFile = path.join(dir, "wrangler.toml");
const secretsFile = path.join(dir, "secrets.json");

const wrangler = (args, options = {}) => run(pinnedNode, ["node_modules/wrangler/bin/wrangler.js", ...args], {
  // CI: no questions. This script asked the account already.
  env: { CI: "1", WRANGLER_SEND_METRICS: "false", FORCE_COLOR: "0" },
  title: `wrangler ${args.filter((arg) => !arg.startsWith("/") && arg !== "--config").join(" ")}`,
  ...options,
});
/** Wrangler may print notices around its JSON. */
const json = (text) => JSON.parse(text.slice(text.search(/[[{]/), Math.max(text.lastIndexOf("]"), text.lastIndexOf("}")) + 1));

async function checkLogin() {
  const { loggedIn } = json(await wrangler(["whoami", "--json"]).catch((error) => (error instanceof Failed ? '{"loggedIn":false}' : Promise.reject(error))));
  if (!loggedIn) throw new Missing("Wrangler is not logged in to Cloudflare. Either `npx wrangler login`, or set CLOUDFLARE_API_TOKEN (permissions: Workers Scripts, Workers KV Storage and D1, edit) and CLOUDFLARE_ACCOUNT_ID.");
}

/** The jurisdiction is the second word of a shard's name: tollgate-shard-eu-1. It is fixed when the database is made. */
const jurisdiction = (name) => name.match(/-shard-(eu|fedramp)-/)?.[1];

async function databaseIds(databases) {
  const list = async () => new Map(json(await wrangler(["d1", "list", "--json"])).map(({ name, uuid }) => [name, uuid]));
  let ids = await list();
  for (const { database_name: name } of databases.filter(({ database_name }) => !ids.has(database_name))) {
    const where = jurisdiction(name);
    await step(`create database ${name}${where ? ` in jurisdiction ${where}` : ""}`, () => wrangler(["d1", "create", name, ...(where ? ["--jurisdiction", where] : [])]));
    ids = await list();
  }
  return ids;
}

async function namespaceIds(names) {
  const list = async () => new Map(json(await wrangler(["kv", "namespace", "list"])).map(({ title, id }) => [title, id]));
  let ids = await list();
  for (const name of names.filter((each) => !ids.has(each))) {
    await step(`create KV namespace ${name}`, () => wrangler(["kv", "namespace", "create", name]));
    ids = await list();
  }
  return ids;
}

const namespaceName = (settings, binding) => `${settings.name}-${binding.toLowerCase()}`;

/** wrangler.toml with the account's ids in it. A file apart: the repository's own stays the same for everybody. */
function writeConfig(settings, ids) {
  const { build: _, ...rest } = settings; // it is built already
  const filled = {
    ...rest,
    main: path.join(root, settings.main),
    d1_databases: settings.d1_databases.map((each) => ({ ...each, database_id: ids.databases.get(each.database_name), migrations_dir: path.join(root, each.migrations_dir) })),
    kv_namespaces: settings.kv_namespaces.map((each) => ({ ...each, id: ids.namespaces.get(namespaceName(settings, each.binding)) })),
  };
  fs.mkdirSync(dir, { recursive: true });
  fs.writeFileSync(configFile, `# Written by scripts/deploy.mjs from wrangler.toml, with the ids of this account.\n${stringify(filled)}`);
}

/** Values for the secrets that the Worker does not have yet. Kept before they are uploaded, so that a second try uses the same. */
async function missingSecrets() {
  const present = await wrangler(["secret", "list", "--format", "json", "--config", configFile]).then(json, (error) => {
    if (/not found|does not exist|10007/i.test(error.output)) return []; // no Worker yet
    throw error;
  });
  const names = new Set(present.map(({ name }) => name));
  const kept = fs.existsSync(secretsFile) ? JSON.parse(fs.readFileSync(secretsFile, "utf8")) : {};
  const missing = Object.fromEntries(Object.entries({ ...generateSecrets(), ...kept }).filter(([name]) => !names.has(name)));
  if (Object.keys(missing).length) fs.writeFileSync(secretsFile, `${JSON.stringify({ ...kept, ...missing }, null, 2)}\n`, { mode: 0o600 });
  return missing;
}

async function uploadArguments(missing) {
  const message = option("message");
  const upload = ["deploy", "--config", configFile, ...(message ? ["--message", message] : [])];
  if (!Object.keys(missing).length) return { upload, clean: () => {} };
  // With the version, not after it: there is no moment at which the Worker runs without them.
  const file = path.join(dir, "upload.json");
  fs.writeFileSync(file, JSON.stringify(missing), { mode: 0o600 });
  return { upload: [...upload, "--secrets-file", file], clean: () => fs.rmSync(file, { force: true }) };
}

await command(async () => {
  checkMachine();
  await build();
  await inPinnedNode();
  ({ stringify } = await import("smol-toml"));
  ({ config, generateSecrets } = await import("./settings.mjs"));
  const settings = config();

  if (has("dry-run")) {
    const unknown = { get: (name) => `id-of-${name}` };
    writeConfig(settings, { databases: unknown, namespaces: unknown });
    await step("wrangler deploy --dry-run", () => wrangler(["deploy", "--dry-run", "--outdir", "build/dry-run", "--config", configFile]));
    say(`\nNothing was sent. With an account, \`npm run deploy\` would make sure of the databases ${settings.d1_databases.map(({ database_name }) => database_name).join(", ")}` +
      ` and the KV namespace ${settings.kv_namespaces.map(({ binding }) => namespaceName(settings, binding)).join(", ")}, migrate each database, put the secrets that are missing` +
      ` (${Object.keys(generateSecrets()).join(", ")}) and deploy.`);
    return;
  }

  await step("account", checkLogin);
  const databases = await step("databases", () => databaseIds(settings.d1_databases));
  const namespaces = await step("KV", () => namespaceIds(settings.kv_namespaces.map(({ binding }) => namespaceName(settings, binding))));
  writeConfig(settings, { databases, namespaces });
  for (const { binding, database_name } of settings.d1_databases) {
    await step(`migrations of ${database_name}`, () => wrangler(["d1", "migrations", "apply", binding, "--remote", "--config", configFile]));
  }
  const missing = await step("secrets", missingSecrets);
  const { upload, clean } = await uploadArguments(missing);
  let output;
  try {
    output = await step("deploy", () => wrangler(upload));
  } finally {
    clean();
  }

  say(`\n${output.trim().split("\n").slice(-6).join("\n")}\n\nDeployed in ${sinceBegan()}.`);
  if (Object.keys(missing).length) {
    say(`\nNew secrets: ${Object.keys(missing).join(", ")}. Cloudflare never shows them again; they are in ${path.relative(root, secretsFile)}, readable by you alone.` +
      "\nMove that file to your vault. OPERATOR_KEY in it is the first operator key.");
  }
  say(`\nTo roll back: npx wrangler rollback --config ${path.relative(root, configFile)}            (the version before this one)`);
  say(`Versions:     npx wrangler deployments list --config ${path.relative(root, configFile)}`);
  say("The schema stays as it is: the version before works with it.");
});
