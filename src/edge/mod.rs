//! The only room that names the platform: it loads, steps, saves and replies.
