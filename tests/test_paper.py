"""The paper's evaluation: what is counted, and a reduced run of the whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.paper import beyond, charts, published, studies
from experiments.paper.__main__ import NEEDS, main
from experiments.paper.studies import TRAINING, Line
from experiments.simulator.spaces import SERVICES
from experiments.zoo.catalogue import PAPER

LINE = Line(
    space="s",
    objective="o",
    searcher="maml",
    task="t",
    family="f",
    seed=0,
    budget=30,
    better=[(2, 0.5), (5, 0.9), (9, 1.0)],
    proposed=[3, 1, 2],
    train_s=1.0,
    suggest_ms=2.0,
    data="d",
    code="c",
)


def test_models_that_are_learned_from_are_not_searched() -> None:
    """PAPER: 10 training and 32 test models on EC2, 5 and 25 services in production."""
    trained, services = TRAINING["ec2-simulated"], TRAINING["production-simulated"]
    assert (len(trained), len(PAPER) - len(trained)) == (10, 32)
    assert (len(services), len(SERVICES) - len(services)) == (5, 25)
    assert {PAPER[name].kind for name in trained} == {"image", "text"}
    assert not {"nnlm_128", "efficientnet_b5", "use_transformer"} & {*trained}, "figures 8 and 10 look at them"


def test_a_search_is_judged_by_the_best_that_it_measured() -> None:
    assert [LINE.quality(n) for n in (1, 2, 4, 5, 9, 30)] == [0.0, 0.5, 0.5, 0.9, 1.0, 1.0]
    assert [LINE.samples_to(share) for share in (0.5, 0.7, 0.9, 1.0)] == [2, 5, 5, 9]
    assert replace(LINE, better=[(2, 0.5)]).samples_to(0.7) == 31


def test_tables_hold_the_papers_figures_beside_ours() -> None:
    others = [replace(LINE, task="u", better=[(4, 1.0)]), replace(LINE, task="v", better=[(1, 0.2)])]
    rows = charts.rows_of([LINE, *others, replace(LINE, objective="another")], "s", "o")
    told = charts.samples_table(rows, [1.0], {1.0: {"maml": (18, 30)}})
    assert told.splitlines()[-1] == "| maml | 9 / >30 [18 / 30] |"
    told = charts.quality_table(rows, [10, 200], {10: {"maml": (0.995, 0.87)}})
    assert told.splitlines()[-1] == "| maml | 100.0 (20.0) [99.5 (87)] | - |"


def test_a_part_of_the_models_is_called_one() -> None:
    more = [replace(LINE, searcher="bo", task=task) for task in "tu"]
    told = charts.samples_table(charts.rows_of([LINE, *more], "s", "o"), [1.0], {})
    assert "| maml (1 of 2 models) |" in told
    assert "| bo |" in told


def test_what_learning_is_worth() -> None:
    """10 models of 24 configurations are 240 trials; 8 samples saved in each search pay after 30."""
    lines = [
        {"study": "as in the paper", "value": "10 training models", "searcher": "gp", "samples": [12, 12]},
        {"study": "configurations of each", "value": "24", "searcher": "morphling", "samples": [3, 5]},
    ]
    told = beyond.table(lines)
    assert "240 trials (50 h) pay after 30 searches, at 8.0 fewer samples each" in told
    assert "| configurations of each | 24 |  | 4 / 5 |" in told


def test_every_figure_of_the_paper_that_compares_has_its_numbers() -> None:
    for table in (*published.FIGURE_6A.values(), *published.FIGURE_6B.values(), *published.FIGURE_7.values()):
        assert set(table) == {"maml", "finetune", "vizier-transfer", "bo", "ernest"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.timeout(600)
def test_a_reduced_evaluation(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a figure cannot be made, a search is run again, or the searches of other surfaces are kept."""
    argv = ["--out", str(tmp_path), "--cache", str(cache), "--models", "1", "--processes", "1"]
    argv += ["--searchers", "morphling,maml,random"]
    figures = ["4", "6a", "6b", "7", "8", "10", "11", "overhead"]
    assert main([*figures, *argv]) == 0
    out = capsys.readouterr().out
    assert out.count("| morphling |") == 6 + 1, "6a, 6b, twice 7, twice 11, overhead"
    assert {"figure-4.png", "figure-6a.png", "figure-8.png", "figure-10.png"} <= {p.name for p in tmp_path.iterdir()}
    lines = studies.read(tmp_path / "searches.jsonl")
    assert len(lines) == 3 * 4
    assert all(not {line.task} & {*TRAINING[line.space]} for line in lines)
    assert all(line.better[-1][1] <= 1.0 for line in lines)
    found = [line for line in lines if line.searcher == "random"]
    assert all(line.samples_to(1.0) <= line.budget for line in found), "the whole space holds the optimum"

    stale = replace(lines[0], data="of another simulator", task=lines[0].task)
    others = [line for line in lines if line.key != stale.key]
    texts = [json.dumps(line.__dict__) for line in [*others, stale]]
    (tmp_path / "searches.jsonl").write_text("".join(f"{text}\n" for text in texts))
    assert main(["6b", *argv]) == 0
    again = studies.read(tmp_path / "searches.jsonl")
    assert sorted(line.key for line in again) == sorted(line.key for line in lines)
    assert all(line.data != "of another simulator" for line in again if line.key == stale.key)
    assert len([line for line in again if line in others]) == len(others)


@pytest.mark.timeout(300)
def test_what_the_paper_never_studied(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = studies.spaces(cache)["ec2-simulated"]
    path = tmp_path / "beyond.jsonl"
    for study in ("learned and searched", "maml: delta"):
        assert beyond.run(dataset, path, 1, models=1, only=study)
    told = beyond.table(beyond.read(path))
    assert "| maml: delta | 3 |" in told
    capsys.readouterr()
    assert beyond.run(dataset, path, 1, models=1, only="maml: delta")
    assert not capsys.readouterr().err, "nothing is run again"


def test_a_figure_that_the_paper_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["12"])
    assert ", ".join(NEEDS) in capsys.readouterr().err
