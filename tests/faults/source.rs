//! Faults of the site's database.
