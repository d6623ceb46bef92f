"""References that are adapters of one base model, which is in memory once for all of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from multiref_cli.config import schema
from multiref_cli.errors import RequestError
from multiref_cli.models.decoder import Adapted
from multiref_cli.models.files import resolve
from multiref_cli.models.load import check_adapter, load_causal_lm, require_peft
from multiref_cli.types import Device

Opener = Callable[[], Any]


class SharedBase:
    """A base with the adapters of several references; opened by whoever asks first, kept while anybody holds it."""

    def __init__(self, specs: Sequence[schema.ReferenceSpec], device: Device, dtype: str) -> None:
        self.specs, self.device, self.dtype = list(specs), device, dtype
        self._views: dict[int, Any] = {}

    def view(self, number: int) -> Any:
        """The model as reference `number` sees it, for `token_logps` and the like.

        Raises:
            RequestError: see `load_causal_lm`; no peft.
        """
        if number not in self._views:
            self._views = dict(enumerate(self._open()))
        return self._views.pop(number)

    def _open(self) -> list[Any]:
        first = self.specs[0]
        bare = schema.Model(first.path, first.revision, first.dtype, trust_remote_code=first.trust_remote_code)
        model: Any = load_causal_lm(bare, self.device, self.dtype)
        folders = list(dict.fromkeys(spec.adapter for spec in self.specs if spec.adapter))
        if not folders:
            return [model] * len(self.specs)
        names = {folder: f"adapter_{number}" for number, folder in enumerate(folders)}
        (first_folder, first_name), *others = names.items()
        try:
            model = require_peft().PeftModel.from_pretrained(model, str(resolve(first_folder)), adapter_name=first_name)
            for folder, name in others:
                model.load_adapter(str(resolve(folder)), adapter_name=name)
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise RequestError(f"an adapter of {first.path} does not fit its model: {error}.") from error
        for folder, name in names.items():
            check_adapter(model, resolve(folder), name)
        model = model.to(self.device).eval().requires_grad_(False)
        return [Adapted(model, names[spec.adapter] if spec.adapter else None) for spec in self.specs]


def shared_openers(specs: Sequence[schema.ReferenceSpec], device: Device, dtype: str) -> list[Opener | None]:
    """For each reference how to open it where it shares a base with another one, else None.

    Args:
        specs: of the config.
        device: torch device of all.
        dtype: parameter type of those that name none.
    """
    bases: dict[tuple[Any, ...], list[int]] = {}
    for index, spec in enumerate(specs):
        if spec.quantization is not None:  # its adapter is merged before its weights lose their bits
            continue
        key = (spec.path, spec.revision, spec.dtype or dtype, spec.trust_remote_code)
        bases.setdefault(key, []).append(index)
    openers: list[Opener | None] = [None] * len(specs)
    for (*_, kind, _), members in bases.items():
        if len(members) > 1:
            base = SharedBase([specs[index] for index in members], device, kind)
            for number, index in enumerate(members):
                openers[index] = partial(base.view, number)
    return openers
