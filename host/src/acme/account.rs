//! The account at an ACME server. It is created once, and kept in a file. Orders of several
//! certificates may share it: one at a time reads or creates it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use instant_acme::{Account, AccountCredentials, Key, NewAccount};
use rcgen::KeyPair;
use tokio::sync::Mutex as TurnMutex;

use super::error::AcmeError;
use super::external_account::external_key;
use super::fetch::{AcmeFetch, AcmeHttp};
use super::files::store;
use crate::config::AcmeConfig;
use crate::files::{io_reason, read_regular};
use crate::values::limits::CONFIG_FILE_BYTES;
use crate::values::secret::SecretString;

/// What is added to the name of a file whose account the server does not know.
const UNKNOWN_SUFFIX: &str = ".unknown";

type AccountTurn = Arc<TurnMutex<()>>;

/// The turns of all files of accounts, whatever services use them.
static TURNS: LazyLock<Mutex<HashMap<PathBuf, AccountTurn>>> = LazyLock::new(Mutex::default);

fn turn(path: &Path) -> AccountTurn {
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    turns.retain(|_, turn| Arc::strong_count(turn) > 1);
    Arc::clone(turns.entry(path.to_owned()).or_default())
}

/// Returns the account of `config`, and creates it if there is none.
pub(super) async fn account(config: &AcmeConfig, fetch: AcmeFetch) -> Result<Account, AcmeError> {
    let turn = turn(&config.account_path);
    let _turn = turn.lock().await;
    let builder = Account::builder_with_http(Box::new(AcmeHttp(Arc::clone(&fetch))));
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
            let external = match &config.external_account {
                Some(account) => Some(external_key(account, &fetch).await?),
                None => None,
            };
            builder.create(&new, url, external.as_ref()).await?
        }
    };
    let text = serde_json::to_vec(&credentials)
        .map_err(|error| AcmeError::file(&config.account_path, error.to_string()))?;
    store(&config.account_path, &text)?;
    Ok(account)
}

/// Puts the file of the account `id` aside, because the server does not know the account.
pub(super) async fn forget(config: &AcmeConfig, id: &str) -> Result<(), AcmeError> {
    let path = &config.account_path;
    let turn = turn(path);
    let _turn = turn.lock().await;
    // Another order may have replaced it meanwhile.
    if stored_id(path).as_deref() != Some(id) {
        return Ok(());
    }
    let mut aside = path.clone().into_os_string();
    aside.push(UNKNOWN_SUFFIX);
    fs::rename(path, &aside).map_err(|error| AcmeError::file(path, io_reason(&error)))?;
    let file = path.display();
    tracing::warn!(%file, "acme account unknown to the server, registering another one");
    Ok(())
}

/// Returns the URL of the account in a file.
fn stored_id(path: &Path) -> Option<String> {
    let text = read_regular(path, CONFIG_FILE_BYTES).ok()?;
    let account: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(account["id"].as_str()?.to_owned())
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
