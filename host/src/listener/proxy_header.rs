//! The header with which a proxy begins a connection: the PROXY protocol, versions 1 and 2
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
//!
//! Invariant: exactly the bytes of the header are read, so that what follows can be TLS or HTTP.

use std::io;
use std::net::IpAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::values::exchange::client_address::ClientAddress;
use crate::values::limits::PROXY_HEADER_BYTES;

/// The bytes by which both versions can be told apart: the signature of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// How version 1 begins.
const TEXT_START: &[u8] = b"PROXY ";

/// The longest header of version 1, its line end included (section 2.1).
const TEXT_BYTES_MAX: usize = 107;

/// The fixed part of version 2: the signature, version and command, family, length.
const BINARY_START: usize = 16;

/// Where version 2 has its version and command, and what it says there if the connection is the
/// proxy's own: version 2, command LOCAL.
const COMMAND_AT: usize = 12;
const LOCAL: u8 = 0x20;

/// Why a connection without a usable header is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyHeaderError {
    /// The peer is not among `trusted_proxies`.
    #[error("PROXY protocol header: the peer is not a trusted proxy")]
    Untrusted,
    /// The connection begins with something else.
    #[error("PROXY protocol header: expected one, found other data")]
    Missing,
    /// The header is longer than is read.
    #[error("PROXY protocol header: expected at most {PROXY_HEADER_BYTES} bytes, found more")]
    TooLong,
    /// The header is broken.
    #[error("PROXY protocol header: {0}")]
    Malformed(String),
    /// The connection ended or broke.
    #[error("PROXY protocol header: {0}")]
    Io(#[from] io::Error),
}

/// Reads the header that `stream` begins with. Returns the client's address, or `None` if the proxy
/// speaks for itself or does not know the address.
///
/// # Errors
/// There is no header, or it cannot be used.
pub(crate) async fn read_proxy_header(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<ClientAddress>, ProxyHeaderError> {
    let mut header = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    let address = if header == SIGNATURE {
        read_binary(stream, &mut header).await?;
        binary_address(&header)?
    } else if header.starts_with(TEXT_START) {
        read_text(stream, &mut header).await?;
        text_address(&header)?
    } else {
        return Err(ProxyHeaderError::Missing);
    };
    Ok(address.map(ClientAddress::from))
}

async fn read_text(
    stream: &mut (impl AsyncRead + Unpin),
    header: &mut Vec<u8>,
) -> Result<(), ProxyHeaderError> {
    while !header.ends_with(b"\r\n") {
        if header.len() == TEXT_BYTES_MAX {
            return Err(ProxyHeaderError::TooLong);
        }
        header.push(stream.read_u8().await?);
    }
    Ok(())
}

async fn read_binary(
    stream: &mut (impl AsyncRead + Unpin),
    header: &mut Vec<u8>,
) -> Result<(), ProxyHeaderError> {
    header.resize(BINARY_START, 0);
    stream.read_exact(&mut header[SIGNATURE.len()..]).await?;
    let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if BINARY_START + length > PROXY_HEADER_BYTES {
        return Err(ProxyHeaderError::TooLong);
    }
    header.resize(BINARY_START + length, 0);
    stream.read_exact(&mut header[BINARY_START..]).await?;
    Ok(())
}

fn text_address(header: &[u8]) -> Result<Option<IpAddr>, ProxyHeaderError> {
    let header = v1::Header::try_from(header)
        .map_err(|error| ProxyHeaderError::Malformed(error.to_string()))?;
    Ok(match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
    })
}

fn binary_address(header: &[u8]) -> Result<Option<IpAddr>, ProxyHeaderError> {
    // The receiver must ignore the rest of a header of the proxy itself (section 2.2).
    if header[COMMAND_AT] == LOCAL {
        return Ok(None);
    }
    let header = v2::Header::try_from(header)
        .map_err(|error| ProxyHeaderError::Malformed(error.to_string()))?;
    Ok(match (header.command, header.addresses) {
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => {
            Some(addresses.source_address.into())
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => {
            Some(addresses.source_address.into())
        }
        (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> (Result<Option<ClientAddress>, String>, usize) {
        let mut stream = bytes;
        let read = read_proxy_header(&mut stream).await;
        (read.map_err(|error| error.to_string()), stream.len())
    }

    fn address(text: &str) -> ClientAddress {
        ClientAddress::from(text.parse::<IpAddr>().expect("an address"))
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("a short body");
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(length.to_be_bytes());
        header.extend(body);
        header
    }

    #[tokio::test]
    async fn exactly_the_header_is_read() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x10, 0, 0x1f, 0x90];
        let v6 = [[0x20; 16], [0x30; 16]].concat();
        let with_extension = [&v4[..], &[0x04, 0, 2, 1, 1]].concat();
        for (header, expected) in [
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 4096 8080\r\n".to_vec(),
                Some("192.0.2.7"),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 4096 8080\r\n".to_vec(),
                Some("2001:db8::7"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), None),
            (binary(1, 0x11, &v4), Some("192.0.2.7")),
            (binary(1, 0x11, &with_extension), Some("192.0.2.7")),
            (
                binary(1, 0x21, &[v6.as_slice(), &[0, 1, 0, 2]].concat()),
                Some("2020:2020:2020:2020:2020:2020:2020:2020"),
            ),
            (binary(0, 0, &[]), None),
            (binary(0, 0x11, &v4), None),
            (binary(0, 0xff, b"anything"), None),
            (binary(1, 0x31, &[7; 216]), None),
        ] {
            let bytes = [header.as_slice(), b"GET"].concat();
            let expected = expected.map(address);
            assert_eq!(read(&bytes).await, (Ok(expected), 3), "{header:?}");
        }
    }

    #[tokio::test]
    async fn other_data_is_rejected() {
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; TEXT_BYTES_MAX]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".as_slice(),
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4096\r\n",
            b"PROXY TCP4 nonsense 10.0.0.1 4096 8080\r\n",
            b"PROXY TCP4 192.0.2.7",
            b"",
            &long,
            &binary(1, 0x11, &[1, 2, 3]),
            &binary(1, 0x11, &[0; PROXY_HEADER_BYTES]),
            &binary(9, 0x11, &[0; 12]),
            &binary(1, 0x11, &[0; 12])[..20],
        ] {
            let (read, _) = read(bytes).await;
            assert!(read.is_err(), "{bytes:?}: {read:?}");
        }
    }
}
