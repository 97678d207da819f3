//! What every request passes: its route, who asks, how much it may take, and how an error is answered.

pub(crate) mod api_error;
pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod router;
pub(crate) mod site_shares;
pub(crate) mod status;
