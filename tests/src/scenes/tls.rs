//! A gateway whose listener speaks TLS.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::auth::replace_file;
use crate::clients::authority::{Authority, TLS_VERSIONS};
use crate::clients::peer::{Peer, WAIT_MAX, post};
use crate::gateway::Rig;
use crate::gateway::ledger::{rows, wait_for_rows};
use crate::turn;

/// A gateway with a TLS listener.
pub struct TlsScene {
    /// The rig that the gateway runs in.
    pub rig: Rig,
    /// What signed the certificate of the listener.
    pub authority: Authority,
    /// The address of the listener.
    pub address: SocketAddr,
    /// The configuration that the gateway started with.
    pub config: Value,
}

impl TlsScene {
    /// Starts a gateway with the credential `a`, these fields of `tls` and these limits.
    pub async fn new(tls: Value, limits: Value) -> Self {
        let authority = Authority::new();
        let certificate = authority.sign(&["localhost"]);
        let mut whole = json!({ "certificate": certificate.pem, "key": certificate.key });
        merge(&mut whole, &tls);
        Self::start(Rig::new().await, authority, whole, limits).await
    }

    /// As [`TlsScene::new`], with the certificate in the file `cert.pem` of the rig and its key in
    /// `key.pem`.
    pub async fn in_files(tls: Value) -> Self {
        Self::in_files_with(tls, &[]).await
    }

    /// As [`TlsScene::in_files`], with these files in the rig's folder. Files that `tls` names are
    /// relative to that folder.
    pub async fn in_files_with(tls: Value, files: &[(&str, &str)]) -> Self {
        let (rig, authority) = (Rig::new().await, Authority::new());
        let certificate = authority.sign(&["localhost"]);
        rig.write("cert.pem", &certificate.pem);
        rig.write("key.pem", &certificate.key);
        for (name, content) in files {
            rig.write(name, content);
        }
        let mut whole = json!({ "certificate_path": "cert.pem", "key_path": "key.pem" });
        merge(&mut whole, &tls);
        for (name, value) in whole.as_object_mut().expect("fields") {
            if let Some(file) = value.as_str().filter(|_| name.ends_with("_path")) {
                *value = json!(rig.path(file));
            }
        }
        Self::start(rig, authority, whole, json!({})).await
    }

    async fn start(mut rig: Rig, authority: Authority, mut tls: Value, limits: Value) -> Self {
        tls["enabled"] = json!(true);
        let mut config = rig.config(json!({ "credentials": [rig.oauth("a")], "tls": tls }));
        config["limits"] = limits;
        config["admin"] = json!({ "listen_port": 0 });
        let address = rig.start(config.clone()).await.address();
        Self {
            rig,
            authority,
            address,
            config,
        }
    }

    /// Replaces a file in the rig's folder in one step.
    pub fn replace(&self, name: &str, content: &str) {
        replace_file(&self.rig.path(name), content);
    }

    /// Removes a file in the rig's folder.
    ///
    /// # Panics
    /// Panics if there is none.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.rig.path(name)).expect("the file is there");
    }

    /// Returns the certificate that the gateway presents to a new client, or `None` if the
    /// handshake fails.
    pub async fn presented(&self) -> Option<CertificateDer<'static>> {
        let stream = self.connect(TLS_VERSIONS, &["http/1.1"]).await.ok()?;
        let presented = stream.get_ref().1.peer_certificates()?;
        presented.first().map(|leaf| leaf.clone().into_owned())
    }

    /// Opens a TLS connection with one of `versions`, and offers `alpn`.
    ///
    /// # Errors
    /// Returns an error if the handshake fails.
    pub async fn connect(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_by(&self.authority.client(versions, alpn))
            .await
    }

    /// Opens a TLS connection by `client`.
    ///
    /// # Errors
    /// Returns an error if the handshake fails.
    pub async fn connect_by(&self, client: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let shaking = client.connect(name, stream);
        let mut stream = tokio::time::timeout(WAIT_MAX, shaking)
            .await
            .expect("a handshake in time")?;
        // In TLS 1.3, a server's rejection arrives after the client's handshake has ended.
        stream.flush().await?;
        Ok(stream)
    }

    /// Sends a turn over the negotiated protocol, and returns that protocol.
    ///
    /// # Panics
    /// Panics if the turn is not answered whole.
    pub async fn turn(&self, alpn: &[&str]) -> Option<String> {
        let stream = self.connect(TLS_VERSIONS, alpn).await.expect("a handshake");
        let agreed = stream
            .get_ref()
            .1
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned());
        let text = if agreed.as_deref() == Some("h2") {
            turn_over_http2(stream).await
        } else {
            let mut peer = Peer::new(stream);
            peer.send(post(&turn("tls").to_string())).await;
            let answer = peer.message().await.expect("an answer");
            assert!(answer.status() == 200 && answer.whole);
            answer.text()
        };
        assert!(text.contains("response.completed"), "{text}");
        agreed
    }

    /// Returns `true` if the handshake or the first request fails.
    pub async fn is_refused(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> bool {
        self.is_refused_by(&self.authority.client(versions, alpn))
            .await
    }

    /// Returns `true` if the handshake or the first request of `client` fails. It must not agree on
    /// HTTP/2.
    pub async fn is_refused_by(&self, client: &TlsConnector) -> bool {
        let Ok(stream) = self.connect_by(client).await else {
            return true;
        };
        let mut peer = Peer::new(stream);
        peer.send(post(&turn("refused").to_string())).await;
        peer.message().await.is_none()
    }

    /// Stops the gateway.
    ///
    /// # Panics
    /// Panics if there are more or fewer rows than `admitted`.
    pub async fn end(mut self, admitted: usize) {
        wait_for_rows(&self.rig.ledger(), admitted).await;
        self.rig.stop().await;
        assert_eq!(rows(&self.rig.ledger()).len(), admitted);
    }
}

/// Adds the fields of `more` to those of `whole`, and replaces those of the same name.
fn merge(whole: &mut Value, more: &Value) {
    for (name, value) in more.as_object().expect("fields") {
        whole[name] = value.clone();
    }
}

/// Sends a turn over HTTP/2, and returns the text of its response.
async fn turn_over_http2(stream: TlsStream<TcpStream>) -> String {
    let shaken =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::post("https://localhost/v1/responses")
        .body(Full::new(Bytes::from(turn("tls").to_string())))
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(
        (answer.status(), answer.version()),
        (StatusCode::OK, Version::HTTP_2)
    );
    String::from_utf8(answer.collect().await.expect("whole").to_bytes().to_vec()).expect("text")
}
