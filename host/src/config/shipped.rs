//! The policies that the binary contains, by name and kind.
//!
//! Does not know their components: `policy` has those.

use super::raw::PolicyKind;

macro_rules! shipped_policies {
    ($($variant:ident $name:literal $kind:ident,)*) => {
        /// A policy that the binary contains.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ShippedPolicy {
            $(
                #[doc = concat!("The crate `", $name, "` in `policies/`.")]
                $variant,
            )*
        }

        impl ShippedPolicy {
            /// Every policy that the binary contains.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the name of the policy's crate, which is also its tag.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns what the policy decides.
            pub fn kind(self) -> PolicyKind {
                match self {
                    $(Self::$variant => PolicyKind::$kind,)*
                }
            }
        }
    };
}

include!("../../shipped_policies.rs");

impl ShippedPolicy {
    /// Returns the policy called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|policy| policy.name() == name)
    }

    /// Returns the balancer that a pool's `strategy` names. `-` and `_` are the same.
    pub(crate) fn from_strategy(strategy: &str) -> Option<Self> {
        Self::from_name(&strategy.replace('_', "-"))
            .filter(|policy| policy.kind() == PolicyKind::Balancer)
    }

    /// Returns the name as a pool's `strategy`.
    pub(crate) fn strategy(self) -> String {
        self.name().replace('-', "_")
    }

    /// Returns the policies of `kind`.
    pub(crate) fn of_kind(kind: PolicyKind) -> impl Iterator<Item = Self> {
        Self::ALL
            .iter()
            .copied()
            .filter(move |policy| policy.kind() == kind)
    }
}
