//! TODO-HEADER recovery
