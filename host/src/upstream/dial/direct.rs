//! Connections of this host: name resolution, and a race between the versions of IP (RFC 8305).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use super::error::DialFailure;
use super::sockets;
use super::target::{DialAddress, DialDeadline};
use crate::config::SocketOptions;
use crate::files::io_reason;

/// Connects to `target`.
///
/// # Errors
/// The name has no address, or no address accepted the connection in time.
pub(super) async fn connect(
    target: &DialAddress,
    options: &SocketOptions,
    deadline: DialDeadline,
) -> Result<TcpStream, DialFailure> {
    let step = format!("resolving {}", target.host);
    let addresses = deadline.bound(&step, resolve(target)).await?;
    let step = format!("connecting to {target}");
    deadline
        .bound(&step, race(target, addresses, options, deadline))
        .await
}

/// Returns the addresses of `target`, at least one.
///
/// # Errors
/// It has none.
pub(super) async fn resolve(target: &DialAddress) -> Result<Vec<SocketAddr>, DialFailure> {
    if let Ok(address) = target.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, target.port)]);
    }
    let failed = |reason: String| DialFailure::Resolve {
        host: target.host.clone(),
        reason,
    };
    let found = lookup_host((target.host.as_str(), target.port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| failed(io_reason(&error)))?.collect();
    if addresses.is_empty() {
        return Err(failed("no address".to_owned()));
    }
    Ok(addresses)
}

/// Tries the addresses of the preferred version of IP, which is that of the first address, and
/// after a delay or their failure those of the other version, too.
async fn race(
    target: &DialAddress,
    addresses: Vec<SocketAddr>,
    options: &SocketOptions,
    deadline: DialDeadline,
) -> Result<TcpStream, DialFailure> {
    let share = deadline.left() / u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let limit = options.connect_timeout.unwrap_or(share);
    let is_preferred = addresses[0].is_ipv4();
    let (preferred, others): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv4() == is_preferred);
    let preferred = first_of(target, preferred, options, limit);
    if others.is_empty() {
        return preferred.await;
    }
    tokio::pin!(preferred);
    let failure = tokio::select! {
        connected = &mut preferred => match connected {
            Ok(stream) => return Ok(stream),
            Err(failure) => Some(failure),
        },
        () = sleep(options.fallback_delay) => None,
    };
    let others = first_of(target, others, options, limit);
    if let Some(failure) = failure {
        return others.await.map_err(|_| failure);
    }
    tokio::pin!(others);
    tokio::select! {
        connected = &mut preferred => match connected {
            Ok(stream) => Ok(stream),
            Err(failure) => others.await.map_err(|_| failure),
        },
        connected = &mut others => match connected {
            Ok(stream) => Ok(stream),
            Err(_) => preferred.await,
        },
    }
}

/// Tries `addresses` in order, each for `limit`. There is at least one.
async fn first_of(
    target: &DialAddress,
    addresses: Vec<SocketAddr>,
    options: &SocketOptions,
    limit: Duration,
) -> Result<TcpStream, DialFailure> {
    let mut failure = None;
    for address in addresses {
        match attempt(target, address, options, limit).await {
            Ok(stream) => return Ok(stream),
            // The first one is about the address that the system prefers.
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or(DialFailure::NoHost))
}

async fn attempt(
    target: &DialAddress,
    address: SocketAddr,
    options: &SocketOptions,
    limit: Duration,
) -> Result<TcpStream, DialFailure> {
    let socket = sockets::open(address, options).await?;
    match timeout(limit, socket.connect(address)).await {
        Ok(Ok(stream)) => {
            // Small writes are not delayed. A connection that is gone already fails later.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(DialFailure::Connect {
            target: target.to_string(),
            reason: io_reason(&error),
        }),
        Err(_) => Err(DialFailure::TimedOut {
            step: format!("connecting to {target}"),
            limit,
        }),
    }
}
