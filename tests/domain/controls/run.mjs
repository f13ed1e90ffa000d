// Breaks the lease protocol on purpose, one rule at a time (controls.mjs), and demands that the named test notices: a check
// that cannot fail proves nothing. Works on a copy of the crate with a target directory of its own.
//
//   node tests/domain/controls/run.mjs [--only <part of a name>] [--quick]      --quick: every tenth control

import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { controls } from './controls.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..', '..');
const work = join(process.env.CONTROLS_DIR ?? join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), 'controls'), 'crate');
const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1] : undefined;
const quick = process.argv.includes('--quick');
const chosen = controls.filter(([name], place) => (only ? name.includes(only) : !quick || place % 10 === 1));

rmSync(work, { recursive: true, force: true });
mkdirSync(work, { recursive: true });
for (const part of ['src', 'tests/domain', 'schema', 'Cargo.toml', 'Cargo.lock', 'rust-toolchain.toml', 'clippy.toml', 'build.rs']) {
	if (existsSync(join(root, part))) cpSync(join(root, part), join(work, part), { recursive: true });
}

const env = { ...process.env, CARGO_TARGET_DIR: join(work, '..', 'target'), SEEDS: process.env.SEEDS ?? '300', RUST_BACKTRACE: '0' };
const cargo = (...args) => spawnSync('cargo', ['test', '--quiet', '--test', 'limits', ...args], { cwd: work, env, encoding: 'utf8' });

const limit = join(work, 'src/domain/limit');
const files = readdirSync(limit).map((name) => join(limit, name));
const originals = new Map(files.map((file) => [file, readFileSync(file, 'utf8')]));
// Some rules are kept twice: then both are broken.
const pairs = ([, code, broken]) => (Array.isArray(code) ? code.map((part, at) => [part, broken[at]]) : [[code, broken]]);
const holders = (part) => files.filter((file) => originals.get(file).includes(part));

// All of them, also where only some are run: one that breaks nothing any more would be found out much later.
const stale = controls.flatMap((control) => pairs(control).map(([part]) => [control[0], part]))
	.filter(([, part]) => holders(part).length !== 1 || originals.get(holders(part)[0]).split(part).length !== 2);
for (const [name, part] of stale) console.error(`MISSED   ${name}: the code to break is not there once: ${part}`);
if (stale.length) process.exit(1);

const built = cargo('--no-run');
if (built.status !== 0) {
	console.error(built.stderr);
	throw new Error('the crate does not build as it is');
}

let missed = 0;
for (const control of chosen) {
	const [name, , , test] = control;
	for (const [part, to] of pairs(control)) {
		const [file] = holders(part);
		writeFileSync(file, readFileSync(file, 'utf8').replace(part, () => to));
	}
	const builds = cargo('--no-run');
	const run = builds.status === 0 ? cargo(test) : undefined;
	let verdict;
	if (!run) verdict = `does not compile: ${builds.stderr.split('\n').find((line) => line.startsWith('error'))}`;
	else if (run.status === 0) verdict = `${test} did not notice`;
	for (const [file, text] of originals) writeFileSync(file, text);
	console.log(`${verdict ? 'MISSED ' : 'noticed'}  ${name}${verdict ? `: ${verdict}` : ''}`);
	missed += verdict ? 1 : 0;
}
console.log(`${chosen.length - missed} of ${chosen.length} controls noticed`);
process.exit(missed ? 1 : 0);
