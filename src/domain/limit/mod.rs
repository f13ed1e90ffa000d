//! Limits by escrow leases.
