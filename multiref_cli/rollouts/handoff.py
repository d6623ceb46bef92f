"""What vLLM is given of a policy in training: a folder with its config and tokenizer, its weights, and a probe that
shows whether they have arrived.

The folder is written from the policy itself, so that revision, adapter, tokenizer and type are the trainer's own. It
holds no weights: whatever an update does not reach stays noise, which the probe finds before anything is sampled.
"""

import copy
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from multiref_cli.errors import RunError
from multiref_cli.files import writing
from multiref_cli.models.decoder import unwrap
from multiref_cli.models.logprobs import token_logps
from multiref_cli.models.lora import merged
from multiref_cli.models.packing import pack
from multiref_cli.models.precision import product_type
from multiref_cli.models.save import save_tokenizer
from multiref_cli.types import LanguageModel, Tokenizer

# Tokens of the probe.
_PROBE = 32
# Nats a token, root mean square over the probe, by which engine and trainer may differ: float32 rounds to 4e-6 nats,
# bfloat16 to about .04, and weights that were not taken over are whole nats away.
_NEAR = {torch.float32: 0.01, torch.float64: 0.01}
_NEAR_HALF = 0.3
# Bytes of one file of weights: what is held in main memory at once.
_FILE = 2**31


class Handoff:
    """A policy as vLLM takes it over."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer | None, vocabulary: int | None = None) -> None:
        """Takes note.

        Args:
            model: the policy in training.
            tokenizer: of the trainer; None: the engine gets token ids and needs none.
            vocabulary: ids of the tokenizer, where the head is padded beyond them.
        """
        self.model, self.tokenizer = model, tokenizer
        self.kind = product_type(next(model.parameters()))
        inner = unwrap(model)
        head = inner.get_output_embeddings()
        # vLLM on CPUs computes with a copy of the head that does not follow a tied embedding: there it gets its own.
        tied = head.weight is inner.get_input_embeddings().weight
        self.separate = tied and next(model.parameters()).device.type == "cpu"
        self._head = next(name for name, module in inner.named_modules() if module is head)
        # The largest negative bias that vLLM takes: e^-100 of the probability is left to the padding of the head.
        self.bias = {i: -100.0 for i in range(vocabulary or head.weight.shape[0], head.weight.shape[0])}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as they are now, under the names of the architecture, in the type that vLLM computes in.

        A LoRA adapter is added to what it adapts, as the trainer computes with it.

        Yields:
            (name, weight), detached; tied weights once, unless vLLM wants them apart.
        """
        inner = unwrap(self.model)
        for name, weight in merged(inner, inner.named_parameters()):
            yield name, weight.to(self.kind)
        if self.separate:
            yield f"{self._head}.weight", inner.get_output_embeddings().weight.detach().to(self.kind)

    def write_shell(self, folder: Path) -> None:
        """Write config and tokenizer, no weights.

        Raises:
            RunError: it cannot be written.
        """
        config = copy.deepcopy(unwrap(self.model).config)
        if self.separate:
            config.tie_word_embeddings = False
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            config.save_pretrained(str(folder))
            if self.tokenizer is not None:
                save_tokenizer(self.tokenizer, folder)

    def write_weights(self, folder: Path, sign: float = 1.0) -> None:
        """Write the weights as safetensors files.

        Args:
            folder: emptied of other weights first.
            sign: -1 writes the negative of every weight, which no engine can take for the policy's.

        Raises:
            RunError: they cannot be written.
        """
        from safetensors.torch import save_file

        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*.safetensors"):
                path.unlink()
            part, size, number = dict[str, Tensor](), 0, 1
            for name, weight in self.weights():
                part[name] = (sign * weight).cpu().contiguous()
                size += part[name].nbytes
                if size >= _FILE:
                    save_file(part, folder / f"model-{number:05}.safetensors", {"format": "pt"})
                    part, size, number = {}, 0, number + 1
            if part:
                save_file(part, folder / "model.safetensors", {"format": "pt"})

    def probe(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Ids to compare engine and trainer at: the first ones of some prompts, two at least."""
        ids = list(chain.from_iterable(prompts))[:_PROBE]
        return ids if len(ids) > 1 else ids * 2

    def far(self, ids: Sequence[int], logps: Sequence[float]) -> str | None:
        """How far an engine is from the policy, in words; None where they are the same up to rounding.

        Args:
            ids: T ids.
            logps: T - 1 log-probabilities in nats that the engine gives to all of them but the first.
        """
        packed = pack([list(ids[:1])], [[list(ids[1:])]], 0, False).to(next(self.model.parameters()).device)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                own = token_logps(self.model, packed).logps[0].cpu().double()
        finally:
            self.model.train(training)
        apart = float((own - torch.tensor(list(logps), dtype=torch.float64)).square().mean().sqrt())
        return None if apart <= _NEAR.get(self.kind, _NEAR_HALF) else f"{apart:.2g} nats a token off on a probe"


def new_folder(place: Path) -> Path:
    """A folder for what an engine is given, after those of processes of this machine that are gone are deleted.

    Args:
        place: where such folders lie.

    Raises:
        RunError: it cannot be written.
    """
    host = socket.gethostname()
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        for old in place.iterdir():
            name, _, process = old.name.rpartition("-")[0].rpartition("-")
            if name == host and not _runs(int(process)):  # another machine's processes are not known here
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{host}-{os.getpid()}-", dir=place))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def refuse_far(far: str | None, engine: str) -> None:
    """End a run whose engine would sample from other weights than the policy's.

    Raises:
        RunError: the engine is not the policy.
    """
    if far is not None:
        raise RunError(
            f"{engine} did not take over the policy's weights ({far}), so what it would sample is not the policy's: "
            "use rollout=transformers, or another version of vLLM."
        )
