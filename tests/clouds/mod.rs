//! Cloud servers that sites have: what the one for tests does by its switches, and the smallest ones in
//! `examples/servers`.

mod habits;
mod smallest;
