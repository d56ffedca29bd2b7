//! The components of `tests/guests`: built at their first use, and marked ones changed in their bytes.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::component::component;

/// Where a price and a conduct stand in the bytes of `marked-pricer`.
const MARK: &str = "TOLLGATE-MARK-";

/// What a marked pricer does, beside naming its price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// It works.
    Fine,
    /// It refuses its configuration.
    RefusesConfig,
    /// It panics when it is configured.
    PanicsInConfigure,
    /// It panics when it is tried, before it serves.
    PanicsWhenTried,
    /// It panics for every request.
    Panics,
    /// It panics for requests of the user `bob`.
    PanicsForBob,
    /// It takes about two milliseconds for a call.
    Burns,
    /// It does that for requests alone, and not when it is tried.
    BurnsForRequests,
}

impl Conduct {
    fn word(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::RefusesConfig => "conf",
            Self::PanicsInConfigure => "pnew",
            Self::PanicsWhenTried => "ptry",
            Self::Panics => "trap",
            Self::PanicsForBob => "pbob",
            Self::Burns => "burn",
            Self::BurnsForRequests => "bsrv",
        }
    }
}

/// The file of the component of a crate of `tests/guests`.
///
/// # Panics
/// It cannot be built.
pub fn guest(name: &str) -> PathBuf {
    component(name)
}

/// A pricer whose price is `nanousd` for any usage: another component for each price and conduct.
///
/// # Panics
/// It cannot be built.
pub fn marked_pricer(nanousd: u64, conduct: Conduct) -> Vec<u8> {
    static BUILT: OnceLock<(Vec<u8>, usize)> = OnceLock::new();
    let (bytes, place) = BUILT.get_or_init(|| {
        let bytes = std::fs::read(guest("marked-pricer")).expect("it was built");
        let places: Vec<usize> = (0..bytes.len())
            .filter(|place| bytes[*place..].starts_with(MARK.as_bytes()))
            .collect();
        assert_eq!(places.len(), 1, "the mark stands once in the component");
        (bytes, places[0])
    });
    let mark = format!("{MARK}{nanousd:010}-{}", conduct.word());
    let mut marked = bytes.clone();
    marked[*place..*place + mark.len()].copy_from_slice(mark.as_bytes());
    marked
}
