//! Tests of the filter and the observer: tables, properties, and the real programs.

mod cases;
mod properties;
mod real;
mod scp;
mod script;
