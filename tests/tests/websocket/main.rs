//! WebSockets: handshakes, relayed messages, and a row per response.

mod ends;
mod protocol;
mod relay;
mod rows;
mod targets;
