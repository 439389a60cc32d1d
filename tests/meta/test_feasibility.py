from collections.abc import Sequence

import numpy as np
import pytest

from morphling_ray.meta.feasibility import Outcomes

PLACE = np.linspace(0, 3, 31)[:, None]
BEFORE = np.linspace(0.9, 0.6, 31)


def p_feasible(before: np.ndarray, place: np.ndarray, points: Sequence[int], works: Sequence[bool]) -> np.ndarray:
    return Outcomes(place, points, works).probability(before, before[list(points)], np.arange(len(before)))


def log_evidence(before: np.ndarray, place: np.ndarray, points: Sequence[int], works: Sequence[bool]) -> float:
    return float(Outcomes(place, points, works).log_evidence(before[list(points)]))


def test_several_beliefs_at_once_are_each_by_itself() -> None:
    """Fails if what is believed before is mixed up between hypotheses."""
    before = np.stack([BEFORE, BEFORE[::-1] / 2])
    known = Outcomes(PLACE, [3, 9], [True, False])
    at = np.array([4, 20, 30])
    found = known.probability(before[:, at], before[:, [3, 9]], at)
    for each, got in zip(before, found):
        np.testing.assert_allclose(p_feasible(each, PLACE, [3, 9], [True, False])[at], got)
    scores = known.log_evidence(before[:, [3, 9]])
    assert scores == pytest.approx([log_evidence(each, PLACE, [3, 9], [True, False]) for each in before])


def test_without_outcomes_earlier_tasks_are_believed() -> None:
    """Fails if the squashing does not undo itself, near (no outcome) or far from all outcomes."""
    np.testing.assert_allclose(p_feasible(BEFORE, PLACE, [], []), BEFORE)
    far = np.vstack([PLACE, [[99.0]]])
    got = p_feasible(np.append(BEFORE, 0.7), far, [0, 1, 2], [False, False, False])
    assert got[-1] == pytest.approx(0.7, abs=1e-3)


def test_outcomes_spread_to_neighbours_and_add_up() -> None:
    """Fails if one failure condemns all, several do not condemn what lies between, or signs are mixed up."""
    once = p_feasible(BEFORE, PLACE, [20], [False])
    often = p_feasible(BEFORE, PLACE, [18, 20, 22], [False, False, False])
    assert once[20] < 0.5 < once[0]
    assert often[21] < 0.1
    assert p_feasible(BEFORE, PLACE, [20], [True])[20] > BEFORE[20]
    np.testing.assert_allclose(often, p_feasible(BEFORE, PLACE, [22, 18, 20], [False, False, False]), atol=1e-9)


def test_evidence_is_the_product_of_predictions() -> None:
    """Fails if an outcome is predicted from itself or from later ones."""
    points, works = [0, 15, 16], [True, False, False]
    expected = 0.0
    for i, (point, ok) in enumerate(zip(points, works)):
        p = p_feasible(BEFORE, PLACE, points[:i], works[:i])[point]
        expected += np.log(np.clip(p if ok else 1 - p, 0.01, 0.99))
    assert log_evidence(BEFORE, PLACE, points, works) == pytest.approx(expected)
    assert log_evidence(BEFORE, PLACE, [], []) == 0.0


def test_among_failures_the_likeliest_is_known() -> None:
    """Fails if a floor makes all that hardly works alike: a search would then stay where it began."""
    got = p_feasible(np.full(31, 0.9), PLACE, list(range(20, 31)), [False] * 11)
    assert got[0] > got[10] > got[18] > got[22]
    sure = p_feasible(np.full(31, 0.9), np.zeros((31, 1)), [1, 2, 3, 4], [False] * 4)
    assert 0 < sure.max() < 0.05
