"""The checks of the Codex CLI over WebSockets: what its user sees, what upstream saw on its sockets, and the rows of both.

Each check has a separate session. Those that exhaust an account have a separate pool, too.
"""

import concurrent.futures
import contextlib
import json
import time

from codex import Codex, gateway_provider, tool_call_events, usage_limit_reached
from conversation import Conversation
from expect import TEXT, TURN, equal, includes
from scene import POOLS, USERS

SIDE_BY_SIDE = 4
WAIT_MAX = 30
POLL = 0.02
# How a socket breaks in the middle of a turn: upstream closes it, or disconnects without a close frame, and the gateway
# sends its client a close frame.
BREAKS = {
    "upstream closes with 1012": {"close": {"code": 1012, "reason": "service restart"}},
    "upstream closes with 1011": {"close": {"code": 1011, "reason": "keepalive timed out"}},
    "upstream ends without a close": "finish",
    "upstream resets": "reset",
}
# A row of a turn, of the prewarm request of Codex before its first one, and of a turn that failed.
SOCKET = {"path": "/v1/responses", "transport": "websocket", "model": "gpt-5.4"}
SOCKET_TURN = {**SOCKET, **TURN, "status": 101, "prewarm": 0}
PREWARM = {**SOCKET, "status": 101, "end": "complete", "prewarm": 1, "input_tokens": 0, "cost_nanousd": 0}
LOST = {**SOCKET, "end": "upstream_gone", "prewarm": 0, "input_tokens": None, "cost_nanousd": None}
LIMITED = {**SOCKET, "status": 429, "end": "failed", "prewarm": 0, "input_tokens": None, "cost_nanousd": None}


@contextlib.contextmanager
def checks(scene):
    """The checks."""
    yield checks_of(scene)


def checks_of(scene):
    """(Name, check) of each check."""

    def codex_of(user, name=None):
        return Codex(scene, name or user, gateway_provider(scene, supports_websockets=True, user=user))

    def one_turn_is_warmed_up_and_answered():
        session = codex_of("codex-socket", "codex-one").turn("Say something.")
        rows, (socket,) = seen_of(scene, session)
        rows_are(rows, [PREWARM, SOCKET_TURN], user="codex-socket", credential=rows[0]["credential"])
        equal("the socket's account", socket["account"], f"acct-{rows[0]['credential']}")
        equal("the messages' generate", [create.get("generate") for create in socket["creates"]], [False, None])
        chained(rows, socket)
        equal("requests beside the socket", posts_of(scene, session), [])

    def three_turns_share_a_socket():
        with Conversation(codex_of("codex-socket", "codex-three")) as conversation:
            for text in ("Say something.", "Go on.", "And on."):
                answered(conversation.turn(text))
        rows, (socket,) = seen_of(scene, conversation.session)
        rows_are(rows, [PREWARM, SOCKET_TURN, SOCKET_TURN, SOCKET_TURN], credential=rows[0]["credential"])
        chained(rows, socket)
        # The follow-ups send what is new, and leave the rest to the previous response.
        equal("items sent in each follow-up", [len(create["input"]) for create in socket["creates"][2:]], [1, 1])

    def resumed_session_stays_on_its_credential():
        codex = codex_of("codex-socket", "codex-resumed")
        session = codex.turn("Say something.")
        for text in ("Go on.", "And on."):
            equal("session", codex.turn("resume", "--last", text), session)
        rows, sockets = seen_of(scene, session)
        turns = [row for row in rows if not row["prewarm"]]
        rows_are(turns, [SOCKET_TURN] * 3, credential=rows[0]["credential"])
        equal("accounts of its sockets", [socket["account"] for socket in sockets], [sockets[0]["account"]] * 3)
        equal("requests beside the sockets", posts_of(scene, session), [])

    def tool_calls_are_answered_on_the_same_socket():
        with Conversation(codex_of("codex-socket", "codex-tools")) as conversation:
            answered(conversation.turn("Say something."))
            home = seen_of(scene, conversation.session)[0][0]["credential"]
            calls = [tool_call_on_socket(number, f"echo tollgate-$((40 + {number}))") for number in (1, 2)]
            scene.script(home, then_socket=[*calls, ["begun", "completed"]])
            answered(conversation.turn("Use your tools."))
        rows, (socket,) = seen_of(scene, conversation.session)
        rows_are(rows, [PREWARM, *[SOCKET_TURN] * 4], credential=home)
        chained(rows, socket)
        for number, create in zip((1, 2), socket["creates"][-2:], strict=True):
            (item,) = create["input"]
            includes(item, type="function_call_output", call_id=f"call_{number}")
            if f"tollgate-{40 + number}" not in item["output"]:
                raise AssertionError(f"expected what the command printed, found {item['output']!r}")

    def four_sessions_side_by_side():
        members = POOLS[USERS["codex-socket"].credential]
        before = len(scene.sockets())
        for member in members:
            scene.script(member, always_socket=["hold", "begun", "completed"])
        with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
            sides = [codex_of("codex-socket", f"codex-side-{number}") for number in range(SIDE_BY_SIDE)]
            ran = [threads.submit(side.turn, f"Say {number}.") for number, side in enumerate(sides)]
            try:
                # Each has sent its turn, and none has an answer.
                wait_for("all turns at upstream", lambda: turns_on(scene.sockets()[before:]) >= SIDE_BY_SIDE)
            finally:
                for member in members:
                    scene.script(member, clear=True, release=True)
            sessions = [run.result() for run in ran]
        equal("sessions", len(set(sessions)), SIDE_BY_SIDE)
        for number, session in enumerate(sessions):
            rows, (socket,) = seen_of(scene, session)
            rows_are(rows, [PREWARM, SOCKET_TURN], credential=rows[0]["credential"])
            chained(rows, socket)
            if f"Say {number}." not in json.dumps(socket["creates"][1]["input"]):
                raise AssertionError(f"expected the words of session {number} on its socket, and found none")

    def usage_limit_at_a_handshake_moves_the_turn():
        with Conversation(codex_of("codex-refused")) as conversation:
            answered(conversation.turn("Say something."))
            home = seen_of(scene, conversation.session)[0][0]["credential"]
            moved = away_from(home, "refused-pool")
            # The socket breaks in the middle of the turn, and the account has nothing left for another.
            scene.script(home, then_socket=[["begun", BREAKS["upstream closes with 1012"]]])
            scene.script(home, then_handshake=[usage_limit_reached()])
            answered(conversation.turn("Go on."))
            answered(conversation.turn("And on."))
        rows, sockets = seen_of(scene, conversation.session)
        rows_are(rows[:3], [PREWARM, SOCKET_TURN, LOST], credential=home)
        rows_are(rows[3:], [SOCKET_TURN, SOCKET_TURN], credential=moved)
        equal("accounts of its sockets", [socket["account"] for socket in sockets], [f"acct-{home}", f"acct-{moved}"])
        equal("requests beside the sockets", posts_of(scene, conversation.session), [])

    def usage_limit_within_a_turn_reaches_the_client_and_the_next_turn_moves():
        with Conversation(codex_of("codex-limited")) as conversation:
            answered(conversation.turn("Say something."))
            home = seen_of(scene, conversation.session)[0][0]["credential"]
            moved = away_from(home, "limited-pool")
            limit = usage_limit_reached()
            error = {"type": "error", "status": limit["status"], **limit["body"]}
            scene.script(home, then_socket=[[{"event": error}]])
            # Codex takes such an error as the turn's end.
            failed = conversation.turn("Go on.")
            includes(failed, status="failed", said=[])
            includes(failed["error"], codexErrorInfo="usageLimitExceeded")
            answered(conversation.turn("And on."))
        rows, sockets = seen_of(scene, conversation.session)
        rows_are(rows[:3], [PREWARM, SOCKET_TURN, LIMITED], credential=home)
        rows_are(rows[3:], [SOCKET_TURN], credential=moved)
        equal("accounts of its sockets", [socket["account"] for socket in sockets], [f"acct-{home}", f"acct-{moved}"])

    def used_up_credential_leaves_its_socket_between_turns():
        with Conversation(codex_of("codex-spent")) as conversation:
            answered(conversation.turn("Say something."))
            home = seen_of(scene, conversation.session)[0][0]["credential"]
            moved = away_from(home, "spent-pool")
            # The turn that reports it is completed all the same.
            scene.script(home, five_hour=100, then_socket=[["begun", {"event": rate_limits(100)}, "completed"]])
            for text in ("Go on.", "And on."):
                answered(conversation.turn(text))
        rows, sockets = seen_of(scene, conversation.session)
        rows_are(rows[:3], [PREWARM, SOCKET_TURN, SOCKET_TURN], credential=home)
        rows_are(rows[3:], [SOCKET_TURN], credential=moved)
        equal("accounts of its sockets", [socket["account"] for socket in sockets], [f"acct-{home}", f"acct-{moved}"])
        equal("the previous response on the new socket", sockets[1]["creates"][0].get("previous_response_id"), None)

    def broken_socket_is_opened_again(how):
        name = f"codex-broken-{list(BREAKS).index(how)}"
        with Conversation(codex_of("codex-socket", name)) as conversation:
            answered(conversation.turn("Say something."))
            home = seen_of(scene, conversation.session)[0][0]["credential"]
            scene.script(home, then_socket=[["begun", BREAKS[how]]])
            for text in ("Go on.", "And on."):
                answered(conversation.turn(text))
        rows, sockets = seen_of(scene, conversation.session)
        rows_are(rows, [PREWARM, SOCKET_TURN, LOST, SOCKET_TURN, SOCKET_TURN], credential=home)
        equal("accounts of its sockets", [socket["account"] for socket in sockets], [f"acct-{home}"] * 2)
        # All is sent again, and nothing is expected of the new socket that only the old one knew.
        again = sockets[1]["creates"][0]
        equal("the previous response", again.get("previous_response_id"), None)
        if not all(text in json.dumps(again["input"]) for text in ("Say something.", "Go on.")):
            raise AssertionError("expected the whole conversation on the new socket, and found only a part of it")
        equal("requests beside the sockets", posts_of(scene, conversation.session), [])

    deeds = [
        one_turn_is_warmed_up_and_answered,
        three_turns_share_a_socket,
        resumed_session_stays_on_its_credential,
        tool_calls_are_answered_on_the_same_socket,
        four_sessions_side_by_side,
        usage_limit_at_a_handshake_moves_the_turn,
        usage_limit_within_a_turn_reaches_the_client_and_the_next_turn_moves,
        used_up_credential_leaves_its_socket_between_turns,
    ]
    named = [(deed.__name__.replace("_", " "), deed) for deed in deeds]
    named += [
        (f"broken socket is opened again: {how}", lambda how=how: broken_socket_is_opened_again(how)) for how in BREAKS
    ]
    return [(f"codex over a websocket: {name}", deed) for name, deed in named]


def answered(turn):
    """The user sees the assistant's answer, possibly after an interrupted part of it."""
    includes(turn, status="completed")
    equal("the last message", turn["said"][-1:], [TEXT])


def seen_of(scene, session):
    """The ledger's rows of a session, and its sockets as upstream saw them: with `creates`, the messages on each."""
    rows = [row for row in scene.rows() if row["session"] == session]
    sockets = [socket for socket in scene.sockets() if header(socket["request"], "session-id") == session]
    return rows, [{**socket, "creates": creates_on(socket)} for socket in sockets]


def creates_on(socket):
    messages = [json.loads(message) for message in socket["messages"]]
    equal("types of the messages", {message["type"] for message in messages}, {"response.create"} if messages else set())
    return messages


def turns_on(sockets):
    return sum(create.get("generate") is not False for socket in sockets for create in creates_on(socket))


def posts_of(scene, session):
    """What upstream saw of the session beside its handshakes."""
    of_session = [seen for seen in scene.upstream_requests() if header(seen, "session-id") == session]
    return [f"{seen['method']} {seen['target']}" for seen in of_session if seen["method"] != "GET"]


def header(request, name):
    return dict(request["headers"]).get(name)


def rows_are(rows, expected, **of_all):
    """Each row has its expected fields, and all have those of `of_all`."""
    equal("how the rows ended", [row["end"] for row in rows], [row["end"] for row in expected])
    for row, fields in zip(rows, expected, strict=True):
        includes(row, **fields, **of_all)


def chained(rows, socket):
    """Each message but the first continues the response before it, on the wire and in the ledger."""
    before = [None, *(row["response_id"] for row in rows[:-1])]
    equal("previous responses on the wire", [create.get("previous_response_id") for create in socket["creates"]], before)
    equal("previous responses in the ledger", [row["previous_response_id"] for row in rows], before)


def away_from(credential, pool):
    (other,) = set(POOLS[pool]) - {credential}
    return other


def tool_call_on_socket(number, command):
    """The events on a socket that make Codex run a command."""
    events = tool_call_events("exec_command", {"cmd": command}, number)
    return [{"event": event} for event in events]


def rate_limits(five_hour):
    """An event with the account's windows."""
    now = int(time.time())
    primary = {"used_percent": five_hour, "window_minutes": 300, "reset_at": now + 3600}
    secondary = {"used_percent": 20, "window_minutes": 10080, "reset_at": now + 86_400}
    windows = {"primary": primary, "secondary": secondary}
    return {"type": "codex.rate_limits", "metered_limit_name": "codex", "rate_limits": windows}


def wait_for(what, is_there):
    deadline = time.monotonic() + WAIT_MAX
    while not is_there():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {WAIT_MAX} s")
        time.sleep(POLL)
