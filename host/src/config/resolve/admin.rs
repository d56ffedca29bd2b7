//! The listener for operators.

use std::net::SocketAddr;

use super::field;
use crate::config::model::{AdminConfig, ListenAddress, ServiceConfig};
use crate::config::path::ConfigPath;
use crate::config::problem::ProblemReport;
use crate::config::raw::RawAdmin;
use crate::values::secret::SecretString;

const DEFAULT_PORT: u16 = 9090;

pub(super) fn admin(
    raw: &RawAdmin,
    services: &[ServiceConfig],
    report: &mut ProblemReport,
) -> Option<AdminConfig> {
    let path = ConfigPath::root().key("admin");
    let address = field::ip_address(raw.listen.as_deref(), path.key("listen"), report)?;
    let listen = SocketAddr::new(address, raw.listen_port.unwrap_or(DEFAULT_PORT));
    field::check_listen_address(&ListenAddress::Ip(listen), None, &path, services, report);
    let token_field = path.key("token");
    let token = field::non_empty(raw.token.as_deref());
    match token {
        Some(token) => {
            field::check_token(token, token_field.clone(), report);
            field::warn_if_short(token, token_field, report);
        }
        None if address.is_loopback() => {}
        None => {
            let problem = match raw.token {
                None => "missing",
                Some(_) => "must not be empty",
            };
            let message =
                format!("{problem}: required because {address} is not a loopback address");
            report.problem(token_field, message);
        }
    }
    Some(AdminConfig {
        listen,
        token: token.map(|token| SecretString::new(token.to_owned())),
    })
}
