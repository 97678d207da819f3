//! The tables of the entities: their columns, the types of these, and `PUT /schema`, which changes them.

pub(crate) mod column_type;
pub(crate) mod schema;
