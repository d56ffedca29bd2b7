//! The worlds of the contract behind one trait, so that loading and calling are written once for
//! all kinds of policies.

use wasmtime::component::InstancePre;
use wasmtime::{Result, Store};

use super::guest::GuestState;
use crate::config::PolicyKind;
use crate::policy::contract::bindings::types::{Diagnostic, Manifest};

/// An instance of a world of the contract.
pub(crate) trait PolicyWorld: Sized + Send + Sync + 'static {
    const KIND: PolicyKind;
    /// A component that is linked and whose exports are known.
    type Linked: Send + Sync;

    fn link(component: InstancePre<GuestState>) -> Result<Self::Linked>;
    fn instantiate(linked: &Self::Linked, store: &mut Store<GuestState>) -> Result<Self>;
    fn describe(&self, store: &mut Store<GuestState>) -> Result<Manifest>;
    fn configure(
        &self,
        store: &mut Store<GuestState>,
        config: &str,
    ) -> Result<std::result::Result<(), Vec<Diagnostic>>>;
    /// Gives a new instance what does not change from call to call.
    fn prepare(&self, _store: &mut Store<GuestState>) -> Result<()> {
        Ok(())
    }
}

/// Implements [`PolicyWorld`] for types that bindgen generated.
macro_rules! impl_policy_world {
    ($world:path, $linked:path, $kind:expr $(, $prepare:item)?) => {
        impl crate::policy::engine::world::PolicyWorld for $world {
            const KIND: crate::config::PolicyKind = $kind;
            type Linked = $linked;

            fn link(
                component: wasmtime::component::InstancePre<
                    crate::policy::engine::guest::GuestState,
                >,
            ) -> wasmtime::Result<Self::Linked> {
                <$linked>::new(component)
            }
            fn instantiate(
                linked: &Self::Linked,
                store: &mut wasmtime::Store<crate::policy::engine::guest::GuestState>,
            ) -> wasmtime::Result<Self> {
                linked.instantiate(store)
            }
            fn describe(
                &self,
                store: &mut wasmtime::Store<crate::policy::engine::guest::GuestState>,
            ) -> wasmtime::Result<crate::policy::contract::bindings::types::Manifest> {
                self.tollgate_policy_lifecycle().call_describe(store)
            }
            fn configure(
                &self,
                store: &mut wasmtime::Store<crate::policy::engine::guest::GuestState>,
                config: &str,
            ) -> wasmtime::Result<
                Result<(), Vec<crate::policy::contract::bindings::types::Diagnostic>>,
            > {
                self.tollgate_policy_lifecycle().call_configure(store, config)
            }
            $($prepare)?
        }
    };
}
pub(crate) use impl_policy_world;
