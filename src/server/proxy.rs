//! TODO-HEADER proxy
