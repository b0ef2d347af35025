//! TODO-HEADER forward
