"""The Codex CLI: `codex exec` and `codex exec resume` over any transport, and the checks of it over SSE. Those over
WebSockets are in codex_socket.py.

The checks build on one another: one session begins, is resumed, and loses its credential.
"""

import contextlib
import json
import os
import re
import signal
import subprocess

from expect import COUNTED, TEXT, TURN, equal, includes, one_row, refused
from scene import CLIENTS, POOLS, USERS, environment, start
from sdks import Sdk

# A turn takes a second; Codex gives up by itself after some 25 s of tries.
RUN_WAIT_MAX = 60
CODEX = CLIENTS / "node" / "node_modules" / "@openai" / "codex" / "bin" / "codex.js"
USER = "codex"
MEMBERS = tuple(POOLS["codex-pool"])


class Codex:
    """A Codex home with one provider, whose table is `provider`."""

    def __init__(self, scene, name, provider, more_environment=None):
        folder = scene.folder / name
        self.home, self.work = folder / "home", folder / "work"
        for made in (self.home, self.work):
            made.mkdir(parents=True, exist_ok=True)
        self.log = scene.folder / f"{name}.log"
        self.environment = more_environment or {}
        (self.home / "config.toml").write_text(f"""\
model = "gpt-5.4"
model_provider = "it"
check_for_update_on_startup = false
chatgpt_base_url = "{scene.upstream_url}/backend-api"

[analytics]
enabled = false

[model_providers.it]
wire_api = "responses"
{provider}""")

    def exec(self, *arguments):
        """Runs `codex exec` to its end; answers its exit code, standard output and standard error."""
        # By node and its launcher, as people run it; the launcher starts the program that does the work.
        child = start(
            ["node", CODEX, "exec", "--skip-git-repo-check", "--sandbox", "read-only", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.work,
            env=environment(HOME=str(self.home), CODEX_HOME=str(self.home), **self.environment),
        )
        try:
            output, errors = (text.decode(errors="replace") for text in child.communicate(timeout=RUN_WAIT_MAX))
        except BaseException as error:
            # The child has its own process group: kill all of it.
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise AssertionError(f"codex exec: no end within {RUN_WAIT_MAX} s") from None
            raise
        with open(self.log, "a") as log:
            log.write(f"$ codex exec {' '.join(arguments)}\n{output}{errors}exit code {child.returncode}\n")
        return {"code": child.returncode, "output": output, "errors": errors}

    def turn(self, *arguments):
        """A run that finishes and prints the assistant's message; returns the id of its session."""
        ran = self.exec(*arguments)
        includes(ran, code=0)
        equal("standard output", ran["output"].strip(), TEXT.strip())
        match = re.search(r"^session id: (\S+)$", ran["errors"], re.MULTILINE)
        if not match:
            raise AssertionError(f"no session id in what codex printed: {ran['errors']}")
        return match[1]


def gateway_provider(scene, supports_websockets, user=USER):
    """The gateway as a provider of Codex, with the token of `user`."""
    return f"""\
name = "Tollgate"
base_url = "{scene.url}/v1"
supports_websockets = {str(supports_websockets).lower()}
experimental_bearer_token = "{USERS[user].token}"
"""


def upstream_provider(scene):
    """Upstream itself, with the ChatGPT login of the Codex home."""
    return f"""\
name = "Upstream"
base_url = "{scene.upstream_url}/backend-api/codex"
requires_openai_auth = true
"""


@contextlib.contextmanager
def checks(scene):
    """The checks, while another client of the same user runs beside Codex."""
    other = Sdk("python", scene)
    try:
        yield checks_of(Codex(scene, "codex", gateway_provider(scene, supports_websockets=False)), other, scene)
    finally:
        other.end()


def checks_of(codex, other, scene):
    """(Name, check) of each check."""
    turn = {"user": USER, "path": "/v1/responses", "transport": "http", **TURN}
    # The session that the checks share, and its credential.
    session, home = None, None

    def away_from(credential):
        (other_member,) = set(MEMBERS) - {credential}
        return other_member

    def a_turn_finishes():
        nonlocal session, home
        with one_row(scene, credential=MEMBERS, **turn) as row:
            session = codex.turn("Say something.")
        equal("the row's session", row["session"], session)
        home = row["credential"]

    def resume_lands_on_the_same_credential():
        # Requests without a session now use the other credential, once responses have reported the usage of `home`.
        scene.script(home, weekly=80)
        for _ in range(3):
            last = scene.last_row()
            includes(other.do("responses", USER), status="completed")
            (row,) = scene.rows(last)
        equal("the credential of a request without a session", row["credential"], away_from(home))
        with one_row(scene, credential=home, attempts=[home], session=session, **turn):
            equal("session", codex.turn("resume", "--last", "Go on."), session)

    def turn_with_a_tool_call_stays_on_its_credential():
        scene.script(home, then=[tool_call(turn_state="state-1")])
        before, last = len(scene.upstream_requests()), scene.last_row()
        equal("session", codex.turn("resume", "--last", "Use a tool."), session)
        rows = scene.rows(last)
        placed = [(row["credential"], row["session"], row["cost_nanousd"]) for row in rows]
        equal("credential, session and cost of its requests", placed, [(home, session, TURN["cost_nanousd"])] * 2)
        states = [dict(seen["headers"]).get("x-codex-turn-state") for seen in scene.upstream_requests()[before:]]
        equal("the turn state that upstream saw", states, [None, "state-1"])

    def usage_limit_reached_moves_the_turn():
        scene.script(home, then=[usage_limit_reached()])
        moved = away_from(home)
        with one_row(scene, credential=moved, attempts=[home, moved], session=session, **turn):
            equal("session", codex.turn("resume", "--last", "Go on."), session)
        with one_row(scene, credential=moved, attempts=[moved], session=session, **turn):
            equal("session", codex.turn("resume", "--last", "And on."), session)

    def exhausted_pool_is_reported_at_once():
        last_one = away_from(home)
        scene.script(last_one, then=[usage_limit_reached()])
        row = {"user": USER, "path": "/v1/responses", "model": "gpt-5.4", **refused(429)}
        with one_row(scene, attempts=[last_one], session=session, **row):
            ran = codex.exec("resume", "--last", "And on.")
        includes(ran, code=1)
        if "usage limit" not in ran["errors"]:
            raise AssertionError(f"expected codex to tell of the usage limit, found {ran['errors']}")

    deeds = [
        a_turn_finishes,
        resume_lands_on_the_same_credential,
        turn_with_a_tool_call_stays_on_its_credential,
        usage_limit_reached_moves_the_turn,
        exhausted_pool_is_reported_at_once,
    ]
    return [(f"codex: {deed.__name__.replace('_', ' ')}", deed) for deed in deeds]


def usage_limit_reached():
    error = {"type": "usage_limit_reached", "message": "The usage limit has been reached", "plan_type": "plus"}
    return {"status": 429, "body": {"error": {**error, "resets_in_seconds": 1800}}}


def tool_call(turn_state):
    """A stream that calls a tool which Codex does not have: it says so in a second request of the same turn."""
    events = tool_call_events("no_such_tool", {}, 1)
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    headers = {"content-type": "text/event-stream", "x-codex-turn-state": turn_state}
    return {"status": 200, "headers": headers, "body": body}


def tool_call_events(tool, arguments, number):
    """The events of a response that calls a tool; the response's and the call's ids end in `number`."""
    call = {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}"}
    item = {**call, "name": tool, "arguments": json.dumps(arguments)}
    usage = {
        "input_tokens": COUNTED["input_tokens"],
        "input_tokens_details": {"cached_tokens": COUNTED["cached_tokens"]},
        "output_tokens": COUNTED["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": COUNTED["reasoning_tokens"]},
        "total_tokens": COUNTED["input_tokens"] + COUNTED["output_tokens"],
    }
    response = {"id": f"resp_tool_{number}", "object": "response", "model": "gpt-5.4", "service_tier": "default"}
    completed = {**response, "status": "completed", "output": [item], "usage": usage}
    return [
        {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": completed},
    ]
