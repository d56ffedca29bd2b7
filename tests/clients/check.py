"""Real clients through the real gateway: sets up the scene, runs the checks, and prints their results.

    check.py [NAME…]    only the checks whose names contain one of these
"""

import json
import signal
import sys
import time
import traceback

import codex
import codex_socket
import sdks
import shared_login
from scene import API_KEY, PROXIED, USERS, Scene
from socks_proxy import PASSWORD


def main():
    # Turns signals into an exception, so that every process that was started here ends too.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    tally = Tally(wanted=sys.argv[1:])
    scene = Scene()
    try:
        scene.set()
        print(f"clients: the gateway listens at {scene.url}", flush=True)
        for group in (
            sdks.checks("python", scene),
            sdks.checks("node", scene),
            codex.checks(scene),
            codex_socket.checks(scene),
            shared_login.checks(scene),
        ):
            with group as checks:
                for name, check in checks:
                    tally.run(name, check)
        tally.run("clients: Codex's credentials use their proxy", lambda: proxy_is_used(scene))
        tally.run("clients: no token reaches the wrong side", lambda: no_secret_leaks(scene))
    except Exception:
        tally.failed += 1
        traceback.print_exc()
    finally:
        complaints = scene.end()
        tally.failed += len(complaints)
        for complaint in complaints:
            print(f"FAILED  {complaint}")
        if tally.failed:
            print(scene.tails(), flush=True)
        scene.clear_away()
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


class Tally:
    """Counts of the checks that passed and failed."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.passed = self.failed = 0

    def run(self, name, check):
        if self.wanted and not any(wanted in name for wanted in self.wanted):
            return
        began = time.monotonic()
        try:
            check()
        except AssertionError as failure:
            self.failed += 1
            print(f"FAILED  {name}: {failure}", flush=True)
        except Exception:
            self.failed += 1
            print(f"FAILED  {name}: {traceback.format_exc()}", flush=True)
        else:
            self.passed += 1
            print(f"ok      {name} ({time.monotonic() - began:.1f} s)", flush=True)


def proxy_is_used(scene):
    """The polls alone open a connection for each credential behind the proxy."""
    if scene.proxy.connected < len(PROXIED):
        raise AssertionError(f"expected {len(PROXIED)} connections or more, found {scene.proxy.connected}")


def no_secret_leaks(scene):
    """No client's token goes upstream, and no token of either side goes into the log or the ledger."""
    tokens = [user.token for user in USERS.values()]
    seen = scene.upstream_requests()
    if not seen:
        raise AssertionError("upstream saw no request")
    for request in seen:
        text = repr(request)
        if any(token in text for token in tokens):
            raise AssertionError(f"a client's token in {request['method']} {request['target']} to upstream")
    for socket in scene.sockets():
        text = repr(socket["messages"])
        if any(token in text for token in tokens):
            raise AssertionError(f"a client's token in a message to {socket['account']}")
    secrets = {*tokens, API_KEY, PASSWORD, *(secret for request in seen for secret in secrets_of(request))}
    kept = {"gateway.log": (scene.folder / "gateway.log").read_text(), "ledger": repr(scene.rows())}
    for place, text in kept.items():
        if any(secret in text for secret in secrets):
            raise AssertionError(f"a token in the {place}")


def secrets_of(request):
    """The access token of a request, or the refresh token of one for new tokens."""
    if request["target"] == "/oauth/token":
        return [json.loads(request["body"])["refresh_token"]]
    authorization = dict(request["headers"]).get("authorization")
    return [authorization.removeprefix("Bearer ")] if authorization else []


if __name__ == "__main__":
    sys.exit(main())
