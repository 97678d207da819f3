//! Faults of the machine: full disks, clocks that jump, signals, a second replicator.
