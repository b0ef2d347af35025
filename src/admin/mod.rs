//! The administrative verbs, shared by the command line and the console.
