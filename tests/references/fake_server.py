"""A small completions server in the standard library: the protocol of vLLM over a model here, with faults."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file


class FakeServer(ThreadingHTTPServer):
    """Serves one model under one name.

    Attributes:
        model, tokenizer: what it answers with; may be changed while it runs.
        name: of the model.
        faults: called with (number of the scoring question, its body), says what goes wrong with it: an HTTP status, a
            pair (status, Retry-After), "half", "hang", "hang up", "short", "null", "text", a number of seconds to wait
            first (a float), or None.
        draw_faults: the same of the questions that draw, numbered from 0.
        takes_weights: whether it has the development endpoint that reads weights from a folder.
        deaf: part of the names of weights that it never takes over.
        processed: whether the log-probabilities of what it draws are those after temperature and truncation.
        reloads: folders that it read weights from, with the names of their files.
        calls: other development endpoints that were called.
        asked: bodies of all scoring questions in the order of their arrival.
        keys: every Authorization header that came.
        most: the most questions that were under way at once.
    """

    daemon_threads = True

    def __init__(self, model, tokenizer, name="teacher", port=0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.model, self.tokenizer, self.name = model.double(), tokenizer, name
        self.faults = self.draw_faults = lambda number, body: None
        self.takes_weights, self.deaf, self.processed = True, None, True
        self.reloads, self.calls = [], []
        self.tokenizes, self.ids_shown, self.least_new_tokens = True, True, 0
        self.asked, self.drawn, self.keys, self.most, self.now = [], [], set(), 0, 0
        self.lock, self.computing = threading.Lock(), threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that hangs up is no fault of the server."""

    @torch.no_grad()
    def logps(self, ids):
        """(T - 1,) of all ids but the first."""
        with self.computing:
            found = self.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return found.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()

    @torch.no_grad()
    def draw(self, ids, body):
        """Ids drawn one by one, their log-probabilities, and why it ended."""
        generator, found, logps = torch.Generator().manual_seed(body["seed"]), [], []
        for _ in range(body["max_tokens"]):
            with self.computing:
                logits = self.model(torch.tensor([ids + found])).logits[0, -1]
            last = self._truncated(logits, body).log_softmax(-1)
            found.append(int(torch.multinomial(last.exp(), 1, generator=generator)))
            logps.append(float((last if self.processed else logits.log_softmax(-1))[found[-1]]))
            if found[-1] in body["stop_token_ids"]:
                return found, logps, "stop"
        return found, logps, "length"

    def _truncated(self, logits, body):
        """(V,) logits at the temperature asked for, with biases, of the top_k largest alone."""
        logits = logits / body["temperature"]
        for token, bias in (body.get("logit_bias") or {}).items():
            logits[int(token)] += bias
        if body["top_k"] > 0:
            logits[logits < logits.topk(body["top_k"]).values[-1]] = -torch.inf
        return logits

    @torch.no_grad()
    def reload(self, folder):
        """Takes over the weights of a folder, but for those that it is deaf to."""
        files = sorted(Path(folder).glob("*.safetensors"))
        self.reloads.append((folder, [path.name for path in files]))
        weights = {name: value for path in files for name, value in load_file(path).items()}
        kept = {name: value for name, value in weights.items() if self.deaf is None or self.deaf not in name}
        with self.computing:
            _, unexpected = self.model.load_state_dict(kept, strict=False)
        assert not unexpected


@contextmanager
def serving(model, tokenizer, name="teacher"):
    """A running server."""
    server = FakeServer(model, tokenizer, name)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *args):
        """Nothing is printed."""

    def do_GET(self):
        self._answer({"object": "list", "data": [{"id": self.server.name, "object": "model", "max_model_len": 128}]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.keys.add(self.headers.get("Authorization"))
        if server.takes_weights and self._developer(body):
            return None
        if self.path == "/tokenize":
            if not server.tokenizes:
                return self._answer({"error": {"message": "Not Found"}}, 404)
            return self._answer({"tokens": server.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]})
        if self.path != "/v1/completions" or body["model"] != server.name:
            return self._answer({"error": {"message": f"The model {body.get('model')} does not exist."}}, 404)
        if body["max_tokens"] < server.least_new_tokens:
            return self._answer({"error": {"message": "max_tokens must be at least 1"}}, 400)
        if not body.get("echo"):
            with server.lock:
                server.drawn.append(body)
                number = len(server.drawn) - 1
            return self._draw(body, server.draw_faults(number, body))
        with server.lock:
            server.asked.append(body)
            number = len(server.asked) - 1
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            self._score(body, server.faults(number, body))
        finally:
            with server.lock:
                server.now -= 1

    def _developer(self, body):
        """Answers an endpoint of VLLM_SERVER_DEV_MODE=1, if it is one."""
        if self.path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.server.reload(body["kwargs"]["weights_path"])
            self._answer({"results": [None]})
        elif self.path.partition("?")[0] in ("/reset_prefix_cache", "/sleep", "/wake_up"):
            self.server.calls.append(self.path)
            self._answer({"success": True})
        else:
            return False
        return True

    def _draw(self, body, fault):
        if not self._failed(fault):
            self._answer(self._completion(*self.server.draw(body["prompt"], body)), half=fault == "half")

    def _failed(self, fault):
        """Whether a fault has taken the place of an answer."""
        if isinstance(fault, float):
            time.sleep(fault)
        status, pause = fault if isinstance(fault, tuple) else (fault, None)
        if isinstance(status, int):
            self._answer({"error": {"message": "too busy, ask later"}}, status, pause)
            return True
        if fault == "hang up":
            self.close_connection = True
            return True
        if fault == "hang":
            time.sleep(30)
        return False

    def _score(self, body, fault):
        if self._failed(fault):
            return None
        ids = body["prompt"]
        values = [None, *self.server.logps(ids)]
        tokens = list(ids)
        if fault == "short":
            values, tokens = values[:-1], tokens[:-1]
        elif fault == "null":
            values[-1] = None
        elif fault == "other":
            tokens[1] += 1
        for _ in range(body["max_tokens"]):
            values, tokens = [*values, -1.0], [*tokens, 0]
        return self._answer(self._completion(tokens, values, "length"), half=fault == "half")

    def _completion(self, ids, values, reason):
        shown = [f"token_id:{one}" if self.server.ids_shown else self.server.tokenizer.decode([one]) for one in ids]
        text = self.server.tokenizer.decode(ids, skip_special_tokens=True)
        logprobs = {"tokens": shown, "token_logprobs": values}
        return {"choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}]}

    def _answer(self, content, status=200, pause=None, half=False):
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if pause is not None:
            self.send_header("Retry-After", str(pause))
        self.end_headers()
        if half:
            self.close_connection = True
            raw = raw[: len(raw) // 2]
        self.wfile.write(raw)
