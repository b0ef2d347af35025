//! TODO-HEADER guard
