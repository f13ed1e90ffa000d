//! What a panic runs on its way to whoever catches it: nothing.
//!
//! The compiler ends every call that could panic while something needs dropping with a handler that drops it and lets the
//! panic go on: a tenth of the module, for what never happens. Without these handlers a panic leaves behind what it
//! interrupted, unfreed, and whatever was borrowed stays borrowed. So the Worker keeps no memory where a panic could find
//! it: it takes it out, and puts it back when it has done with it (src/edge/isolate.rs, src/edge/tenant_object.rs).
//! Handlers that go on to anything else (those of `catch_unwind`, above all) are left alone.

use std::collections::HashSet;

use walrus::ir::{
    Block, Br, BrIf, BrTable, IfElse, Instr, InstrSeq, InstrSeqId, LegacyCatch, Return, Try, Visitor, dfs_in_order,
};
use walrus::{LocalFunction, Module};

/// Turns every `try` whose only handler catches all, and lets nothing go on but the exception, into a plain block.
pub fn without_cleanup(module: &mut Module) {
    for (_, function) in module.funcs.iter_local_mut() {
        let sequences = Reached::from(function, function.entry_block()).sequences;
        for id in sequences {
            let places = 0..function.block(id).instrs.len();
            let protected: Vec<_> = places.filter_map(|at| Some((at, only_cleaned_up(function, id, at)?))).collect();
            for (at, seq) in protected {
                function.block_mut(id).instrs[at].0 = Instr::Block(Block { seq });
            }
        }
    }
}

/// What is protected by the instruction at `at`, if that is a `try` after whose one handler nothing follows.
fn only_cleaned_up(function: &LocalFunction, id: InstrSeqId, at: usize) -> Option<InstrSeqId> {
    let Instr::Try(Try { seq, catches }) = &function.block(id).instrs[at].0 else { return None };
    let [LegacyCatch::CatchAll { handler }] = catches.as_slice() else { return None };
    let reached = Reached::from(function, *handler);
    (!reached.leaves() && !reached.passes(function, *handler)).then_some(*seq)
}

/// The sequences within one, and where branches go from there.
#[derive(Default)]
struct Reached {
    sequences: HashSet<InstrSeqId>,
    targets: HashSet<InstrSeqId>,
    returns: bool,
}

impl Reached {
    fn from(function: &LocalFunction, sequence: InstrSeqId) -> Self {
        let mut reached = Self::default();
        dfs_in_order(&mut reached, function, sequence);
        reached
    }

    /// Whether a branch leads out of it.
    fn leaves(&self) -> bool {
        self.returns || !self.targets.is_subset(&self.sequences)
    }

    /// Whether what follows `sequence`, which is one of these, may be reached from it.
    fn passes(&self, function: &LocalFunction, sequence: InstrSeqId) -> bool {
        self.targets.contains(&sequence)
            || function.block(sequence).instrs.iter().all(|(instruction, _)| match instruction {
                Instr::Unreachable(_) | Instr::Throw(_) | Instr::Rethrow(_) => false,
                Instr::Br(_) | Instr::BrTable(_) | Instr::Return(_) => false,
                Instr::Block(Block { seq }) => self.passes(function, *seq),
                Instr::IfElse(IfElse { consequent, alternative }) => {
                    self.passes(function, *consequent) || self.passes(function, *alternative)
                }
                Instr::Try(Try { seq, catches }) => {
                    let handled = catches.iter().any(|catch| match catch {
                        LegacyCatch::Catch { handler, .. } | LegacyCatch::CatchAll { handler } => {
                            self.passes(function, *handler)
                        }
                        LegacyCatch::Delegate { .. } => false,
                    });
                    handled || self.passes(function, *seq)
                }
                _ => true,
            })
    }
}

impl<'a> Visitor<'a> for Reached {
    fn start_instr_seq(&mut self, sequence: &'a InstrSeq) {
        self.sequences.insert(sequence.id());
    }
    fn visit_br(&mut self, br: &Br) {
        self.targets.insert(br.block);
    }
    fn visit_br_if(&mut self, br: &BrIf) {
        self.targets.insert(br.block);
    }
    fn visit_br_table(&mut self, table: &BrTable) {
        self.targets.extend(table.blocks.iter().copied().chain([table.default]));
    }
    fn visit_return(&mut self, _: &Return) {
        self.returns = true;
    }
}
