//! Views: from data to escaped HTML.
