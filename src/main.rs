//! Parses, wires, exits.
fn main() {}
