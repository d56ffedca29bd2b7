//! Connections: TLS, upstreams that speak HTTP/2, and shutdowns.

mod drain;
mod http2_upstream;
mod tls;
