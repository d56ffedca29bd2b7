//! The account at an ACME server. It is created once, and kept in a file.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{Account, AccountCredentials, ExternalAccountKey, Key, NewAccount};
use rcgen::KeyPair;

use super::error::AcmeError;
use super::fetch::{AcmeFetch, AcmeHttp};
use super::files::store;
use crate::config::{AcmeConfig, ExternalAccount};
use crate::files::read_regular;
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::values::secret::SecretString;

/// Returns the account of `config`, and creates it if there is none.
pub(super) async fn account(config: &AcmeConfig, fetch: AcmeFetch) -> Result<Account, AcmeError> {
    let builder = Account::builder_with_http(Box::new(AcmeHttp(fetch)));
    if let Some(known) = stored(&config.account_path)? {
        return Ok(builder.from_credentials(known).await?);
    }
    let url = config.directory_url.clone();
    let (account, credentials) = match &config.account_key {
        Some(pem) => {
            let (key, der) = account_key(pem)?;
            let der = der
                .try_into()
                .map_err(|_| AcmeError::Server(instant_acme::Error::KeyRejected))?;
            builder.create_from_key((key, der), url).await?
        }
        None => {
            let contact = config.email.as_ref().map(|email| format!("mailto:{email}"));
            let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
            let new = NewAccount {
                contact: &contact,
                terms_of_service_agreed: true,
                only_return_existing: false,
            };
            let external = config.external_account.as_ref().map(external_key);
            builder.create(&new, url, external.as_ref()).await?
        }
    };
    let text = serde_json::to_vec(&credentials)
        .map_err(|error| AcmeError::file(&config.account_path, error.to_string()))?;
    store(&config.account_path, &text)?;
    Ok(account)
}

fn stored(path: &Path) -> Result<Option<AccountCredentials>, AcmeError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = read_regular(path, CONFIG_FILE_BYTES)
        .map_err(|error| AcmeError::file(path, error.to_string()))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|_| AcmeError::file(path, "expected the account that was stored here"))
}

/// Returns the key, and the same in PKCS#8.
fn account_key(pem: &SecretString) -> Result<(Key, Vec<u8>), AcmeError> {
    let der = KeyPair::from_pem(pem.expose())?.serialize_der();
    let key = Key::from_pkcs8_der(der.clone().into())?;
    Ok((key, der))
}

fn external_key(account: &ExternalAccount) -> ExternalAccountKey {
    // The configuration was checked: it is base64url.
    let key = URL_SAFE_NO_PAD
        .decode(account.mac_key.expose())
        .unwrap_or_default();
    ExternalAccountKey::new(account.key_id.clone(), &key)
}
