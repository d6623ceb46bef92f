"""The engine that a rollout config names, made and checked."""

from importlib.util import find_spec
from inspect import signature
from pathlib import Path

from multiref_cli.config.schema import Rollout
from multiref_cli.errors import RequestError
from multiref_cli.rollouts.engine import Engine
from multiref_cli.rollouts.handoff import Handoff
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.types import LanguageModel, Tokenizer

# Tokens of a response from which on another engine is worth a word.
_LONG = 256


def check_engine(rollout: Rollout) -> None:
    """Refuse options that the engine of a rollout config does not take; nothing is loaded.

    Raises:
        RequestError: naming the option and what the engine takes. Options of vLLM are vLLM's own to refuse.
    """
    if not rollout.options or rollout.engine != "transformers":
        return
    given = ("self", "model", "pad_id", "batch_size", "vocabulary")
    known = [name for name in signature(TransformersEngine.__init__).parameters if name not in given]
    unknown = [name for name in rollout.options if name not in known]
    if unknown:
        raise RequestError(
            f"rollout.options.{unknown[0]} is unknown to engine transformers; it takes {', '.join(known)}."
        )


def words_on(rollout: Rollout, device: str) -> list[str]:
    """What a run should say of its engine before it begins: what it waits for, and vLLM where it would be faster.

    The built-in engine starts every operation of every token anew, which on a GPU takes longer than the operation.
    """
    if rollout.starts_server:
        return ["the first rollout waits for the vLLM server to start: a minute, more on a busy machine"]
    own = rollout.engine == "transformers" and not rollout.options.get("cuda_graphs")
    if not own or not device.startswith("cuda") or rollout.max_new_tokens < _LONG or find_spec("vllm") is None:
        return []
    return [
        f"responses of up to {rollout.max_new_tokens} tokens are sampled by the built-in engine, though vLLM is "
        "installed: --dry-run says what rollout=vllm would take"
    ]


def build_engine(
    rollout: Rollout,
    model: LanguageModel,
    pad_id: int,
    vocabulary: int | None = None,
    tokenizer: Tokenizer | None = None,
    place: Path = Path(),
) -> Engine:
    """The engine that a rollout config names; called in the precision that the policy computes in.

    Args:
        rollout: the config; `options` go to the engine's constructor.
        model: the policy being trained.
        pad_id: any valid token id, used where nothing is read.
        vocabulary: ids that may be sampled; None: the whole head.
        tokenizer: of the policy, for an engine that opens a folder of its own.
        place: where such folders lie.

    Raises:
        RequestError: an unknown engine, an option that it does not have, or vLLM not installed.
    """
    try:
        if rollout.engine == "transformers":
            return TransformersEngine(model, pad_id, rollout.batch_size, vocabulary, **rollout.options)
        if rollout.engine == "vllm":
            return _vllm(rollout, Handoff(model, tokenizer, vocabulary), place)
    except TypeError as error:
        raise RequestError(f"rollout.options do not fit engine {rollout.engine}: {error}.") from error
    raise RequestError(f"rollout.engine={rollout.engine} is unknown: use transformers or vllm.")


def _vllm(rollout: Rollout, policy: Handoff, place: Path) -> Engine:
    if rollout.server is not None:
        from multiref_cli.rollouts.vllm_server import VllmServer

        return VllmServer(policy, rollout, place)
    from multiref_cli.rollouts.vllm_engine import VllmEngine

    return VllmEngine(policy, place, rollout.batch_size, **rollout.options)
