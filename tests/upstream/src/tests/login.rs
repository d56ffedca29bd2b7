//! What a login promises: single use, revocation on reuse, expiry, and each scripted answer.

mod replies;
mod tokens;

use super::*;

fn refresh_request(refresh_token: &Value) -> Value {
    json!({
        "client_id": "app_EMoamEEZ73f0CkXaXp7hrann",
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "scope": "openid profile email",
    })
}

fn token_post(media: &str, body: String) -> Request<Full<Bytes>> {
    let request = Request::post("/oauth/token")
        .header("host", "upstream")
        .header("content-type", media);
    request.body(Full::new(body.into())).expect("a request")
}

async fn post(upstream: &Upstream, body: &Value) -> hyper::Result<Response<Incoming>> {
    send(upstream, token_post("application/json", body.to_string())).await
}

async fn whole(response: Response<Incoming>) -> Answered {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Answered {
        status: head.status,
        headers: head.headers,
        body,
    }
}

/// Refreshes with the token of this auth.json.
async fn refresh(upstream: &Upstream, auth_json: &Value) -> Answered {
    let body = refresh_request(&auth_json["tokens"]["refresh_token"]);
    whole(post(upstream, &body).await.expect("an answer")).await
}

/// Asks with the access token of this auth.json.
async fn use_tokens(upstream: &Upstream, auth_json: &Value, path: &str, body: &str) -> Answered {
    let token = auth_json["tokens"]["access_token"]
        .as_str()
        .expect("an access token");
    let mut asked = request(path, token, body.to_owned());
    asked
        .headers_mut()
        .insert("chatgpt-account-id", "acct-ana".parse().expect("a value"));
    whole(send(upstream, asked).await.expect("an answer")).await
}

async fn status_of(upstream: &Upstream, auth_json: &Value) -> StatusCode {
    use_tokens(upstream, auth_json, "/v1/models", "")
        .await
        .status
}

async fn start_login() -> (Upstream, Login) {
    let upstream = Upstream::start().await;
    let login = upstream.login("acct-ana");
    (upstream, login)
}

#[track_caller]
fn assert_refused(answered: &Answered, status: u16, code: &str) {
    assert_eq!(answered.status, status);
    assert_eq!(answered.json()["error"]["code"], code);
}
