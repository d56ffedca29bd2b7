//! Connections: TLS, certificates from an ACME server, upstreams that speak HTTP/2, and shutdowns.

mod acme;
mod drain;
mod http2_upstream;
mod tls;
