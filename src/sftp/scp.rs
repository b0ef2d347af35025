//! scp, to come.
