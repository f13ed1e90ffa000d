//! The canonical form of a request path.
