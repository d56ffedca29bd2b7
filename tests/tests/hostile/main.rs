//! Hostile, slow and random guests, and reloads under load. A process apart, because its tests
//! measure the memory and the time of this one.

mod harmful;
mod random_components;
mod reload_load;
mod slow_guests;
mod wat;
