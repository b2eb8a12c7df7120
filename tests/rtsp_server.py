"""A minimal RTSP server that plays a transport stream to each client that has the password."""

from __future__ import annotations

import base64
import socket
import struct
import threading
from pathlib import Path

_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=rtpmap:33 MP2T/90000\r\n"


class RtspServer:
    """Serves `connections` clients one after another; each gets the whole file, and then waits or is disconnected."""

    def __init__(self, path: Path, user: str, password: str, connections: int, hang_up: bool = True) -> None:
        self._content, self._connections, self._hang_up = path.read_bytes(), connections, hang_up
        self._password = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"rtsp://{user}:{password}@127.0.0.1:{self._server.getsockname()[1]}/cam"
        self.closed = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for _ in range(self._connections):
            connection, _ = self._server.accept()
            try:
                self._answer(connection)
            except OSError:
                pass
            finally:
                connection.close()
        self._server.close()
        self.closed.set()

    def _answer(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while (first := stream.readline()).strip():
            headers = {}
            while line := stream.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            method, lines, body = first.split()[0].decode(), ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}"], ""
            if method != "OPTIONS" and headers.get("authorization") != f"Basic {self._password}":
                lines = ["RTSP/1.0 401 Unauthorized", lines[1], 'WWW-Authenticate: Basic realm="test"']
                method = ""
            elif method == "OPTIONS":
                lines.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            elif method == "DESCRIBE":
                body = _SDP
                lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            elif method == "SETUP":
                lines += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            if method == "PLAY":
                self._play(connection)
                if self._hang_up:
                    return
            elif method == "TEARDOWN":
                return

    def _play(self, connection: socket.socket) -> None:
        for number, start in enumerate(range(0, len(self._content), 7 * 188)):
            payload = (
                struct.pack(">BBHII", 0x80, 33, number % 65536, number, 1) + self._content[start : start + 7 * 188]
            )
            connection.sendall(struct.pack(">cBH", b"$", 0, len(payload)) + payload)
