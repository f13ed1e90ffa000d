// What the Worker is told: wrangler.toml, and the secrets that are in no file of the repository.

import { randomBytes } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { parse } from "smol-toml";
import { root, stateDir } from "./tools.mjs";

export const config = () => parse(fs.readFileSync(path.join(root, "wrangler.toml"), "utf8"));

/** New values for the secrets that wrangler.toml names, in the form it states. */
export function generateSecrets() {
  const secret = () => randomBytes(32).toString("base64url");
  return { DOCUMENT_KEYS: `2:${secret()},1:${secret()}`, API_KEY_KEYS: secret(), ORIGIN_KEY: secret(), OPERATOR_KEY: `tg_op_${secret()}` };
}

/** The secrets of this checkout, made once. A secret that is new in wrangler.toml is added; the others stay. */
export function localSecrets(file = path.join(stateDir, "secrets.json")) {
  const kept = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, "utf8")) : {};
  const secrets = { ...generateSecrets(), ...kept };
  if (Object.keys(secrets).length > Object.keys(kept).length) {
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, `${JSON.stringify(secrets, null, 2)}\n`, { mode: 0o600 });
  }
  return secrets;
}
