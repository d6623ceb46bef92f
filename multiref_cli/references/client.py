"""Questions to an OpenAI-compatible server: side by side, and again where it was busy, gone or cut short."""

import json
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from multiref_cli.errors import RunError

T = TypeVar("T")

# Answers after which the same question may have another one: time-out, too early, too many questions.
_AGAIN = (408, 425, 429)
# Pauses in seconds before a question is asked again: together about two minutes, in which a server can restart.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
# The longest pause that a server may ask for, seconds.
_LONGEST = 600.0
_PIECE = 2**14


class Refused(RunError):
    """The server understood the question and will not answer it, however often it is asked."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Busy(Exception):
    """No answer this time; `pause` is how many seconds the server asks to be left alone, None where it does not say."""

    def __init__(self, text: str, pause: float | None = None) -> None:
        super().__init__(text)
        self.pause = pause


@dataclass(frozen=True)
class _Task(Generic[T]):
    """A question that waits for a thread: where it goes, what it says, how its answer is read."""

    path: str
    body: dict[str, Any]
    read: Callable[[dict[str, Any]], T]
    future: "Future[T]"


class Client:
    """Asks one server; at most `concurrency` questions are under way at any time."""

    def __init__(self, url: str, key: str | None, concurrency: int, timeout: float) -> None:
        """Takes note; no connection is opened.

        Args:
            url: of the server, with or without the /v1 at its end.
            key: that the server wants to see; None: none.
            concurrency: questions asked side by side.
            timeout: seconds that one answer may take.
        """
        parts = urlsplit(url.rstrip("/").removesuffix("/v1"))
        self.url, self._parts = url, parts
        self.concurrency, self.timeout = concurrency, timeout
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._tasks: queue.SimpleQueue[_Task[Any] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._own = threading.local()

    def get(self, path: str, tries: int = 3) -> dict[str, Any]:
        """The answer to GET, a JSON object.

        Raises:
            Refused: the server says no.
            RunError: there is none after some tries.
        """
        return self._ask("GET", path, None, lambda answer: answer, tries)

    def post(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], T], tries: int = 3) -> T:
        """What `read` makes of the answer to POST; it raises ValueError where that is not a whole one. See `get`."""
        return self._ask("POST", path, body, read, tries)

    def submit(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> "Future[T]":
        """`post` in another thread, tried for about two minutes."""
        future: Future[T] = Future()
        if len(self._threads) < self.concurrency:
            # No executor: its threads would be waited for when the program ends, and each may wait for an answer.
            thread = threading.Thread(target=self._work, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._tasks.put(_Task(path, body, read, future))
        return future

    def close(self) -> None:
        """Drop all questions that wait; threads end with the answer that they wait for."""
        self._closed.set()
        for _ in self._threads:
            self._tasks.put(None)
        self._threads, self._tasks, self._closed = [], queue.SimpleQueue(), threading.Event()

    def _work(self) -> None:
        tasks, closed = self._tasks, self._closed
        while (task := tasks.get()) is not None and not closed.is_set():
            try:
                answer = self._ask("POST", task.path, task.body, task.read, len(_PAUSES) + 1, closed)
            except BaseException as error:  # raised again by whoever waits for the answer
                task.future.set_exception(error)
            else:
                task.future.set_result(answer)
        self._hang_up()

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[dict[str, Any]], T],
        tries: int,
        closed: threading.Event | None = None,
    ) -> T:
        closed = closed or self._closed
        for attempt in range(tries):
            try:
                return read(self._once(method, path, body))
            except (_Busy, OSError, HTTPException, ValueError) as error:  # ValueError: half an answer, or a wrong one
                self._hang_up()
                last = error
            if attempt + 1 < tries:
                asked = last.pause if isinstance(last, _Busy) else None
                if closed.wait(_PAUSES[min(attempt, len(_PAUSES) - 1)] if asked is None else asked):
                    break
        text = str(last) or type(last).__name__
        raise RunError(f"{self.url}{path if path.startswith('/v1') else ''} gives no usable answer: {text}.") from last

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        deadline, pieces = time.monotonic() + self.timeout, []
        response = self._response(method, self._parts.path + path, content)
        while piece := response.read(_PIECE):
            pieces.append(piece)
            if time.monotonic() > deadline:
                raise TimeoutError(f"it took more than {self.timeout:g} s")
        text = b"".join(pieces).decode(errors="replace")
        if response.length:  # bytes that were promised and did not come
            raise _Busy("half an answer")
        if response.status in _AGAIN or response.status >= 500:
            raise _Busy(f"status {response.status} ({_said(text)})", _pause(response.getheader("Retry-After")))
        if response.status >= 300:
            raise Refused(response.status, f"{self.url} answers with status {response.status}: {_said(text)}.")
        answer = json.loads(text)
        if not isinstance(answer, dict):
            raise ValueError("an answer that is no JSON object")
        return answer

    def _response(self, method: str, path: str, content: bytes | None) -> HTTPResponse:
        kept = getattr(self._own, "connection", None) is not None
        try:
            connection = self._connection()
            connection.request(method, path, content, self._headers)
            return connection.getresponse()
        except ConnectionError:
            self._hang_up()
            if not kept:  # else the server had closed a connection that lay idle
                raise
            return self._response(method, path, content)

    def _connection(self) -> HTTPConnection:
        """Of this thread, kept open between questions."""
        found: HTTPConnection | None = getattr(self._own, "connection", None)
        if found is None:
            kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
            found = self._own.connection = kind(self._parts.hostname or "", self._parts.port, timeout=self.timeout)
        return found

    def _hang_up(self) -> None:
        found: HTTPConnection | None = getattr(self._own, "connection", None)
        if found is not None:
            found.close()
            self._own.connection = None


def _pause(header: str | None) -> float | None:
    """Seconds of a Retry-After header; None where there is none, or a date."""
    try:
        return min(max(float(header or ""), 0.0), _LONGEST)
    except ValueError:
        return None


def _said(text: str) -> str:
    """What a server says of a fault, in one line."""
    try:
        found = json.loads(text)
        error = found.get("error", found)
        text = str(error.get("message", text) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300].rstrip(".") or "no word"
