"""From what was typed to a module: a factory, a run folder, a Hugging Face folder. Pickled code is never run."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loopscale.errors import UserError, foreign, require
from loopscale.factory import OFFERED

if TYPE_CHECKING:
    from torch import nn

_FORMS = "give package.module:factory, file.py:factory, a run folder or a local Hugging Face folder"


class Target(NamedTuple):
    """A module, the batch that came with it, and the factory that made both; None where there is none."""

    model: nn.Module
    batch: Any = None
    factory: Callable[..., Any] | None = None


def load_target(
    target: str, given: Mapping[str, int] | None = None, trusted: bool = False, code: str | None = None
) -> Target:
    """Build the module that `target` names.

    `given`: arguments for the factory; `trusted`: a Hugging Face model may bring code. `code`: the
    factory of the user model that a run folder trained, which runs only when it is named.
    The factory runs at torch's seed 0, in a fork of the random state.

    Raises `UserError`, one sentence, when it cannot be built, or nothing takes what is given.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = _made(target, given or {}, trusted, code)
    return Target(*made) if isinstance(made, tuple) else Target(made)


def _made(target: str, given: Mapping[str, int], trusted: bool, code: str | None) -> Any:
    if (Path(target) / "config.toml").is_file():
        return _run(Path(target), given, code)
    if given and (target.startswith("hf://") or Path(target).is_dir()):
        raise UserError(_untaken(given, target))
    if target.startswith("hf://"):
        return _hugging_face(target.removeprefix("hf://"), trusted)
    path = Path(target)
    if path.is_dir():
        return _folder(path, trusted)
    if path.is_file():
        return _file(path)
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UserError(f"there is no {target!r}: {_FORMS}")
    return _built(target, given)


def read_weights(path: Path) -> dict[str, Any]:
    """Read a state dict from a safetensors or torch file, without running pickled code; raises `UserError` otherwise."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: name the file of a state dict")
    found = _unpickled(path, "weights", "save model.state_dict()")
    if isinstance(found, dict) and isinstance(found.get("state_dict", found.get("model")), dict):
        found = found.get("state_dict", found.get("model"))
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a state dict: save model.state_dict()")
    return found


def read_tensor(path: Path) -> Any:
    """Read tokens of shape (rows, length) from a torch file, without running pickled code; raises `UserError` otherwise."""
    import torch

    found = _unpickled(path, "a tensor", "save the token tensor alone")
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        raise UserError(f"{path} must hold one tensor of tokens, rows by length")
    return found


def _unpickled(path: Path, what: str, fix: str) -> Any:
    """Read a torch or safetensors file in which only `what` may be."""
    import torch

    with foreign(f"{path} cannot be read as {what}"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(f"{path} is a pickle of more than {what} and is refused: {fix}") from None


def _file(path: Path) -> nn.Module:
    if path.suffix == ".py":
        raise UserError(f"{path} names no model: write {path}:factory")
    if path.suffix == ".toml":
        raise UserError(f"{path} is a config and no model: train it, and name the folder of its run")
    read_weights(path)
    raise UserError(f"{path} holds weights and no model: name the factory as TARGET and pass --weights {path}")


def _folder(path: Path, trusted: bool) -> nn.Module:
    if (path / "config.json").is_file():
        return _hugging_face(str(path), trusted)
    raise UserError(f"{path} has neither config.toml (a run) nor config.json (a Hugging Face model): {_FORMS}")


def _run(path: Path, given: Mapping[str, int], code: str | None) -> Any:
    from loopscale.cli.sentence import warn
    from loopscale.train.load_model import load_model

    if given.keys() - {"loops"}:
        raise UserError(_untaken(given, str(path)))
    trained = load_model(path, warn, untrained=True, model=code, loops=given.get("loops"))
    if trained.user is None or trained.user.make_batch is None:
        return trained.model
    return trained.model, _forward_batch(trained.model, trained.user.batch(batch_size=2))


def _hugging_face(name: str, trusted: bool) -> nn.Module:
    """Load a model; one that brings its own code is refused unless `trusted`, without asking or running any."""
    from loopscale.adapt import restore
    from loopscale.speaker import unrestored

    auto = require("transformers", "hf")
    local = Path(name).is_dir()
    if local and not trusted and b'"auto_map"' in (Path(name) / "config.json").read_bytes():
        raise UserError(f"{name} brings its own code (auto_map): read it, then add --trust-remote-code to run it")
    with foreign(f"cannot load the Hugging Face model {name}"):
        config = auto.AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=trusted)
        kind = getattr(auto, (getattr(config, "architectures", None) or ["AutoModel"])[0], auto.AutoModel)
        if local and not list(Path(name).glob("*.safetensors*")) and not list(Path(name).glob("*.bin*")):
            made: nn.Module = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
            return made
        loaded: nn.Module = kind.from_pretrained(name, local_files_only=local, trust_remote_code=trusted)
    if unrestored(loaded):
        restore(loaded)
    return loaded


def _built(target: str, given: Mapping[str, int]) -> Any:
    from torch import nn

    from loopscale.train.place import load_name

    factory, source = load_name(target, _FORMS)
    if isinstance(factory, nn.Module):
        if given:
            raise UserError(_untaken(given, target))
        return factory
    if not callable(factory):
        raise UserError(f"{target} is a {type(factory).__name__}: name a function that returns a torch.nn.Module")
    parameters = _parameters(factory)
    if not given.keys() <= parameters.keys():
        raise UserError(_untaken(given, target))
    needed = [name for name, demanded in parameters.items() if demanded and name not in given]
    if needed and "loops" in parameters and {*needed, *given} <= {*OFFERED.split(", ")}:
        from loopscale.train import user_model

        sizes: dict[str, Any] = dict(given)
        model = user_model(target, vocab_size=256, **sizes).model
        return model, _batch_beside(source, model, target)
    if needed:
        raise UserError(
            f"{target} needs arguments ({', '.join(needed)}): name a function that takes none, or loops alone with --loops"
        )
    with foreign(f"{target} raised"):
        made = factory(**given)
    again = partial(factory, **given) if given else factory
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return *made, again
    if not isinstance(made, nn.Module):
        raise UserError(f"{target} returned a {type(made).__name__}: it must return a torch.nn.Module")
    return made, _batch_beside(source, made, target), again


def _batch_beside(source: Any, model: nn.Module, target: str) -> Any:
    """Give the first batch of the `make_batch` beside a factory, or None; of (inputs, targets) what the model takes.

    Raises `UserError` for whatever `make_batch` does wrong.
    """
    make = getattr(source, "make_batch", None)
    if not callable(make):
        return None
    with foreign(f"make_batch beside {target} raised"):
        batch = make("train", 0, 0, 2) if any(_parameters(make).values()) else make()
    return _forward_batch(model, batch)


def _forward_batch(model: nn.Module, batch: Any) -> Any:
    """Give what the model's forward takes of a batch: all of it, or the first of (inputs, targets)."""
    from loopscale.probe import prepare, untouched

    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        try:
            with untouched(model):
                prepare(model, batch)
        except UserError:  # inputs and targets, as training has them
            return batch[0]
    return batch


def _parameters(factory: Any) -> dict[str, bool]:
    """Give the arguments that it names, and whether each must be given."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.default is p.empty for p in parameters if p.kind not in variadic}


def _untaken(given: Mapping[str, int], target: str) -> str:
    name, loops = next(iter(given.items()))
    return (
        f"--loops {loops} goes to a factory's argument {name!r} and {target} takes none: write a factory that does, "
        "def make(loops): return Model(...), or name its argument with --loops-arg"
    )
