//! SOCKS 4, 4a and 5, over a connection to the proxy.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use tokio_socks::tcp::{Socks4Stream, Socks5Stream};
use tokio_socks::{Error, TargetAddr};

use super::direct::resolve;
use super::error::DialFailure;
use super::stream::OutboundStream;
use super::target::DialAddress;
use crate::config::{SocksProxy, SocksVersion};
use crate::files::io_reason;

/// Asks the proxy at the other end of `stream` for a connection to `target`.
///
/// # Errors
/// The proxy refused, or does not speak the protocol.
pub(super) async fn handshake(
    stream: OutboundStream,
    proxy: &SocksProxy,
    target: &DialAddress,
) -> Result<OutboundStream, DialFailure> {
    let address = match proxy.version {
        SocksVersion::V4 => ipv4_address(target).await?,
        SocksVersion::V4a | SocksVersion::V5 => unresolved(target),
    };
    let login = proxy.login.as_ref();
    let login = login.map(|login| (login.username.expose(), login.password.expose()));
    let connected = match (proxy.version, login) {
        (SocksVersion::V4 | SocksVersion::V4a, None) => {
            let connected = Socks4Stream::connect_with_socket(stream, address).await;
            connected.map(Socks4Stream::into_inner)
        }
        (SocksVersion::V4 | SocksVersion::V4a, Some((user_id, _))) => {
            let connected =
                Socks4Stream::connect_with_userid_and_socket(stream, address, user_id).await;
            connected.map(Socks4Stream::into_inner)
        }
        (SocksVersion::V5, None) => {
            let connected = Socks5Stream::connect_with_socket(stream, address).await;
            connected.map(Socks5Stream::into_inner)
        }
        (SocksVersion::V5, Some((username, password))) => {
            let connected =
                Socks5Stream::connect_with_password_and_socket(stream, address, username, password);
            connected.await.map(Socks5Stream::into_inner)
        }
    };
    connected.map_err(|error| failure(&error, target))
}

/// Returns the target as the proxy resolves it.
fn unresolved(target: &DialAddress) -> TargetAddr<'_> {
    match target.host.parse::<IpAddr>() {
        Ok(address) => TargetAddr::Ip(SocketAddr::new(address, target.port)),
        Err(_) => TargetAddr::Domain(target.host.as_str().into(), target.port),
    }
}

/// Returns the first IPv4 address of the target: version 4 knows nothing else.
async fn ipv4_address(target: &DialAddress) -> Result<TargetAddr<'static>, DialFailure> {
    let addresses = resolve(target).await?;
    let address = addresses.into_iter().find(SocketAddr::is_ipv4);
    address
        .map(TargetAddr::Ip)
        .ok_or_else(|| DialFailure::Resolve {
            host: target.host.clone(),
            reason: "no IPv4 address, which SOCKS 4 needs".to_owned(),
        })
}

fn failure(error: &Error, target: &DialAddress) -> DialFailure {
    let reason = match error {
        Error::Io(error) if is_closed(error.kind()) => return DialFailure::ProxyClosed,
        Error::Io(error) => io_reason(error),
        Error::InvalidResponseVersion => "its reply is not SOCKS of this version".to_owned(),
        Error::NoAcceptableAuthMethods | Error::AuthorizationRequired => {
            "it expects another login (username, password)".to_owned()
        }
        Error::PasswordAuthFailure(_) => "it rejected the login".to_owned(),
        // The library reports unknown codes of a reply in this way, too.
        Error::UnknownAuthMethod => "its reply has a code that SOCKS does not define".to_owned(),
        other => other.to_string().to_lowercase(),
    };
    DialFailure::Socks {
        target: target.to_string(),
        reason,
    }
}

fn is_closed(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}
