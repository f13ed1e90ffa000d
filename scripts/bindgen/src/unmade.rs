//! What belongs to values that are never made: dependencies' classes whose JavaScript side the build leaves out (scripts/build.mjs).
//!
//! Their exports go with it, but futures and closures of theirs stay: the module's table names them, and no tool can tell which
//! entries of that are used. Only values of these classes lead there. Streams are a dependency's own; what Tollgate streams, it leaves
//! to the platform.

use walrus::ir::{Instr, Unreachable};
use walrus::{FunctionKind, Module};

/// What the names of these functions have in common.
const UNMADE: &str = "wasm_streams[";

/// Leaves nothing of them but the end of a program that would get there.
pub fn emptied(module: &mut Module) {
    for function in module.funcs.iter_mut().filter(|function| function.name.as_ref().is_some_and(|name| name.contains(UNMADE))) {
        if let FunctionKind::Local(local) = &mut function.kind {
            let entry = local.entry_block();
            local.block_mut(entry).instrs = vec![(Instr::Unreachable(Unreachable {}), Default::default())];
        }
    }
}
