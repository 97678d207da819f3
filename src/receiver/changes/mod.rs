//! `POST /changes`: from the lines of the body to the rows of a batch, applied once and in its turn.

pub(crate) mod apply;
pub(crate) mod batch;
pub(crate) mod fast_path;
pub(crate) mod route;
pub(crate) mod turn;
