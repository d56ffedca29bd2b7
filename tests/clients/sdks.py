"""The checks of openai-python and openai-node: the same ones, each with its own users."""

import contextlib
import json
import os
import select
import subprocess

from expect import CHAT, TEXT, TOKENS, TURN, equal, includes, one_row, refused
from scene import CLIENTS, KEY, POOLS, USERS, environment, start

HERE = os.path.dirname(os.path.abspath(__file__))
ANSWER_WAIT_MAX = 60

PROGRAMS = {
    "python": [CLIENTS / "venv" / "bin" / "python", "-B", f"{HERE}/sdk_python.py"],
    "node": ["node", f"{HERE}/sdk_node.mjs"],
}


class Sdk:
    """A program that uses an SDK as its input says; see sdk_python.py and sdk_node.mjs."""

    def __init__(self, name, scene):
        self.name = name
        self.scene = scene
        with open(scene.folder / f"sdk-{name}.log", "ab") as log:
            self.child = start(
                PROGRAMS[name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(CLIENTS_NODE=str(CLIENTS / "node")),
            )

    def do(self, deed, user, model="gpt-5.4", token=None):
        """Runs `deed` as `user`, and returns the SDK's result."""
        order = {"do": deed, "url": self.scene.url, "token": token or USERS[user].token, "model": model}
        self.child.stdin.write(json.dumps(order).encode() + b"\n")
        self.child.stdin.flush()
        if not select.select([self.child.stdout], [], [], ANSWER_WAIT_MAX)[0]:
            raise AssertionError(f"{self.name}: no answer to {deed} within {ANSWER_WAIT_MAX} s")
        line = self.child.stdout.readline()
        if not line:
            raise AssertionError(f"{self.name}: ended with {self.child.wait(10)} in {deed}")
        return json.loads(line)

    def end(self):
        self.child.stdin.close()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


@contextlib.contextmanager
def checks(name, scene):
    """The checks of that SDK, while its program runs."""
    sdk = Sdk(name, scene)
    try:
        yield checks_of(sdk, scene)
    finally:
        sdk.end()


def checks_of(sdk, scene):
    """(Name, check) of each check of that SDK."""
    name = sdk.name
    pool, key, limited = name, f"{name}-key", f"{name}-limited"
    spent = USERS[limited].credential
    in_pool = {"user": pool, "credential": tuple(POOLS["pool"]), "path": "/v1/responses"}

    def response_whole():
        with one_row(scene, **in_pool, **TURN) as row:
            got = sdk.do("responses", pool)
        includes(got, status="completed", text=TEXT, **TOKENS)
        equal("response_id", row["response_id"], got["id"])

    def response_streamed():
        with one_row(scene, **in_pool, **TURN) as row:
            got = sdk.do("responses_stream", pool)
        includes(got, status="completed", text=TEXT, **TOKENS)
        equal("first and last event", [got["events"][0], got["events"][-1]], ["response.created", "response.completed"])
        equal("response_id", row["response_id"], got["id"])

    def response_by_the_stream_helper():
        with one_row(scene, **in_pool, **TURN) as row:
            got = sdk.do("responses_helper", pool)
        includes(got, status="completed", text=TEXT, **TOKENS)
        equal("response_id", row["response_id"], got["id"])

    def response_with_an_api_key():
        with one_row(scene, user=key, credential=KEY, path="/v1/responses", **TURN) as row:
            got = sdk.do("responses", key)
        includes(got, status="completed", text=TEXT, **TOKENS)
        equal("response_id", row["response_id"], got["id"])

    def chat_whole():
        with one_row(scene, user=key, credential=KEY, path="/v1/chat/completions", **CHAT):
            got = sdk.do("chat", key, model=CHAT["model"])
        includes(got, text=TEXT, **TOKENS)

    def chat_streamed():
        with one_row(scene, user=key, credential=KEY, path="/v1/chat/completions", **CHAT):
            got = sdk.do("chat_stream", key, model=CHAT["model"])
        includes(got, text=TEXT, finish="stop", **TOKENS)

    def chat_without_an_api_key_is_refused():
        with one_row(scene, user=pool, path="/v1/chat/completions", model=CHAT["model"], **refused(400)):
            got = sdk.do("chat", pool, model=CHAT["model"])
        includes(got, error="BadRequestError", status=400, type="invalid_request_error")

    def models_are_listed():
        free = {"status": 200, "end": "complete", "input_tokens": None, "cost_nanousd": None, "unpriced_reason": None}
        with one_row(scene, user=key, credential=KEY, path="/v1/models", model=None, **free):
            got = sdk.do("models", key)
        includes(got, models=["gpt-5.4", "gpt-5.3-codex", "gpt-4.1-mini"])

    def unknown_model_is_upstreams_own_400():
        error = {"message": "No such model.", "type": "invalid_request_error", "code": "model_not_found"}
        scene.script(KEY, then=[{"status": 400, "body": {"error": {**error, "param": "model"}}}])
        row = {"user": key, "credential": KEY, "path": "/v1/responses", "model": "no-such-model"}
        with one_row(scene, **row, **refused(400)):
            got = sdk.do("responses", key, model="no-such-model")
        includes(got, error="BadRequestError", status=400, type="invalid_request_error", code="model_not_found")

    def wrong_token_is_an_authentication_error():
        last = scene.last_row()
        got = sdk.do("responses", pool, token="tg-client-unknown")
        includes(got, error="AuthenticationError", status=401, type="authentication_error")
        equal("rows of a rejected request", scene.rows(last), [])

    def usage_limit_reached_comes_from_upstream_and_then_from_the_gateway():
        error = {"type": "usage_limit_reached", "message": "The usage limit has been reached", "plan_type": "plus"}
        # Only once: a second request would succeed if the gateway did not remember the limit.
        body = {"error": {**error, "resets_in_seconds": 1800}}
        scene.script(spent, then=[{"status": 429, "body": body}])
        row = {"user": limited, "path": "/v1/responses", "model": "gpt-5.4", **refused(429)}
        with one_row(scene, credential=spent, attempts=[spent], **row):
            got = sdk.do("responses", limited)
        includes(got, error="RateLimitError", status=429, type="usage_limit_reached")
        with one_row(scene, credential=None, attempts=[], **row):
            got = sdk.do("responses_stream", limited)
        includes(got, error="RateLimitError", status=429, type="usage_limit_reached", code="credentials_exhausted")
        if not 1700 < int(got["retry_after"] or 0) <= 1800:
            raise AssertionError(f"retry-after: expected some 1800 s, found {got['retry_after']}")

    deeds = [
        response_whole,
        response_streamed,
        response_by_the_stream_helper,
        response_with_an_api_key,
        chat_whole,
        chat_streamed,
        chat_without_an_api_key_is_refused,
        models_are_listed,
        unknown_model_is_upstreams_own_400,
        wrong_token_is_an_authentication_error,
        usage_limit_reached_comes_from_upstream_and_then_from_the_gateway,
    ]
    return [(f"openai-{name}: {deed.__name__.replace('_', ' ')}", deed) for deed in deeds]
