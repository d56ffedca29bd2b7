//! What the paths under `/ocm/v1/` serve: the status of a user's credentials, and reverse
//! connections of other gateways. Neither is a request to upstream.

pub(super) mod reverse;
pub(super) mod status;
