//! A gateway whose listener speaks TLS.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

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
}

impl TlsScene {
    /// Starts a gateway with the credential `a`, these fields of `tls` and these limits.
    pub async fn new(tls: Value, limits: Value) -> Self {
        let mut rig = Rig::new().await;
        let authority = Authority::new();
        let certificate = authority.sign(&["localhost"]);
        let mut config = rig.config(json!({ "credentials": [rig.oauth("a")] }));
        let mut whole =
            json!({ "enabled": true, "certificate": certificate.pem, "key": certificate.key });
        for (name, value) in tls.as_object().expect("fields") {
            whole[name] = value.clone();
        }
        config["services"][0]["tls"] = whole;
        config["limits"] = limits;
        let address = rig.start(config).await.address();
        Self {
            rig,
            authority,
            address,
        }
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
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        let shaking = self.authority.client(versions, alpn).connect(name, stream);
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
        let Ok(stream) = self.connect(versions, alpn).await else {
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
