//! Route rules.
