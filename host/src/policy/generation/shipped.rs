//! The components that the binary contains. The build script builds them from `policies/`; they are
//! loaded like any other component.

use crate::config::ShippedPolicy;

macro_rules! shipped_policies {
    ($($variant:ident $name:literal $kind:ident,)*) => {
        /// Returns the component of `policy`.
        pub(super) fn component(policy: ShippedPolicy) -> &'static [u8] {
            match policy {
                $(
                    ShippedPolicy::$variant => {
                        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".wasm"))
                    }
                )*
            }
        }
    };
}

include!("../../../shipped_policies.rs");
