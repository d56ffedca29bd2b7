//! Whether upstream can be reached with each credential.
//!
//! Owns which addresses a credential needs. Sends no request, and presents no token: a connection,
//! with its TLS handshake, is all that is tried.

use std::sync::Arc;

use http::Uri;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::open_credential;
use crate::config::{Config, CredentialConfig, CredentialSource, DialTarget, ServiceConfig};
use crate::credentials::{CredentialKind, LoginDirectory};
use crate::upstream::dial::DialError;
use crate::upstream::{TrustRoots, UpstreamClient};

/// Connections that are tried at the same time.
const CONCURRENT_CONNECTS: usize = 16;

/// A connection that was tried.
#[derive(Debug)]
pub struct TriedConnection {
    /// The tag of the service that has the credential.
    pub service: String,
    /// The tag of the credential that needs the connection.
    pub credential: String,
    /// `https://HOST` or `http://HOST`, with the port if the configuration names it.
    pub origin: String,
    /// The tag of the outbound that the connection was made through.
    pub through: Option<String>,
    /// Why there is no connection, if there is none.
    pub failure: Option<DialError>,
}

/// Connects to every address that a credential of `config` needs, in the order of the
/// configuration. Blocks while it reads the credentials' files.
pub async fn try_connections(config: &Config, trust: Option<TrustRoots>) -> Vec<TriedConnection> {
    // What cannot be read is reported by the check.
    let trust = TrustRoots::load(&config.trust, trust.clone())
        .unwrap_or_else(|_| trust.unwrap_or_else(TrustRoots::from_platform));
    let room = Arc::new(Semaphore::new(CONCURRENT_CONNECTS));
    let mut tries = JoinSet::new();
    for (service, credential) in credentials(config) {
        let client = UpstreamClient::to_gateway(
            &trust,
            &config.limits,
            &credential.route,
            &dial_target(credential),
            None,
        );
        for uri in addresses(service, credential) {
            let place = tries.len();
            let tried = TriedConnection {
                service: service.tag.clone(),
                credential: credential.tag.clone(),
                origin: origin(&uri),
                through: client
                    .dialer()
                    .outbound_to(&uri)
                    .map(|outbound| outbound.tag.clone()),
                failure: None,
            };
            let (client, room) = (client.clone(), Arc::clone(&room));
            tries.spawn(async move {
                let _permit = room.acquire().await;
                let failure = client.connect(&uri).await.err();
                (place, TriedConnection { failure, ..tried })
            });
        }
    }
    let mut tried = tries.join_all().await;
    tried.sort_by_key(|(place, _)| *place);
    tried.into_iter().map(|(_, tried)| tried).collect()
}

fn credentials(config: &Config) -> impl Iterator<Item = (&ServiceConfig, &CredentialConfig)> {
    config.services.iter().flat_map(|service| {
        let credentials = service.credentials.iter();
        credentials.map(move |credential| (service, credential))
    })
}

/// Returns one URL for each host that requests, polls and refreshes go to.
fn addresses(service: &ServiceConfig, credential: &CredentialConfig) -> Vec<Uri> {
    let endpoints = &service.endpoints;
    let urls = match &credential.source {
        // Without a URL, the other gateway connects to this one.
        CredentialSource::External { url, .. } => url.iter().collect(),
        CredentialSource::File(_) => match kind(credential) {
            Some(CredentialKind::ApiKey) => vec![&endpoints.api],
            Some(CredentialKind::OAuth | CredentialKind::External) | None => {
                vec![&endpoints.chatgpt, &endpoints.token]
            }
        },
    };
    let mut addresses: Vec<Uri> = Vec::new();
    for url in urls {
        if !addresses.iter().any(|known| origin(known) == origin(url)) {
            addresses.push(url.clone());
        }
    }
    addresses
}

fn dial_target(credential: &CredentialConfig) -> DialTarget {
    match &credential.source {
        CredentialSource::File(_) => DialTarget::default(),
        CredentialSource::External { target, .. } => target.clone(),
    }
}

fn kind(credential: &CredentialConfig) -> Option<CredentialKind> {
    let credential = open_credential(credential, &[], &LoginDirectory::default());
    credential.identity().map(|identity| identity.kind())
}

fn origin(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", uri.scheme_str().unwrap_or_default())
}
