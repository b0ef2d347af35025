//! TODO-HEADER stream
