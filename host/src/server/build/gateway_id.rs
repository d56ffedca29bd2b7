//! The random id of this gateway, by which a loop between gateways is noticed. It is kept in
//! `data_dir`, so that it is the same after a restart.

use std::path::Path;

use uuid::Uuid;

use crate::files::{read_regular, replace_private};
use crate::values::headers::hops::GatewayId;

/// The file's name in `data_dir`.
const FILE_NAME: &str = "gateway-id";

/// The largest file that is read.
const FILE_BYTES: u64 = 256;

/// Returns the id in `data_dir`, which is written there if it is missing or broken. If it cannot be
/// written, the id lasts until the gateway stops. The folder must be locked.
pub(super) fn gateway_id(data_dir: &Path) -> GatewayId {
    let path = data_dir.join(FILE_NAME);
    let known = read_regular(&path, FILE_BYTES).ok();
    if let Some(id) = known.and_then(|text| GatewayId::from_text(&text)) {
        return id;
    }
    let id = GatewayId::new(*Uuid::new_v4().as_bytes());
    if let Err(error) = replace_private(&path, id.to_text().as_bytes()) {
        tracing::warn!(path = %path.display(), %error, "gateway id not written");
    }
    id
}
