//! The gateways that a request has passed, so that a loop between gateways is noticed.
//!
//! Owns the ids of gateways, and the header field that lists those of a request. Does not know
//! where an id is stored or what happens to a request in a loop. Invariant: an id says nothing of
//! its gateway; it is compared and nothing else.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use crate::values::hex::hex;
use crate::values::limits::HOPS_MAX;

/// The field that lists the hops of a request, the first one first. Only other gateways receive it.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("tollgate-hops");

/// The length of an id before it is written in hexadecimal.
const ID_BYTES: usize = 16;

/// The random id of a gateway. It is the same after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GatewayId([u8; ID_BYTES]);

impl GatewayId {
    /// Creates a gateway's id from random bytes.
    pub(crate) fn new(random: [u8; ID_BYTES]) -> Self {
        Self(random)
    }

    /// Reads an id as [`Self::to_text`] wrote it.
    pub(crate) fn from_text(text: &[u8]) -> Option<Self> {
        let digits = text.trim_ascii();
        if digits.len() != 2 * ID_BYTES {
            return None;
        }
        let mut bytes = [0; ID_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let value = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(value(pair[0])? * 16 + value(pair[1])?).ok()?;
        }
        Some(Self(bytes))
    }

    /// Returns the id as the text of a file.
    pub(crate) fn to_text(self) -> String {
        format!("{}\n", hex(&self.0))
    }

    /// Returns the id of one of the gateway's services. A service may use another one of the same
    /// gateway without a loop.
    pub(crate) fn hop(self, service: &str) -> HopId {
        let digest = Sha256::new()
            .chain_update(self.0)
            .chain_update(service)
            .finalize();
        HopId(hex(&digest[..ID_BYTES]))
    }
}

/// The id of one service of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HopId(String);

/// Why a request is not forwarded any further. The operators of the gateways must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HopError {
    /// The request was here before.
    #[error(
        "the request passed this gateway before: the external credentials of several gateways form a loop"
    )]
    Repeated,
    /// It has too many hops, or the field is no list.
    #[error("the request passed more than {HOPS_MAX} gateways")]
    TooMany,
}

/// The hops of a request before this gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HopTrail(Vec<String>);

impl HopTrail {
    /// Reads the hops of a request that arrives at `here`.
    ///
    /// # Errors
    /// The request must not be forwarded.
    pub(crate) fn read(headers: &HeaderMap, here: &HopId) -> Result<Self, HopError> {
        let mut hops = Vec::new();
        for field in headers.get_all(HOPS) {
            let list = field.to_str().map_err(|_| HopError::TooMany)?;
            for hop in list.split(',').map(str::trim) {
                if hop == here.0 {
                    return Err(HopError::Repeated);
                }
                if hops.len() == HOPS_MAX || hop.len() > 2 * ID_BYTES {
                    return Err(HopError::TooMany);
                }
                hops.push(hop.to_owned());
            }
        }
        Ok(Self(hops))
    }

    /// Returns the field for the next gateway, with `here` as the last hop.
    pub(crate) fn continued(&self, here: &HopId) -> Option<HeaderValue> {
        let mut list = self.0.join(",");
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(&here.0);
        HeaderValue::from_str(&list).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> HopId {
        GatewayId::new([7; ID_BYTES]).hop("ocm")
    }

    fn headers(hops: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for hop in hops {
            headers.append(HOPS, hop.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn an_id_is_read_as_it_was_written() {
        let id = GatewayId::new([0xa5; ID_BYTES]);
        assert_eq!(GatewayId::from_text(id.to_text().as_bytes()), Some(id));
        for broken in ["", "a5", "no hexadecimal digits, but as long"] {
            assert_eq!(GatewayId::from_text(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn services_of_a_gateway_have_different_ids() {
        let id = GatewayId::new([7; ID_BYTES]);
        assert_ne!(id.hop("a"), id.hop("b"));
        assert_ne!(id.hop("a"), GatewayId::new([8; ID_BYTES]).hop("a"));
    }

    #[test]
    fn a_trail_continues_and_a_repeat_is_noticed() {
        let trail = HopTrail::read(&headers(&["one, two", "three"]), &here()).expect("no loop");
        let next = trail.continued(&here()).expect("a value");
        assert_eq!(next, format!("one,two,three,{}", here().0));
        let again = headers(&[next.to_str().expect("text")]);
        assert_eq!(HopTrail::read(&again, &here()), Err(HopError::Repeated));
    }

    #[test]
    fn a_trail_is_bounded() {
        let hops = vec!["hop"; HOPS_MAX];
        assert!(HopTrail::read(&headers(&hops), &here()).is_ok());
        let hops = vec!["hop"; HOPS_MAX + 1];
        assert_eq!(
            HopTrail::read(&headers(&hops), &here()),
            Err(HopError::TooMany)
        );
        let long = "x".repeat(2 * ID_BYTES + 1);
        assert_eq!(
            HopTrail::read(&headers(&[&long]), &here()),
            Err(HopError::TooMany)
        );
    }
}
