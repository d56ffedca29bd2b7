//! Outbounds: everything that a credential sends goes through its detour, and a failure names the
//! outbound.

mod bad_proxies;
mod environment;
mod routes;
mod scene;
mod sockets;
