//! The tables of the entities: their columns with their types, and `PUT /schema`, which changes them.

pub(crate) mod column_type;
pub(crate) mod schema;
