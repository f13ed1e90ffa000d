//! The shapes that cross a border: parsed once, then trusted.
