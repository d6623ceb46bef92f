"""What the benchmarks share: a tokenizer, a model of 10 M parameters, pairs, memory, and where results go."""

import json
import os
import platform
import subprocess
import threading
import time
from pathlib import Path

DEFAULT_DATA = Path(__file__).parents[2].parent / "shared/data/ultrafeedback-sample"
VOCABULARY = 4096


def texts(folder):
    """Rows with prompt, chosen and rejected, from the train*.jsonl of a folder."""
    files = sorted(Path(folder).glob("train*.jsonl"))
    if not files:
        raise SystemExit(f"{folder} holds no train*.jsonl: give --data FOLDER")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def make_tokenizer(folder):
    """A byte-level BPE of 4,096 tokens trained on the very texts: about as many tokens as a large one would give."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    rows = texts(folder)
    special = ["<|pad|>", "<|end|>"]
    bpe.train_from_iterator((r["chosen"] for r in rows), VOCABULARY, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<|pad|>", eos_token="<|end|>")


def load_tokenizer(folder):
    """The tokenizer saved beside the model."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_model(folder, tokenizer):
    """A random Qwen2 of 10 M parameters (hidden 320, 6 layers, 4,096 ids), saved; returns its folder."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def equal_pairs(count, prompt, response):
    """Random pairs, every prompt and every response of one length."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (count, prompt + 2 * response), generator=generator).tolist()
    return [
        (tuple(row[:prompt]), tuple(row[prompt : prompt + response]), tuple(row[prompt + response :])) for row in ids
    ]


def real_pairs(folder, tokenizer, count, longest_prompt, longest_response):
    """The first pairs of the sample whose prompt fits, responses with their end token, cut to a length."""
    pairs = []
    for row in texts(folder):
        prompt = tuple(tokenizer(row["prompt"])["input_ids"])
        both = [
            tuple([*tokenizer(row[name])["input_ids"], tokenizer.eos_token_id][:longest_response])
            for name in ("chosen", "rejected")
        ]
        if 0 < len(prompt) <= longest_prompt:
            pairs.append((prompt, *both))
        if len(pairs) == count:
            return pairs
    raise SystemExit(f"{folder} has only {len(pairs)} pairs that fit")


class PeakMemory:
    """The most resident memory of this process over what it had at the start, in MiB, sampled every 5 ms."""

    def __init__(self):
        self.start = self.peak = self._resident()
        self._going = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self):
        """MiB over the start."""
        self._going = False
        self._thread.join()
        return (self.peak - self.start) / 2**20

    def _watch(self):
        while self._going:
            self.peak = max(self.peak, self._resident())
            time.sleep(0.005)

    @staticmethod
    def _resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def machine(threads):
    """Hardware, versions and commit, as fields and as one sentence."""
    import torch
    import transformers

    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        cpu = names[0] if names else cpu
    facts = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }
    facts["sentence"] = (
        f"{facts['date']}, commit {commit}, {cpu}, {facts['cores']} cores, {threads} thread(s), load average "
        f"{facts['load_average']:.1f}, Python {facts['python']}, torch {facts['torch']}, "
        f"transformers {facts['transformers']}, float32."
    )
    return facts


def write(name, results, markdown):
    """Keep results as JSON and as Markdown beside the benchmarks."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown)
    print(markdown)
