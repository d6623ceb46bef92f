"""A stand-in for the Hub's HTTP API, on this machine: commits, gates, interrupted downloads, range requests.

    with Hub() as hub:
        hub.add("owner/name", {"config.json": b"{}"})
        ... HF_ENDPOINT=hub.url

What it answers is what huggingface_hub asks: the description of a revision, the tree, a file's head, a file or a range.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Repository:
    """A model or a data set: commits, the newest first, each path -> content; gated ones want a token."""

    def __init__(self, gated: bool = False):
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.gated = gated

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or a commit stands for; None: there is no such."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """The server; a context manager. `asked` holds (method, path, Range header) of every request."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.sent = 0
        self.broken: dict[
            str, int
        ] = {}  # file name -> bytes after which its connection is cut, once each time it is set
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(
        self, name: str, files: dict[str, bytes], branch: str = "main", gated: bool = False, kind: str = "models"
    ) -> str:
        """A new commit on a branch; returns it."""
        found = self.repositories.setdefault(f"{kind}/{name}", Repository(gated))
        content = json.dumps({path: hashlib.sha1(data).hexdigest() for path, data in files.items()}, sort_keys=True)
        commit = hashlib.sha1(content.encode()).hexdigest()
        found.commits[commit], found.branches[branch] = files, commit
        return commit

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/?]+)(?:/(revision|tree|paths-info)/([^/?]+))?(?:/([^?]*))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers one request."""

        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            """A description, a tree, or a file."""
            self._answer(body=True)

        def do_HEAD(self) -> None:
            """What is known of a file."""
            self._answer(body=False)

        def do_POST(self) -> None:
            """Paths and their sizes."""
            length = int(self.headers.get("Content-Length") or 0)
            self._asked = self.rfile.read(length)
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            hub.asked.append((self.command, self.path, self.headers.get("Range")))
            api, file = _API.match(self.path), _FILE.match(self.path)
            if api:
                kind, name, what, revision, folder = api.groups()
            elif file:
                kind, name, revision = ("datasets" if file[1] else "models"), file[2], file[3]
            else:
                return self._send(404, b"{}", {})
            found = hub.repositories.get(f"{kind}/{name}")
            if found is None:
                return self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            if found.gated and "Authorization" not in self.headers and (file or what):
                return self._send(403, b'{"error": "Access is restricted"}', {"X-Error-Code": "GatedRepo"})
            commit = found.commit((revision or "main").replace("%2F", "/"))
            if commit is None:
                return self._send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            files = found.commits[commit]
            if file:
                return self._file(files, file[4], commit, body)
            if what == "tree":
                return self._json([_entry(path, data) for path, data in files.items() if path.startswith(folder or "")])
            if what == "paths-info":
                return self._json([_entry(path, data) for path, data in files.items() if path.encode() in self._asked])
            siblings = [{"rfilename": path} for path in files]
            told = {"_id": "0" * 24, "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
            more = {"private": False, "gated": found.gated, "disabled": False, "downloads": 0, "likes": 0}
            return self._json({**told, **more, "lastModified": "2026-01-01T00:00:00.000Z"})

        def _file(self, files: dict[str, bytes], path: str, commit: str, body: bool) -> None:
            if path not in files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            data, status, more = files[path], 200, {}
            wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted:
                start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
                more = {"Content-Range": f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"}
                data, status = data[start:stop], 206
            etag = hashlib.sha256(files[path]).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes", **more}
            until = hub.broken.get(self.path) if body else None
            if until is not None and hub.forgiving:
                del hub.broken[self.path]
            return self._send(status, data, headers, body, until)

        def _json(self, content: Any) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, data: bytes, headers: dict[str, str], body: bool = True, until: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body or self.command == "HEAD":
                return
            self.wfile.write(data[:until])
            hub.sent += len(data[:until])
            if until is not None:
                self.close_connection = True
                self.connection.shutdown(2)

    return Handler


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
