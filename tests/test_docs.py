"""The pages that people read are true as far as a machine can tell: code runs, commands parse, links lead somewhere."""

import argparse
import ast
import csv
import functools
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import pages
import pytest
import yaml
from pages import PAGES, ROOT, Block

from docs.generate import generated
from morphling_ray.__main__ import VERBS
from morphling_ray.experiment import Experiment, read_experiment
from morphling_ray.search import SEARCHERS
from morphling_ray.surface import load_surfaces

# Other people's, taken as they are.
TOOLS = {"cd", "cp", "curl", "export", "git", "grafana-server", "kubectl", "pip", "ray", "serve", "tensorboard"}
TIMEOUT_S = 150.0


def test_every_block_says_what_it_is() -> None:
    """Fails if a block is of no kind that a test knows, so that nobody would notice when it goes stale."""
    unknown = [
        f"{pages.name(p)}:{b.line} {b.kind!r}" for p in PAGES for b in pages.blocks(p) if b.kind not in pages.KINDS
    ]
    assert not unknown


def run_blocks(page: Path, folder: Path, *, ray: bool) -> None:
    """Runs a page's Python in one process, after writing all files that it shows."""
    lines = []
    for block in pages.blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text)
        if block.kind == "python" and (ray or not block.starts_ray):
            code = block.text
            if block.file is not None and block.starts_ray:
                code = f"import subprocess, sys\nsubprocess.run([sys.executable, {block.file!r}], check=True)"
            elif block.file is not None:
                code = f"import {Path(block.file).stem}"
            # Line numbers of a traceback are those of the page.
            lines.append(f"exec(compile({chr(10) * block.line + code!r}, {pages.name(page)!r}, 'exec'))")
    (folder / "all_blocks.py").write_text("\n".join(lines))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # By a path without a space: a cluster that Ray starts by itself has no workers otherwise, see `quoted_python`.
    (folder / "environment").symlink_to(sys.prefix)
    process = subprocess.Popen(
        [folder / "environment" / "bin" / "python", "all_blocks.py"],
        cwd=folder,
        # A cluster that somebody left behind on this machine is not the reader's.
        env={**kept, "PYTHONPATH": str(ROOT), "HOME": str(folder), "RAY_ADDRESS": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, out[-2000:] + err[-4000:]


def with_python(*, ray: bool) -> list[Path]:
    """Pages with Python that starts Ray, or with some that does not."""
    return [p for p in PAGES if any(b.starts_ray == ray for b in pages.blocks(p, "python"))]


@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize("page", with_python(ray=False), ids=pages.name)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    """Fails if a page shows code that does not work."""
    run_blocks(page, tmp_path, ray=False)


@pytest.mark.serve
@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize("page", with_python(ray=True), ids=pages.name)
def test_python_that_starts_ray_runs(page: Path, tmp_path: Path) -> None:
    """Fails if a page shows code for Ray that does not work."""
    run_blocks(page, tmp_path, ray=True)


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_data_is_read(page: Path, tmp_path: Path) -> None:
    """Fails if a page shows a file that its own reader refuses: an experiment, a Serve config, surfaces, requests."""
    written = pages.blocks(page, "yaml", "json", "jsonl", "csv")
    for block in written:
        (tmp_path / (block.file or f"line_{block.line}.{block.kind}")).write_text(block.text)
    for block in written:
        file = tmp_path / (block.file or f"line_{block.line}.{block.kind}")
        if block.kind == "json":
            json.loads(block.text)
        elif block.kind == "jsonl":
            assert [json.loads(line) for line in block.text.splitlines()]
        elif block.kind == "csv":
            assert len({len(row) for row in csv.reader(io.StringIO(block.text))}) == 1
        else:
            read_yaml(file)


def read_yaml(file: Path) -> None:
    """Reads a file by what its keys say that it is."""
    content = yaml.safe_load(file.read_text())
    if "applications" in content:
        from ray.serve.schema import ServeDeploySchema

        ServeDeploySchema.model_validate(content)
    elif "table" in content:
        assert load_surfaces(file.parent).surfaces
    elif {"base", "cpu_core"} <= set(content):
        from morphling_ray.objective import Prices

        Prices.load(str(file))
    else:
        Experiment(**read_experiment(file))


class Parsed(Exception):
    """A command has taken its arguments; nothing was started."""


def parser_of(module: str, arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """A command's own parser, after it has taken the arguments, if any are given; the command ends there."""
    command = importlib.import_module(module)
    taken: list[argparse.ArgumentParser] = []
    real = argparse.ArgumentParser.parse_known_args

    def stop(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
        taken.append(parser)
        if arguments is not None and (rest := real(parser, args, namespace)[1]):
            parser.error(f"unrecognized arguments: {shlex.join(rest)}")
        raise Parsed

    def refuse(*args: Any, **more: Any) -> NoReturn:
        raise AssertionError(f"python -m {module} began before it knew its arguments")

    with pytest.MonkeyPatch.context() as patched:
        for method in ("parse_args", "parse_known_args"):
            patched.setattr(argparse.ArgumentParser, method, stop)
        patched.setattr(subprocess.Popen, "__init__", refuse)
        try:
            command.main(list(arguments or ()))
        except Parsed:
            return taken[0]
        except SystemExit as error:
            raise AssertionError(f"python -m {module} {shlex.join(arguments or ())} is refused") from error
    raise AssertionError(f"python -m {module} took no arguments")


def takes_arguments(module: str) -> bool:
    """Whether it has a parser; fails if there is no such module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
    assert spec is not None, f"{module} is no command"
    assert spec.origin is not None
    return "Parser(" in Path(spec.origin).read_text()


def command_module(module: str) -> str:
    """The module that `python -m` runs."""
    spec = importlib.util.find_spec(module)
    package = spec is not None and spec.submodule_search_locations is not None
    return f"{module}.__main__" if package else module


def check_command(words: list[str]) -> None:
    """One command of a shell, in words."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    if words[:2] == ["python", "-m"]:
        if takes_arguments(words[2]):
            parser_of(command_module(words[2]), words[3:])
        else:
            assert not words[3:], f"python -m {words[2]} takes no arguments"
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets, f"there is no make {words[1]}"
        given = [shlex.split(w.removeprefix("ARGS=")) for w in words[2:] if w.startswith("ARGS=")]
        module = {"tune": "morphling_ray.tune", "compare": "experiments.compare"}.get(words[1])
        if module is not None and given:
            parser_of(module, given[0])
    elif "/" in words[0]:
        assert os.access(ROOT / words[0], os.X_OK), f"there is no program {words[0]}"
    else:
        assert words[0] in TOOLS, f"{words[0]} is not on the list of tools"


def commands(block: Block) -> list[list[str]]:
    """The commands of a block, without redirections and comments."""
    found = []
    text = re.sub(r"^\w+=\$\(.*\)$", "", block.text, flags=re.M)  # what a command prints
    for line in text.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", "|", "&"):
                found.append(command)
                command = []
            else:
                command.append(word)
    return [[w for w in c if w not in (">", "2>")] for c in found if c]


@pytest.mark.timeout(TIMEOUT_S + 30)
@pytest.mark.parametrize("page", [p for p in PAGES if pages.blocks(p, "sh")], ids=pages.name)
def test_commands_parse(page: Path) -> None:
    """Fails if a page names a flag, a command or a target of make that is not there."""
    for block in pages.blocks(page, "sh"):
        for words in commands(block):
            check_command(words)


@pytest.mark.timeout(TIMEOUT_S + 30)  # imports them all
@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_commands_within_text_are_there(page: Path) -> None:
    """Fails if text names a module, a script or a flag that is gone. Placeholders, as in `--out DIR`, are no matter."""
    known = {flag for command in VERBS for flag in options(f"morphling_ray.{command}")}
    spans = [code.split() for code in pages.inline_code(page)]
    for words in (words for words in spans if words[:2] == ["python", "-m"] and len(words) > 2):
        if takes_arguments(words[2]):
            flags = options(command_module(words[2]))
            assert {w for w in words[3:] if w.startswith("--")} <= flags, words
            known |= flags
    for words in spans:
        if words[0].startswith("--"):
            assert words[0] in known, f"no command has {words[0]}"
        for word in words:
            if re.fullmatch(r"(experiments|benchmarks|cluster)/\S+\.(sh|py)", word):
                assert (ROOT / word).is_file(), word


@functools.cache
def options(module: str) -> set[str]:
    """The flags of a command."""
    return {flag for action in parser_of(module)._actions for flag in action.option_strings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"], ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Fails if a page points to a file, a picture or a heading that is not there."""
    for link in pages.links(page):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{link}: no such file"
        assert not anchor or anchor in pages.anchors(file), f"{link}: no such heading"


@pytest.mark.parametrize("file", generated(), ids=pages.name)
def test_what_is_generated_is_not_stale(file: Path) -> None:
    """Fails if a docstring, a public name or a setting changed and `make docs` was not run."""
    assert file.read_text() == generated()[file]


def test_every_key_is_in_the_table_with_its_default() -> None:
    """Fails if the generator leaves a setting out: it would be as stale as the page."""
    rows = re.findall(
        r"^\| `(\w+)` \| (?:`(.*?)`)? ?\| .+ \|$", (ROOT / "docs" / "experiment_file.md").read_text(), re.M
    )
    told = {name: yaml.safe_load(default or "null") for name, default in rows}
    defaults = {f.name: f.default for f in fields(Experiment) if f.default is not None and "help" in f.metadata}
    assert set(told) == set(Experiment().to_dict())
    assert {name: told[name] for name in defaults} == defaults


def test_every_searcher_is_told_of() -> None:
    """Fails if a searcher is added that no page names."""
    page = ROOT / "docs" / "searchers.md"
    assert set(SEARCHERS) <= set(pages.inline_code(page))


def test_every_page_is_linked_from_the_readme() -> None:
    """Fails if a page is written that nobody will find."""
    linked = {
        (ROOT / link.partition("#")[0]).resolve() for link in pages.links(ROOT / "README.md") if "://" not in link
    }
    assert {page for page in PAGES if page.parent.name == "docs"} <= linked


def constants() -> list[str]:
    """All texts in the package's code; of those with values in them, the parts between."""
    found = []
    for file in (ROOT / "morphling_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(" ".join(node.value.split()))
    return found


def test_messages_are_those_of_the_code() -> None:
    """Fails if troubleshooting.md quotes a message that is said otherwise by now."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"^\| (`.+?`) \|", text, re.M)
    quoted = [quote for cell in cells for quote in re.findall(r"`(.+?)`", cell)]
    parts = {part.strip() for quote in quoted for part in quote.split("...") if len(part.strip()) > 3}
    said = constants()
    assert len(parts) > 40
    assert not [part for part in parts if not any(part in text for text in said)]
