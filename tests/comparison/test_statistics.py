from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from experiments.comparison.groups import groups_of
from experiments.comparison.pairs import bootstrap, paired
from experiments.comparison.results import Results, Run
from experiments.comparison.statistics import Reach, Summary, calibration, samples_to
from experiments.comparison.table import report
from morphling_ray.errors import InputError


def run(
    quality: Sequence[float],
    *,
    searcher: str = "a",
    task: str = "t",
    seed: int = 0,
    objective: str = "o",
    sure: Sequence[float | None] | None = None,
    train_s: float = 0.0,
    suggest_ms: Sequence[float] = (2.0,),
) -> Run:
    """A run whose clear optimum is 0.8 of the best, and that spends 7 probes a sample."""
    return Run(
        dataset="d",
        objective=objective,
        searcher=searcher,
        variant="",
        task=task,
        family=task,
        seed=seed,
        quality=quality,
        quality_clear=[q / 0.8 for q in quality],
        probes=[7 * n for n in range(1, len(quality) + 1)],
        suggest_ms=suggest_ms,
        recommend_ms=(),
        train_s=train_s,
        train_tasks=0,
        proposed=(),
        recommended=(),
        p_near_best=sure if sure is not None else [None] * len(quality),
        code="",
    )


def results(runs: Sequence[Run], name: str = "x.json", **settings: object) -> Results:
    meta = {"settings": {"budget": 5, **settings}, "searchers": list(dict.fromkeys(r.searcher for r in runs))}
    return Results(Path(name), meta, {r.key: r for r in runs})


def test_samples_to() -> None:
    """Fails if counting starts at 0, the last instead of the first time counts, or equality does not."""
    assert samples_to([0.1, 0.95, 0.5, 0.99], 0.95) == 2
    assert samples_to([0.95], 0.95) == 1
    assert samples_to([0.1, 0.2], 0.95) == 3


def test_reach_by_hand() -> None:
    """Fails if nine in ten are taken for there before they are, or a run that never arrives is left out."""
    counts = [1, 2, 3, 4, 5, 6, 7, 8, 9, 31]
    assert Reach.of(counts, 30) == Reach(median=5.5, p90=9, budget=30)
    assert Reach.of([*counts, 31], 30) == Reach(median=6, p90=31, budget=30)
    for tens in range(1, 60):  # 0.9 times a whole number must not be a hair too much
        assert Reach.of([*range(9 * tens), *[999] * tens], 600).p90 == 9 * tens - 1


def test_summary_by_hand() -> None:
    """Fails if clear and raw are mixed up, a threshold is wrong, or an average is of something else."""
    runs = [
        run([0.0, 0.73, 0.77, 0.90, 0.96], train_s=3.0, suggest_ms=[1, 2]),  # clear: 0, .91, .96, 1.1, 1.2
        run([0.5, 0.50, 0.50, 0.76, 0.76], task="u", train_s=5.0, suggest_ms=[9]),  # clear .95 at 4
        run([0.0, 0.00, 0.00, 0.00, 0.00], task="v", train_s=5.0, suggest_ms=[]),
    ]
    found = Summary.of(runs)
    assert found.label == "a"
    assert found.runs == 3
    assert (found.clear5.median, found.clear5.p90) == (4, 6)
    assert (found.raw5.median, found.raw5.p90) == (6, 6)
    assert (found.clear10.median, found.clear10.p90) == (4, 6)
    assert found.quality_at == {3: pytest.approx(1.27 / 3), 5: pytest.approx(1.72 / 3)}
    assert found.probes == 28
    assert found.suggest_ms == 2
    assert found.train_s == 5
    assert np.isinf(Summary.of(runs[1:]).probes)  # one of two gets there: not more than half
    assert Summary.of([run([1.0])]).train_s is None


def test_paired_by_hand() -> None:
    """Fails if a difference has the wrong sign, unpaired runs count, or "never" is not budget + 1."""
    first = [
        run([0.9, 0.9, 0.9], task="t"),  # reaches at 1
        run([0.0, 0.8, 0.8], task="u"),  # at 2
        run([0.0, 0.0, 0.0], task="v"),  # never: 4
        run([0.0, 0.0, 0.0], task="alone"),
    ]
    other = [
        run([0.0, 0.0, 0.8], task="t", searcher="b"),  # at 3
        run([0.0, 0.0, 0.0], task="u", searcher="b"),  # never: 4
        run([0.8, 0.0, 0.9], task="v", searcher="b"),  # at 1
        run([0.8, 0.0, 0.9], task="v", searcher="b", seed=7),
    ]
    found = paired(first, other)
    assert found is not None
    assert (found.label, found.against, found.runs, found.tasks) == ("a", "b", 3, 3)
    assert found.samples.value == pytest.approx((2 + 2 - 3) / 3)
    assert found.ratio.value == pytest.approx((3 * 2 * 0.25) ** (1 / 3))
    assert found.median_ratio.value == pytest.approx(3 / 2)
    assert found.quality == {3: found.quality[3]}
    assert found.quality[3].value == pytest.approx((0.1 + 0.8 - 0.9) / 3)
    assert (found.better, found.worse) == (2, 1)
    assert found.samples.low == pytest.approx(-3)  # three tasks: all three draws may be the worst
    assert found.samples.high == pytest.approx(2)
    assert paired(first[3:], other) is None


def test_the_bootstrap_draws_tasks_not_runs() -> None:
    """Fails if runs are drawn one by one: twenty runs of each of two unlike tasks would then seem to tell a lot."""
    values = np.repeat([0.0, 1.0], 20)[:, None]
    found = bootstrap(values, ["t"] * 20 + ["u"] * 20, lambda v: np.nanmean(v, axis=(1, 2)))
    assert (found.low, found.value, found.high) == (0, 0.5, 1)
    alone = bootstrap(values, [str(i) for i in range(40)], lambda v: np.nanmean(v, axis=(1, 2)))
    assert 0.3 < alone.low < 0.45
    assert 0.55 < alone.high < 0.7


def test_the_bootstrap_weighs_runs_of_unequal_tasks() -> None:
    """Fails if padding of a task with fewer runs counts as a value, here or in what is paired."""
    found = bootstrap(np.array([[4.0], [4.0], [1.0]]), ["t", "t", "u"], lambda v: np.nanmean(v, axis=(1, 2)))
    assert (found.low, found.value, found.high) == (1, 3, 4)
    at = [("t", 0), ("t", 1), ("u", 0)]
    first = [run([0.0, 0.8, 0.8], task=task, seed=seed) for task, seed in at]
    pair = paired(first, [run([0.0, 0.0, 0.8], task=task, seed=seed, searcher="b") for task, seed in at])
    assert pair is not None
    for estimate, value in ((pair.samples, 1.0), (pair.ratio, 1.5), (pair.median_ratio, 1.5)):
        assert (estimate.low, estimate.value, estimate.high) == pytest.approx((value, value, value))


def test_calibration_by_hand() -> None:
    """Fails if a recommendation is judged at another sample than where the search stops, or None stops or drops it."""
    runs = [
        run([0.1] * 4 + [0.8, 0.1], sure=[None, 0.95, 0.9, 0.91, 0.9, 0.2]),  # stops at 5, right
        run([0.8] * 5 + [0.1], sure=[0.1, 0.89, 0.90, 0.99, 0.9, 0.9], task="u"),  # stops at 6, wrong
        run([0.8] * 6, sure=[0.95, 0.95, 0.95, 0.1, 0.95, 0.95], task="v"),  # never long enough
        run([0.0] * 6, task="w"),  # never has anything to recommend
    ]
    found = calibration(runs)
    assert found is not None
    assert (found.runs, found.stopped, found.right, found.samples) == (4, 0.5, 0.5, 5.5)
    assert calibration(runs[3:]) is None
    never = calibration(runs[2:3])
    assert never is not None
    assert never.stopped == 0
    assert np.isnan(never.right)


def test_searchers_are_compared_on_tasks_that_all_have_run() -> None:
    """Fails if a searcher that ran on easy tasks only stands beside one that ran on all, or its row is dropped."""
    everywhere = [run([0.1] * 5, searcher=s, task=t) for s in ("a", "b") for t in "tuv"]
    slow = [run([0.9] * 5, searcher="slow", task="u")]
    groups = groups_of([results(everywhere), results(slow, "more.json")])
    assert [(list(g.searchers), {r.task for r in g.searchers["a"]}) for g in groups] == [
        (["a", "b"], {"t", "u", "v"}),
        (["a", "b", "slow"], {"u"}),
    ]
    assert groups[0].extent == "3 runs each (3 tasks, 1 seed)"


def test_a_part_of_a_data_set_says_so() -> None:
    """Fails if a subset passes for the whole set, or a task that cannot be searched makes the whole one a part."""
    runs = [run([0.1] * 5, task=t) for t in "tu"]
    for left_out, extent in (([], "2 runs each (2 of 3 tasks, 1 seed)"), (["v"], "2 runs each (2 tasks, 1 seed)")):
        file = results(runs)
        file.meta |= {"datasets": {"d": {"data": "1", "tasks": 3}}, "left_out": {"d, o": left_out}}
        (group,) = groups_of([file])
        assert group.extent == extent
        assert ("Searched: t, u." in report([group])) == (not left_out)
        assert ("keeps the bounds: v." in report([group])) == bool(left_out)


def test_other_data_under_the_same_name() -> None:
    """Fails if runs on two versions of a data set are put into one table."""
    files = [results([run([0.1] * 5)], f"{data}.json") for data in "12"]
    for file in files:
        file.meta["datasets"] = {"d": {"data": file.path.stem}}
    with pytest.raises(InputError, match=r"2\.json: d has other data"):
        groups_of(files)


def test_other_conditions_are_another_table_and_other_priors_are_not() -> None:
    """Fails if runs with other noise are compared, or a shuffled prior hides the ordinary one."""
    plain, noisy = run([0.1] * 5), run([0.2] * 5)
    shuffled = Run.from_dict({**plain.to_dict(), "variant": "shuffled prior", "quality": [0.3] * 5})
    groups = groups_of([results([plain], noise=0.03), results([noisy], noise=0.1), results([shuffled], noise=0.03)])
    assert [list(g.searchers) for g in groups] == [["a", "a (shuffled prior)"], ["a"]]
    assert [g.searchers["a"][0].quality[0] for g in groups] == [0.1, 0.2]


def test_objectives_of_a_set_are_pooled() -> None:
    """Fails if the pooled rows lack an objective, or hold a searcher that ran on one of them only."""
    runs = [run([0.1] * 5, searcher=s, objective=o) for s, o in (("a", "o"), ("a", "p"), ("b", "o"))]
    groups = groups_of([results(runs)])
    assert [(g.objective, list(g.searchers)) for g in groups] == [("o", ["a", "b"]), ("p", ["a"]), ("o + p", ["a"])]
    assert groups[-1].extent == "2 runs each (1 task, 1 seed, 2 objectives)"
    pair = paired(groups[-1].searchers["a"], groups[-1].searchers["a"])
    assert pair is not None
    assert pair.tasks == 1  # one cluster, although two runs


def test_the_table() -> None:
    """Fails if a row, the budget's sign or a column is lost, or rows are in another order than was asked for."""
    runs = [
        *(run([0.1, 0.9, 0.9, 0.9, 0.9], searcher="b", task=t, sure=[0.0, 0.95, 0.95, 0.95, 1.0]) for t in "tu"),
        *(run([0.1] * 5, searcher="a", task=t) for t in "tu"),
    ]
    text = report(groups_of([results(runs, noise=0.03, hold_out="task")]), against="a")
    assert "### d, o\n\n2 runs each (2 tasks, 1 seed); budget 5 samples, 3 % noise, single tasks held out." in text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert rows[0] == ["searcher", "runs", "5 % clear", "5 % raw", "10 % clear", "q@3", "q@5", "probes", "ms", "train"]
    assert rows[2] == ["b", "2", "2 / 2", ">5 / >5", "2 / 2", "0.900", "0.900", "14", "2.0", "–"]
    assert rows[3] == ["a", "2", ">5 / >5", ">5 / >5", ">5 / >5", "0.100", "0.100", "not half", "2.0", "–"]
    assert rows[6][0] == "b"
    assert rows[6][-4:] == ["+4.0 [+4.0, +4.0]", "3.00 [3.00, 3.00]", "3.00 [3.00, 3.00]", "2 / 0 of 2"]
    assert rows[9] == ["b", "2", "100 %", "5", "100 %", "0 %"]
