"""Writes what follows from the code: `python -m docs.generate`, or `make docs`.

docs/api.md is the public names of the package with their docstrings, read by griffe without importing anything;
in docs/experiment_file.md it is the table of keys, between its two marks. A test fails if either is stale.
"""

import re
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import griffe

from morphling_ray.experiment import Experiment

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- keys: written by python -m docs.generate -->", "<!-- end of keys -->"
# Keys that only the file has, so that no flag's help says what they are.
FILE_ONLY = {
    "space": "what is searched: a list of values for each [knob](knobs.md) (default: from the application)",
    "constraints": "comparisons of knobs, which every configuration must satisfy",
    "descriptors": "numbers of the model, above 0 (parameters, say): which earlier models it is like",
}
NOT_SETTINGS = {"secrets"}


def main() -> int:
    """Writes the files; returns 0."""
    for path, text in generated().items():
        path.write_text(text)
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


def generated() -> dict[Path, str]:
    """Each generated file with what belongs into it."""
    page = ROOT / "docs" / "experiment_file.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        ROOT / "docs" / "api.md": api(),
        page: f"{before}{BEGIN}\n\n{keys()}\n\n{END}{after}",
    }


def keys() -> str:
    """The table of an experiment file's keys: name, default, meaning."""
    rows = ["| key | default | what it says |", "|---|---|---|"]
    for entry in fields(Experiment):
        if entry.name not in NOT_SETTINGS:
            rows.append(f"| `{entry.name}` | {_default(entry)} | {_meaning(entry)} |")
    return "\n".join(rows)


def _default(entry: "Field[Any]") -> str:
    value = entry.default if entry.default is not MISSING else None
    if value is None:
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{str(value).lower() if value is False else value}`"


def _meaning(entry: "Field[Any]") -> str:
    text = entry.metadata.get("help") or FILE_ONLY[entry.name]
    if choices := entry.metadata.get("choices"):
        text += f": {', '.join(f'`{choice}`' for choice in choices)}"
    return text.replace("%%", "%").replace("|", "\\|")


def api() -> str:
    """The reference of everything in `morphling_ray.__all__`."""
    package = _target(griffe.load("morphling_ray", search_paths=[ROOT]))
    names = [str(name) for name in package.exports or () if not str(name).startswith("__")]
    objects = {name: _target(package[name]) for name in names}
    parts = [
        "# API",
        "Everything in `morphling_ray.__all__`; `python -m docs.generate` writes this page from the docstrings. "
        "[python.md](python.md) shows how it is used.",
        "\n".join(f"* [`{name}`](#{name.lower()}): {_first_line(each)}" for name, each in objects.items()),
        *(_page(name, each) for name, each in objects.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _target(found: griffe.Object | griffe.Alias) -> griffe.Object:
    return found.final_target if isinstance(found, griffe.Alias) else found


def _first_line(each: griffe.Object) -> str:
    return each.docstring.value.split("\n\n")[0].replace("\n", " ") if each.docstring else ""


def _page(name: str, each: griffe.Object) -> str:
    parts = [f"## {name}", f"`{each.path}`", _signature(name, each), _docstring(each)]
    if isinstance(each, griffe.Class):
        parts += [_member(m) for m in each.members.values() if _is_public(m)]
    return "\n\n".join(part for part in parts if part)


def _is_public(member: griffe.Object | griffe.Alias) -> bool:
    """Methods and properties with a docstring; what its attributes are, a class says itself."""
    if member.name.startswith("_") or member.is_alias:
        return False
    return member.docstring is not None and (member.is_function or "property" in _target(member).labels)


def _member(member: griffe.Object | griffe.Alias) -> str:
    each = _target(member)
    return f"### {_owner(each)}.{each.name}\n\n" + "\n\n".join(
        part for part in (_signature(each.name, each), _docstring(each)) if part
    )


def _owner(each: griffe.Object) -> str:
    return each.parent.name if each.parent is not None else ""


def _signature(name: str, each: griffe.Object) -> str:
    if isinstance(each, griffe.Attribute):
        return f"Property, `{each.annotation}`." if each.annotation is not None else "Property."
    if isinstance(each, griffe.Class) and not each.parameters:
        values = [m.name for m in each.members.values() if m.is_attribute and not m.name.startswith("_")]
        return f"One of {', '.join(f'`{value}`' for value in values)}." if values else ""
    if not isinstance(each, (griffe.Class, griffe.Function)):
        return ""
    marks = {"async": "async ", "classmethod": "classmethod ", "staticmethod": "staticmethod "}
    prefix = "".join(text for label, text in marks.items() if label in each.labels)
    words = _parameters(each.parameters)
    returned = f" -> {each.returns}" if isinstance(each, griffe.Function) and each.returns is not None else ""
    line = f"{prefix}{name}({', '.join(words)}){returned}"
    if len(line) > 110:
        line = f"{prefix}{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){returned}"
    return f"```text\n{line}\n```"


def _parameters(parameters: griffe.Parameters) -> list[str]:
    words: list[str] = []
    for each in parameters:
        if each.name in ("self", "cls"):
            continue
        kind = each.kind
        if kind is griffe.ParameterKind.keyword_only and "*" not in words and not any(w[0] == "*" for w in words):
            words.append("*")
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind, "")
        typed = f": {each.annotation}" if each.annotation is not None else ""
        default = f" = {each.default}" if each.default is not None and not star else ""
        words.append(f"{star}{each.name}{typed}{default}")
    return words


def _docstring(each: griffe.Object) -> str:
    if each.docstring is None:
        return ""
    parts = []
    for section in each.docstring.parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.text:
            parts.append(section.value.strip())
        elif section.kind is griffe.DocstringSectionKind.returns:
            parts.append("**Returns:** " + " ".join(_flat(entry.description) for entry in section.value))
        elif isinstance(section.value, list):
            title = {"parameters": "Arguments"}.get(section.kind.value, section.kind.value.capitalize())
            lines = [f"* {_named(entry)}: {_flat(entry.description)}" for entry in section.value]
            parts.append(f"**{title}:**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _named(entry: Any) -> str:
    return f"`{getattr(entry, 'name', None) or entry.annotation}`"


def _flat(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text).strip()


if __name__ == "__main__":
    raise SystemExit(main())
