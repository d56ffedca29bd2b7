//! What sockets promise, seen by another implementation's client.

mod ends;
mod handshakes;
mod turns;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::*;

type Client = WebSocketStream<TcpStream>;

const CREATE: &str = "response.create";

fn handshake(upstream: &Upstream, path: &str, token: &str) -> Request<()> {
    let mut request = format!("ws://{}{path}", upstream.address())
        .into_client_request()
        .expect("a request");
    request.headers_mut().insert(
        "authorization",
        format!("Bearer {token}").parse().expect("a value"),
    );
    request
}

async fn connect_with(
    upstream: &Upstream,
    request: Request<()>,
) -> Result<(Client, HeaderMap), Error> {
    let stream = TcpStream::connect(upstream.address())
        .await
        .expect("connected");
    let (client, response) = client_async_with_config(request, stream, None).await?;
    Ok((client, response.headers().clone()))
}

async fn connect(upstream: &Upstream) -> Client {
    connect_with(upstream, handshake(upstream, RESPONSES, "at-ana"))
        .await
        .expect("upgraded")
        .0
}

fn create(more: Value) -> Value {
    let mut create = json!({"type": CREATE, "model": "gpt-5.4", "input": []});
    create
        .as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    create
}

async fn send_text(client: &mut Client, text: impl ToString) {
    client
        .send(Message::text(text.to_string()))
        .await
        .expect("sent");
}

async fn next(client: &mut Client) -> Option<Result<Message, Error>> {
    tokio::time::timeout(WAIT_MAX, client.next())
        .await
        .expect("in time")
}

async fn next_message(client: &mut Client) -> Message {
    next(client).await.expect("a message").expect("no error")
}
