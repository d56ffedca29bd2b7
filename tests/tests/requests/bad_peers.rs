//! Clients and upstreams that are slow, broken or hostile. After each the gateway serves a good
//! request, and each admitted request has made exactly one row.

mod clients;
mod http2;
mod slow_http;
mod upstreams;
