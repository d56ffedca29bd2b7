"""The scene: accounts, credentials and a config in a folder, the scripted upstream and the real gateway over them.

Nothing in it is secret, and nothing connects to another machine. Invariant: each process that `start` started ends
before this process or with it, even if this one is killed.
"""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import urllib.request

from socks_proxy import SocksProxy

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = ROOT / "target" / "debug"
CLIENTS = ROOT / "target" / "clients"

# In seconds. The gateway compiles its policies at start, which takes a while on a machine that is busy.
START_WAIT_MAX = 90
# Above the gateway's drain time-out.
STOP_WAIT_MAX = 40
POLL = 0.02
HOUR = 3600

API_KEY = "sk-scripted-upstream"


@dataclasses.dataclass(frozen=True)
class User:
    """A user, who presents `token`, and the credential or pool for their requests."""

    name: str
    credential: str

    @property
    def token(self):
        return f"tg-client-{self.name}"


# The pools of the SDKs and of Codex over WebSockets; and those whose accounts are used up by a check, or by a group of them.
POOLS = {
    "pool": ["ana", "ben"],
    "socket-pool": ["eve", "fay"],
    "codex-pool": ["cyd", "dan"],
    "refused-pool": ["gil", "hal"],
    "limited-pool": ["ivy", "jon"],
    "spent-pool": ["kai", "lea"],
}
# The accounts that are reached through a proxy: those of Codex, over SSE and over WebSockets.
PROXIED = [*POOLS["codex-pool"], *POOLS["socket-pool"]]
# Accounts that a check makes answer 429; each is in no pool.
LIMITED = ["limited-python", "limited-node"]
OAUTH = [*(member for members in POOLS.values() for member in members), *LIMITED]
KEY = "key"
# A login that upstream rotates; its auth.json is in a Codex home.
LOGIN = "shared"

USERS = {
    user.name: user
    for user in [
        User("python", "pool"),
        User("python-key", KEY),
        User("python-limited", "limited-python"),
        User("node", "pool"),
        User("node-key", KEY),
        User("node-limited", "limited-node"),
        User("codex", "codex-pool"),
        User("codex-socket", "socket-pool"),
        User("codex-refused", "refused-pool"),
        User("codex-limited", "limited-pool"),
        User("codex-spent", "spent-pool"),
        User(LOGIN, LOGIN),
    ]
}


class Scene:
    """All that the clients need: `url`, scripts for upstream, and what upstream and the ledger saw."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tollgate-clients-"))
        self.children = []
        self.url = self.upstream_url = self.control_url = None
        self.proxy = SocksProxy()
        self.shared_file = self.folder / LOGIN / "home" / "auth.json"

    def set(self):
        """Writes every file, starts upstream and gateway, and waits until both are ready."""
        accounts = [self._credential(tag) for tag in OAUTH]
        self._write(f"auth-{KEY}.json", {"OPENAI_API_KEY": API_KEY})
        port, control = self.folder / "port", self.folder / "control-port"
        arguments = [text for account in accounts for text in ("--account", account)]
        arguments += ["--api-key", f"{API_KEY}:{account_id(KEY)}", "--login", account_id(LOGIN)]
        self._start("scripted-upstream", *arguments, "--port-file", port, "--control-port-file", control)
        self.control_url = f"http://127.0.0.1:{self._wait_for(control).strip()}"
        self.upstream_url = f"http://127.0.0.1:{self._wait_for(port).strip()}"
        self.shared_file.parent.mkdir(parents=True)
        self.write_shared(self.script_login())
        self._write("tollgate.json", self._config(self.upstream_url))
        ready = self.folder / "ready.json"
        self._start("tollgate", "run", "-c", self.folder / "tollgate.json", "--ready-file", ready)
        self.url = f"http://{json.loads(self._wait_for(ready))['services'][0]['address']}"

    def end(self):
        """Stops each process, the last one first. Returns a list of problems."""
        complaints = []
        for name, child in reversed(self.children):
            if child.poll() is not None:
                complaints.append(f"{name} had ended with {child.returncode}")
                continue
            child.send_signal(signal.SIGTERM)
            try:
                code = child.wait(STOP_WAIT_MAX)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                code = f"no end within {STOP_WAIT_MAX} s"
            if code != 0:
                complaints.append(f"{name}: after SIGTERM expected exit code 0, found {code}")
        self.children = []
        return complaints

    def clear_away(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def script(self, account, **script):
        """Scripts the responses for the account of credential `account` (see control.rs of the scripted upstream)."""
        self._control(f"account/{account_id(account)}", script)

    def script_login(self, **script):
        """Scripts the shared login; returns auth.json with its newest tokens."""
        return self._control(f"login/{account_id(LOGIN)}", script)

    def login_counts(self):
        """What the token endpoint saw of the shared login: posts, rotations, reuses, and whether it is revoked."""
        return self._control(f"login/{account_id(LOGIN)}")

    def upstream_requests(self):
        """Every request that upstream saw."""
        return self._control("requests")

    def sockets(self):
        """Every WebSocket that upstream accepted, with the messages on it so far."""
        return self._control("sockets")

    def write_shared(self, auth):
        """Replaces the shared auth.json, as Codex does."""
        partial = self.shared_file.with_suffix(".partial")
        self._write(partial, auth)
        partial.rename(self.shared_file)

    @contextlib.contextmanager
    def suspended_gateway(self):
        """Suspends the gateway until the context ends."""
        (gateway,) = [child for name, child in self.children if name == "tollgate"]
        gateway.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            gateway.send_signal(signal.SIGCONT)

    def rows(self, after=0):
        """The ledger's rows with an id above `after`. A row is there as soon as a client has the whole response."""
        ledger = sqlite3.connect(f"file:{self.folder}/data/ledger.db?mode=ro", uri=True)
        with contextlib.closing(ledger):
            ledger.row_factory = sqlite3.Row
            return [dict(row) for row in ledger.execute("SELECT * FROM usage WHERE id > ? ORDER BY id", [after])]

    def last_row(self):
        """The id of the ledger's last row."""
        return max([row["id"] for row in self.rows()], default=0)

    def log(self):
        """The gateway's events so far."""
        lines = (self.folder / "gateway.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def tails(self):
        """The last lines of every log, to explain a failure."""
        texts = []
        for path in sorted(self.folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-20:]
            texts.append("\n".join([f"{path.name} ends:", *(f"  {line}" for line in lines)]))
        return "\n".join(texts)

    def _config(self, upstream):
        credentials = [{"tag": tag, "credential_path": str(self.folder / f"auth-{tag}.json")} for tag in [*OAUTH, KEY]]
        for credential in credentials:
            if credential["tag"] in PROXIED:
                credential["detour"] = "proxy"
        credentials.append({"tag": LOGIN, "credential_path": str(self.shared_file)})
        credentials += [
            {"tag": tag, "type": "balancer", "strategy": "least_used", "credentials": members}
            for tag, members in POOLS.items()
        ]
        users = [{"name": user.name, "token": user.token, "credential": user.credential} for user in USERS.values()]
        return {
            "log": {"level": "info", "output": str(self.folder / "gateway.log"), "format": "json"},
            "data_dir": str(self.folder / "data"),
            "outbounds": [self.proxy.outbound("proxy")],
            "services": [
                {
                    "type": "ocm",
                    "tag": "clients",
                    "listen": "127.0.0.1",
                    "listen_port": 0,
                    "credentials": credentials,
                    "users": users,
                    "endpoints": {
                        "chatgpt": f"{upstream}/backend-api",
                        "api": upstream,
                        "token": f"{upstream}/oauth/token",
                    },
                }
            ],
        }

    def _credential(self, tag):
        """Writes an auth.json; returns its account in the form that the scripted upstream accepts."""
        claims = {
            "iss": "https://auth.openai.com",
            "sub": tag,
            "exp": int(time.time()) + 240 * HOUR,
            "https://api.openai.com/auth": {"chatgpt_account_id": account_id(tag), "chatgpt_plan_type": "plus"},
        }
        access_token = jwt(claims, "access")
        tokens = {
            "id_token": jwt(claims, "id"),
            "access_token": access_token,
            "refresh_token": f"rt-{tag}",
            "account_id": account_id(tag),
        }
        last_refresh = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime())
        self._write(f"auth-{tag}.json", {"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": last_refresh})
        return f"{access_token}:{account_id(tag)}:10:20"

    def _control(self, path, script=None):
        """Returns the response of the control API: to a POST if there is a script, to a GET otherwise."""
        body = None if script is None else json.dumps(script).encode()
        with LOOPBACK.open(f"{self.control_url}/{path}", body, timeout=30) as answer:
            return json.load(answer)

    def _write(self, name, value):
        path = self.folder / name
        with open(path, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump(value, file, indent=2)

    def _start(self, name, *arguments):
        output = open(self.folder / f"{name}-output.log", "wb")
        child = start([BINARIES / name, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        output.close()
        self.children.append((name, child))

    def _wait_for(self, path):
        """Returns the text of a file that the last child writes by rename."""
        name, child = self.children[-1]
        deadline = time.monotonic() + START_WAIT_MAX
        while not path.exists():
            if child.poll() is not None:
                raise RuntimeError(f"{name} ended with {child.returncode} before it was ready")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name}: not ready within {START_WAIT_MAX} s")
            time.sleep(POLL)
        return path.read_text()


def start(command, **options):
    """Starts a child that the kernel ends if this process is killed."""
    # A new session, so that Ctrl-C reaches this process alone.
    return subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *command], start_new_session=True, **options)


# Ignores the proxies of the environment.
LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def environment(**more):
    """An environment for a client: nothing of the caller's accounts or proxies, and no way to other machines."""
    names = ("PATH", "LANG", "TMPDIR")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    nowhere = "http://127.0.0.1:9"
    ways = {"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return {**kept, **ways, **more}


def account_id(tag):
    return f"acct-{tag}"


def jwt(claims, signature):
    """A token of a JWT's shape; its signature is just a word."""
    parts = ['{"alg":"none","typ":"JWT"}', json.dumps(claims), signature]
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)
