"""The engine that a rollout config names, made and checked."""

from inspect import signature

from multiref_cli.config.schema import Rollout
from multiref_cli.errors import RequestError
from multiref_cli.rollouts.engine import Engine
from multiref_cli.rollouts.transformers_engine import TransformersEngine
from multiref_cli.types import LanguageModel


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


def build_engine(
    rollout: Rollout, model: LanguageModel, pad_id: int, policy_path: str, vocabulary: int | None = None
) -> Engine:
    """The engine that a rollout config names.

    Args:
        rollout: the config; `options` go to the engine's constructor.
        model: the policy being trained.
        pad_id: any valid token id, used where nothing is read.
        policy_path: folder or Hub id that a separate engine loads its architecture and tokenizer from.
        vocabulary: ids that may be sampled; None: the whole head.

    Raises:
        RequestError: an unknown engine, an option that it does not have, or vLLM not installed.
    """
    try:
        if rollout.engine == "transformers":
            return TransformersEngine(model, pad_id, rollout.batch_size, vocabulary, **rollout.options)
        if rollout.engine == "vllm":
            from multiref_cli.rollouts.vllm_engine import VllmEngine

            return VllmEngine(model, policy_path, rollout.batch_size, vocabulary, **rollout.options)
    except TypeError as error:
        raise RequestError(f"rollout.options do not fit engine {rollout.engine}: {error}.") from error
    raise RequestError(f"rollout.engine={rollout.engine} is unknown: use transformers or vllm.")
