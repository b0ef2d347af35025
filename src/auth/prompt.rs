//! TODO-HEADER prompt
