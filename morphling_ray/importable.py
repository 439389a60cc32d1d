"""Finds the name by which another process can import an object that a caller has in hand."""

import builtins
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from morphling_ray.errors import InputError


def name_of(thing: object, argument: str) -> str:
    """`module:attribute`, or `FILE.py:attribute` where the module's folder is not the current one.

    Replicas import an application, and load drivers a function, in processes of their own: nothing is pickled, so that
    what was measured is what a Serve config can name.

    Args:
        thing: It must be a global variable of a module, or of the script that runs.
        argument: What it was given for; for the message.

    Raises:
        InputError: No module has it, or not one that can be imported again.
    """
    found = sorted(_places(thing), key=lambda place: (place[0].__name__ == "__main__", place[1].startswith("_")))
    if not found:
        raise InputError(
            f"{argument}: no module has this {type(thing).__name__} as a global variable, so that replicas could not "
            f"import it; write `{argument} = ...` at the top level of a module, or give `module:{argument}` as a text"
        )
    module, attribute = found[0]
    if module.__name__ == "__main__":
        return f"{_main(module, argument)}:{attribute}"
    return f"{_module(module)}:{attribute}"


def _places(thing: object) -> Iterator[tuple[ModuleType, str]]:
    for name, module in list(sys.modules.items()):
        # `_` of the builtins is what an interactive interpreter showed last.
        if isinstance(module, ModuleType) and module is not builtins and module.__name__ == name:
            for attribute, value in list(vars(module).items()):
                if value is thing:
                    yield module, attribute


def _module(module: ModuleType) -> str:
    name, file = module.__name__, getattr(module, "__file__", None)
    if "." in name or hasattr(module, "__path__") or file is None or "site-packages" in Path(file).parts:
        return name
    folder = Path(file).resolve().parent
    return name if folder == Path.cwd().resolve() or Path(file).stem != name else str(folder / f"{name}.py")


def _main(module: ModuleType, argument: str) -> str:
    """The script that runs, as a module."""
    spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
    if spec is not None and spec.name != "__main__":  # python -m
        return str(spec.name)
    if file is None or not os.path.isfile(file):
        raise InputError(
            f"{argument}: it is defined in a notebook or an interactive session, which replicas cannot import; write "
            f"that cell to a file (its first line: %%writefile my_app.py), then `from my_app import {argument}`"
        )
    path = Path(file).resolve()
    if path.suffix != ".py" or "." in path.stem:
        raise InputError(f"{argument}: {path.name} cannot be imported as a module; give it a name such as my_app.py")
    return str(path)
