"""A conversation with Codex: the app server, which IDEs use. Unlike `codex exec`, one process has all turns of a
session, and so one WebSocket.

JSON-RPC, a line a message, over standard input and output.
"""

import json
import os
import select
import subprocess
import time

from codex import CODEX
from scene import environment, start

# A turn takes a tenth of a second; Codex gives up after about 25 s of retries.
ANSWER_WAIT_MAX = 60


class Conversation:
    """One session of a `Codex`, from its first turn to `end`."""

    def __init__(self, codex):
        self.calls = 0
        self.unread = b""
        with open(codex.log, "ab") as log:
            self.child = start(
                ["node", CODEX, "app-server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=codex.work,
                env=environment(HOME=str(codex.home), CODEX_HOME=str(codex.home), **codex.environment),
            )
        self._call("initialize", {"clientInfo": {"name": "tollgate", "title": "Tollgate's checks", "version": "0"}})
        self._send({"method": "initialized"})
        # It runs only commands of the checks, and a sandbox would need support by the kernel.
        terms = {"approvalPolicy": "never", "sandbox": "danger-full-access", "cwd": str(codex.work)}
        self.session = self._call("thread/start", terms)["thread"]["id"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def turn(self, text):
        """What the user sees of a turn: its status, the assistant's messages and, if it failed, the error."""
        self._call("turn/start", {"threadId": self.session, "input": [{"type": "text", "text": text}]})
        said = []
        deadline = time.monotonic() + ANSWER_WAIT_MAX
        while True:
            message = self._receive(deadline)
            of = message.get("params", {})
            if message.get("method") == "item/completed" and of["item"]["type"] == "agentMessage":
                said.append(of["item"]["text"])
            elif message.get("method") == "turn/completed":
                return {"status": of["turn"]["status"], "said": said, "error": of["turn"]["error"]}

    def _call(self, method, params):
        self.calls += 1
        self._send({"id": self.calls, "method": method, "params": params})
        deadline = time.monotonic() + ANSWER_WAIT_MAX
        while True:
            message = self._receive(deadline)
            if message.get("id") == self.calls:
                if "error" in message:
                    raise AssertionError(f"codex app-server: {method}: {message['error']}")
                return message["result"]

    def _send(self, message):
        self.child.stdin.write(json.dumps(message).encode() + b"\n")
        self.child.stdin.flush()

    def _receive(self, deadline):
        output = self.child.stdout
        while b"\n" not in self.unread:
            if not select.select([output], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"codex app-server: nothing within {ANSWER_WAIT_MAX} s")
            piece = os.read(output.fileno(), 1 << 16)
            if not piece:
                raise AssertionError(f"codex app-server: ended with {self.child.wait(10)}")
            self.unread += piece
        line, self.unread = self.unread.split(b"\n", 1)
        return json.loads(line)
