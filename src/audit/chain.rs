//! The hash chain over the audit log.
