// Breaks the lease protocol on purpose, one rule at a time (controls.mjs), and demands that the named test notices: a check
// that cannot fail proves nothing. Works on a copy of the crate with a target directory of its own.
//
//   node tests/domain/controls/run.mjs [--only <part of a name>] [--quick]      --quick: every tenth control

import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
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

const built = cargo('--no-run');
if (built.status !== 0) {
	console.error(built.stderr);
	throw new Error('the crate does not build as it is');
}

let missed = 0;
for (const [name, file, code, broken, test] of chosen) {
	const path = join(work, 'src/domain/limit', file);
	const original = readFileSync(path, 'utf8');
	// Some rules are kept twice: then both are broken.
	const pairs = Array.isArray(code) ? code.map((part, at) => [part, broken[at]]) : [[code, broken]];
	const odd = pairs.find(([part]) => original.split(part).length !== 2);
	let verdict;
	if (odd) {
		verdict = `the code to break is there ${original.split(odd[0]).length - 1} times: ${odd[0]}`;
	} else {
		writeFileSync(path, pairs.reduce((text, [part, to]) => text.replace(part, () => to), original));
		const builds = cargo('--no-run');
		const run = builds.status === 0 ? cargo(test) : undefined;
		if (!run) verdict = `does not compile: ${builds.stderr.split('\n').find((line) => line.startsWith('error'))}`;
		else if (run.status === 0) verdict = `${test} did not notice`;
		writeFileSync(path, original);
	}
	console.log(`${verdict ? 'MISSED ' : 'noticed'}  ${name}${verdict ? `: ${verdict}` : ''}`);
	missed += verdict ? 1 : 0;
}
console.log(`${chosen.length - missed} of ${chosen.length} controls noticed`);
process.exit(missed ? 1 : 0);
