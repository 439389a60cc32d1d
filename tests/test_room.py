"""What trials take of nodes."""

from typing import Any

import pytest

from morphling_ray.evaluate.room import cards, claim, on_one_node, remaining, seats, within

ONE_CORE, FOUR_CORES = [{"CPU": 1.0, "GPU": 0.0}], [{"CPU": 4.0, "GPU": 0.0}]
THIRD = {"CPU": 1.0, "GPU": 0.3}
EIGHT_GPUS = {"CPU": 64.0, "GPU": 8.0}


def test_a_trial_claims_a_core_for_its_driver() -> None:
    """Fails if drivers and replicas of two trials share cores that the node has, or a small node holds nothing."""
    assert claim(FOUR_CORES, {"CPU": 16.0}) == {"CPU": 5.0, "GPU": 0.0}
    assert claim(FOUR_CORES, {"CPU": 4.0}) == {"CPU": 4.0, "GPU": 0.0}
    assert claim(FOUR_CORES, {"CPU": 2.0}) is None
    assert claim(ONE_CORE, EIGHT_GPUS, alone=True) == {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("replicas", "taken"),
    [
        ([THIRD], 1),
        ([THIRD] * 3, 1),
        ([THIRD] * 4, 8),  # on two cards, and Ray might put somebody else's on the second one
        ([{"CPU": 1.0, "GPU": 2.0}], 2),
        ([{"CPU": 1.0, "GPU": 1.0}, THIRD], 2),
        (ONE_CORE, 0),
    ],
)
def test_cards_are_whole(replicas: list[dict[str, float]], taken: float) -> None:
    """Fails if two candidates may get parts of one card."""
    assert cards(replicas, 8.0) == taken


@pytest.mark.parametrize(
    ("room", "kinds", "per_node", "expected"),
    [
        ({"CPU": 16.0}, [ONE_CORE, FOUR_CORES], None, 1),
        ({"CPU": 16.0}, [ONE_CORE, FOUR_CORES], 3, 3),
        ({"CPU": 4.0}, [ONE_CORE, FOUR_CORES], 3, 2),
        ({"CPU": 0.5}, [ONE_CORE], 3, 0),
        (EIGHT_GPUS, [[THIRD], [THIRD] * 2], None, 8),
        (EIGHT_GPUS, [[THIRD], [{"CPU": 1.0, "GPU": 2.0}]], None, 4),
        (EIGHT_GPUS, [[THIRD], ONE_CORE], None, 1),
        ({"CPU": 4.0, "GPU": 8.0}, [[THIRD]], None, 2),
        ({"CPU": 4.0, "GPU": 1.0}, [[THIRD]], 4, 1),
    ],
)
def test_trials_of_a_node(room: dict[str, float], kinds: list[Any], per_node: int | None, expected: int) -> None:
    """Fails if a node is given more trials than it has cores and cards for, or idle cards stay idle."""
    assert seats(room, kinds=kinds, per_node=per_node) == expected


def test_what_is_left() -> None:
    """Fails if claims are not taken off, or one that does not fit is let in."""
    free = remaining(EIGHT_GPUS, [{"CPU": 60.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}])
    assert free == {"CPU": 2.0, "GPU": 6.0}
    assert within({"CPU": 2.0, "GPU": 6.0}, free)
    assert not within({"CPU": 3.0, "GPU": 1.0}, free)
    assert on_one_node([ONE_CORE, FOUR_CORES], [{"CPU": 2.0}, {"CPU": 4.0}])
    assert not on_one_node([FOUR_CORES * 2], [{"CPU": 4.0}, {"CPU": 4.0}])
