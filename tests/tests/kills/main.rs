//! Gateways that are killed. A group apart, because its tests keep both processors busy.

mod kill;
mod refresh_kill;
mod reload_kill;
