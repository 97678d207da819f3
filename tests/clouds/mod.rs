//! Cloud servers that sites have: what the one for tests does by its switches.

mod habits;
