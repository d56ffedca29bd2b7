//! The policies in this binary: components that the build script built from `policies/`, loaded like anybody's.

macro_rules! shipped {
    ($($name:literal => $file:literal),* $(,)?) => {
        /// The component of that name.
        pub(super) fn component(name: &str) -> Option<&'static [u8]> {
            match name {
                $($name => Some(include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".wasm"))),)*
                _ => None,
            }
        }
    };
}

shipped! {
    "least-used" => "least_used",
    "round-robin" => "round_robin",
    "random" => "random",
    "fallback" => "fallback",
    "standard-headers" => "standard_headers",
    "openai-pricing" => "openai_pricing",
}
