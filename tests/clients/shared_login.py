"""The checks of one login that the gateway and Codex share: one auth.json in Codex's home, through 20 expiries.

Upstream rotates single-use refresh tokens and revokes the family for good once a spent one is presented again.
Codex locks the file (`flock` on auth.lock, then on auth.json.lock) while it writes, and not while it asks for tokens:
they do not collide because the gateway refreshes sooner than Codex would, and reads the file again before it spends
a token.
"""

import contextlib
import json
import os
import stat
import threading
import time

from codex import Codex, upstream_provider
from expect import TURN, equal, includes, one_row
from scene import LOGIN
from sdks import Sdk

USER = LOGIN
ROUNDS = 20
# In seconds: an expired access token, and a token that Codex refreshes (0.169: from 300 s before its end).
DUE_FOR_BOTH = (-60, 240)
# Due for the gateway and not yet for Codex: while both run, this is how every token ends.
DUE_FOR_THE_GATEWAY = 330
WAIT_MAX = 10
POLL = 0.02


@contextlib.contextmanager
def checks(scene):
    """The checks, while another client of the gateway runs beside Codex."""
    client = Sdk("python", scene)
    try:
        yield checks_of(Shared(scene, client), scene)
    finally:
        client.end()


def checks_of(shared, scene):
    """(Name, check) of each check."""

    def one_auth_json_survives_20_expiries():
        before = scene.login_counts()
        with shared.read_all_the_time() as readings:
            for number in range(ROUNDS):
                (shared.gateway_first, shared.codex_first, shared.together)[number % 3](number)
                counts = scene.login_counts()
                expected = {"posts": number + 1, "rotations": number + 1, "reuses": 0, "revoked": False}
                found = {name: counts[name] - before[name] for name in ("posts", "rotations", "reuses")}
                equal(f"round {number}", {**found, "revoked": counts["revoked"]}, expected)
        equal("what was wrong with auth.json", readings.problems, [])
        if readings.count < 10 * ROUNDS:
            raise AssertionError(f"auth.json was read only {readings.count} times")

    def nothing_is_left_beside_it():
        beside = sorted(path.name for path in shared.codex.home.glob("auth*"))
        equal("files", beside, ["auth.json", "auth.json.lock", "auth.lock"])

    def other_files_and_its_own_writes_cause_no_reload():
        messages = [event["message"] for event in scene.log() if event.get("credential") == LOGIN]
        changes = [message for message in messages if message in ("credential changed", "credential available")]
        if len(changes) > shared.writes_of_others:
            raise AssertionError(f"expected at most {shared.writes_of_others} changes, found {len(changes)}")

    deeds = [
        one_auth_json_survives_20_expiries,
        nothing_is_left_beside_it,
        other_files_and_its_own_writes_cause_no_reload,
    ]
    return [(f"shared login: {deed.__name__.replace('_', ' ')}", deed) for deed in deeds]


class Shared:
    """The auth.json, Codex with it, and a client of the gateway that has it too."""

    def __init__(self, scene, client):
        self.scene = scene
        self.client = client
        # Its own login, and nothing of it through the gateway.
        token_endpoint = {"CODEX_REFRESH_TOKEN_URL_OVERRIDE": f"{scene.upstream_url}/oauth/token"}
        self.codex = Codex(scene, LOGIN, upstream_provider(scene), token_endpoint)
        self.file = scene.shared_file
        self.writes_of_others = 0

    def gateway_first(self, number):
        """The gateway refreshes the tokens without a request; Codex then finds new ones."""
        with self.refresh_of_the_gateway():
            self.expire(DUE_FOR_BOTH[number % 2])
        self.ask_the_gateway()
        self.codex.turn("Say something.")

    def codex_first(self, number):
        """The gateway is suspended meanwhile, as on a closed laptop."""
        with self.scene.suspended_gateway():
            old = self.expire(DUE_FOR_BOTH[number % 2])
            self.codex.turn("Say something.")
            self.writes_of_others += 1
            if access_token(self.file.read_bytes()) == old:
                raise AssertionError("codex was served with tokens that are due")
        self.ask_the_gateway()

    def together(self, _number):
        """Both are used while the token endpoint holds back its response to the gateway's refresh."""
        posts = self.scene.login_counts()["posts"]
        with self.refresh_of_the_gateway():
            self.scene.script_login(hold=True)
            try:
                self.expire(DUE_FOR_THE_GATEWAY)
                wait_for("the gateway's refresh", lambda: self.scene.login_counts()["posts"] > posts)
                self.ask_the_gateway()
                self.codex.turn("Say something.")
            finally:
                self.scene.script_login(hold=False)

    def ask_the_gateway(self):
        with one_row(self.scene, user=USER, credential=LOGIN, attempts=[LOGIN], **TURN):
            includes(self.client.do("responses", USER), status="completed")

    def expire(self, seconds):
        """Writes an access token that expires in `seconds` to the file, and returns it."""
        auth = self.scene.script_login(renew_with=seconds)
        self.scene.write_shared(auth)
        self.writes_of_others += 1
        return auth["tokens"]["access_token"]

    @contextlib.contextmanager
    def refresh_of_the_gateway(self):
        """Waits, at the end of the context, until the gateway has refreshed the tokens."""
        before = self.refreshes_logged()
        yield
        wait_for("a refresh by the gateway", lambda: self.refreshes_logged() > before)

    def refreshes_logged(self):
        return [event["message"] for event in self.scene.log()].count("tokens refreshed")

    @contextlib.contextmanager
    def read_all_the_time(self):
        """Reads the file in a tight loop until the context ends."""
        readings = Readings(self.file)
        reader = threading.Thread(target=readings.run)
        reader.start()
        try:
            yield readings
        finally:
            readings.over.set()
            reader.join()


class Readings:
    """What a reader of the file sees."""

    def __init__(self, file):
        self.file = file
        self.over = threading.Event()
        self.count = 0
        self.problems = []

    def run(self):
        while not self.over.wait(0.001):
            try:
                with open(self.file, "rb") as file:
                    mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                    access_token(file.read())
                if mode != 0o600:
                    self.problems.append(f"mode {mode:o}")
            except (OSError, ValueError, KeyError) as error:
                self.problems.append(type(error).__name__)
            self.count += 1


def access_token(text):
    return json.loads(text)["tokens"]["access_token"]


def wait_for(what, is_there):
    deadline = time.monotonic() + WAIT_MAX
    while not is_there():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: none within {WAIT_MAX} s")
        time.sleep(POLL)
