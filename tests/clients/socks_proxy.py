"""A SOCKS 5 proxy with a login, in threads of this process, which the credentials of Codex have as their detour.

Invariant: it connects to this machine's loopback only.
"""

import contextlib
import socket
import socketserver
import threading

USERNAME, PASSWORD = "tollgate", "socks-password"
# RFC 1928 and RFC 1929.
VERSION, LOGIN_VERSION = 5, 1
LOGIN_METHOD = 2
IPV4 = 1
SUCCEEDED = 0


class SocksProxy:
    """A running proxy. `connected` counts the connections that it made."""

    def __init__(self):
        self.connected = 0
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                # A client that leaves early is no fault of the proxy.
                with contextlib.suppress(OSError, ValueError):
                    proxy._serve(self.rfile, self.connection)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def outbound(self, tag):
        """The outbound to it, for a configuration."""
        where = {"server": "127.0.0.1", "server_port": self.port}
        return {"type": "socks", "tag": tag, **where, "username": USERNAME, "password": PASSWORD}

    def _serve(self, reader, client):
        version, count = reader.read(2)
        methods = reader.read(count)
        if version != VERSION or LOGIN_METHOD not in methods:
            client.sendall(bytes([VERSION, 0xFF]))
            return
        client.sendall(bytes([VERSION, LOGIN_METHOD]))
        reader.read(1)
        login = [reader.read(reader.read(1)[0]).decode() for _ in range(2)]
        is_right = login == [USERNAME, PASSWORD]
        client.sendall(bytes([LOGIN_VERSION, 0 if is_right else 1]))
        if not is_right:
            return
        _, _, _, kind = reader.read(4)
        if kind != IPV4:
            return
        host = socket.inet_ntoa(reader.read(4))
        port = int.from_bytes(reader.read(2))
        if not host.startswith("127."):
            return
        with socket.create_connection((host, port)) as upstream:
            client.sendall(bytes([VERSION, SUCCEEDED, 0, IPV4, 0, 0, 0, 0, 0, 0]))
            self.connected += 1
            back = threading.Thread(target=copy, args=(upstream.recv, client), daemon=True)
            back.start()
            copy(reader.read1, upstream)
            back.join()


def copy(receive, target):
    """Passes bytes on until their end, which it passes on, too."""
    with contextlib.suppress(OSError):
        while received := receive(65536):
            target.sendall(received)
        target.shutdown(socket.SHUT_WR)
