"""The simulator of the paper's spaces: what it counts, and that its physics does what physics does."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch import nn

from experiments.simulator import recordings, validate
from experiments.simulator.__main__ import main
from experiments.simulator.cards import CARDS
from experiments.simulator.physics import Physics, Pipeline, batch_seconds, peak_inputs_per_s
from experiments.simulator.profile import Profile, profile
from experiments.simulator.spaces import as_served, ec2, ec2_surface, pipeline_of, production_surface, profile_of
from experiments.zoo.catalogue import MODELS, PAPER
from experiments.zoo.counting import count
from morphling_ray.space import Configuration, Knob, SearchSpace
from morphling_ray.surface import Surface, SurfaceSet, load_surfaces, save_surfaces

T4 = CARDS["T4"]
IDEAL = Physics(efficiency=1.0, fill_s=0.0, launch_s=0.0)
FREE = Pipeline(input_s=1e-9, request_s=1e-9, input_bytes=1.0)


def one_operator(macs: float = 0.0, moved: float = 0.0, weights: float = 0.0) -> Profile:
    return Profile(np.array([macs]), np.array([moved]), np.array([weights]), weights, max(1.0, moved))


def column(surface: Surface, knob: str) -> np.ndarray:
    return np.array([c[knob] for c in surface.space.configurations])


def test_a_linear_layer_is_counted_by_hand() -> None:
    with torch.device("meta"), torch.no_grad():
        layer = nn.Linear(300, 200).eval()
        counted = profile(layer, torch.zeros(1, 300))
    assert counted.macs.sum() == 300 * 200
    assert counted.weight_bytes.sum() == counted.parameters_bytes == 4 * (300 * 200 + 200)  # a view of them is no input
    assert counted.moved_bytes.sum() == 4 * (300 + 200)


def test_looking_up_words_reads_their_rows_and_not_the_table() -> None:
    counted = profile_of(MODELS["word2vec_250"])
    assert counted.weight_bytes.sum() == 0
    assert counted.moved_bytes.sum() < 1e5
    assert counted.parameters_bytes > 1e9


@pytest.mark.parametrize("name", ["resnet_50", "bert_base", "use_transformer", "elmo", "nasnet_mobile"])
def test_counts_agree_with_torchs_own(name: str) -> None:
    counted = profile_of(MODELS[name])
    assert counted.macs.sum() / 1e9 == pytest.approx(count(as_served(MODELS[name]))[1], rel=1e-6)


def test_an_operator_takes_as_long_as_the_slower_of_arithmetic_and_memory() -> None:
    sizes = np.array([1.0, 4.0])
    arithmetic = batch_seconds(one_operator(macs=T4.macs_per_s), T4, IDEAL, sizes)
    assert arithmetic == pytest.approx([1.0, 4.0])
    weights = batch_seconds(one_operator(weights=T4.bytes_per_s), T4, IDEAL, sizes)
    assert weights == pytest.approx([1.0, 1.0])  # a batch reads them once


def test_small_operators_have_to_spread_over_a_card_and_starting_them_takes_time() -> None:
    small = one_operator(macs=1e6)
    assert batch_seconds(small, T4, Physics(1.0, 1e-6, 0.0), np.ones(1)) == pytest.approx(1e6 / T4.macs_per_s + 1e-6)
    started, core = Physics(1.0, 0.0, 1e-3), replace(T4, asynchronous=False)
    assert batch_seconds(small, T4, started, np.ones(1)) == pytest.approx(1e-3), "while the card computes"
    assert batch_seconds(small, core, started, np.ones(1)) == pytest.approx(1e6 / T4.macs_per_s + 1e-3)


def test_a_request_waits_as_in_a_queue_with_constant_service() -> None:
    """M/D/1: mean time S + rho S / (2 (1 - rho)); with an SLO of 1.5 S that is rho = 1/2."""
    service = one_operator(macs=0.1 * T4.macs_per_s)
    one = np.ones(1)
    peak = peak_inputs_per_s(service, FREE, T4, IDEAL, one, one, one, slo_s=0.15)
    assert peak == pytest.approx(5.0, rel=1e-3)


def test_what_does_not_fit_or_is_too_slow_does_not_work() -> None:
    one, works = np.ones(1), one_operator(macs=1e9, moved=1e6, weights=1e9)
    share = np.array([0.05])  # 800 MB
    assert peak_inputs_per_s(works, FREE, T4, IDEAL, one, share, one, 1.0) == 0
    assert peak_inputs_per_s(works, FREE, T4, IDEAL, one, 2 * share, one, 1.0) > 0
    assert peak_inputs_per_s(works, FREE, T4, IDEAL, one, 2 * share, 1000 * one, 1.0) == 0
    assert peak_inputs_per_s(works, FREE, T4, IDEAL, one, one, one, 1e-4) == 0


@pytest.mark.parametrize("name", ["resnet_101", "albert_large", "use_dan"])
def test_no_resource_does_harm(name: str) -> None:
    surface = ec2_surface(name, MODELS[name], profile_of(MODELS[name]))
    peak = np.nan_to_num(surface.metrics["peak_rps"]).reshape(5, 6, 8, 3)
    assert (np.diff(peak, axis=0) >= -1e-6 * peak.max()).all()
    assert (np.diff(peak, axis=1) >= -1e-6 * peak.max()).all()
    assert (peak[..., 2] >= peak[..., 0]).all(), "a V100 is faster than a T4"


def test_batches_help_until_they_take_too_long() -> None:
    peak = ec2_surface("albert_xlarge", MODELS["albert_xlarge"], profile_of(MODELS["albert_xlarge"])).metrics[
        "peak_rps"
    ]
    largest = np.nan_to_num(peak).reshape(5, 6, 8, 3)[-1, -1, :, 0]
    assert 0 < int(largest.argmax()) < 7
    assert largest[-1] == 0, "PAPER: ALBERT answers nothing in time at a batch of 128"


def test_a_larger_share_of_the_card_is_faster() -> None:
    surface = production_surface("resnet_50", MODELS["resnet_50"], profile_of(MODELS["resnet_50"]), 1.0)
    assert len(surface.space) == 100
    peak = np.nan_to_num(surface.metrics["peak_rps"]).reshape(5, 5, 4)
    assert (np.diff(peak, axis=2) >= 0).all()
    assert peak[0, -1, 3] > peak[0, -1, 0]


def test_the_papers_space_has_720_configurations_and_its_objectives() -> None:
    made = ec2({"small_bert_tiny": PAPER["small_bert_tiny"]})
    surface = made.task("small_bert_tiny")
    assert len(surface.space) == 720
    peak, cores, memory = surface.metrics["peak_rps"], column(surface, "cpu_cores"), column(surface, "gpu_memory")
    price = np.array([{"T4": 0.4, "M60": 0.4, "V100": 2.6}[kind] for kind in column(surface, "gpu_type")])
    for name, cost in (
        ("objective1", 0.2 + price * memory + 0.02 * cores),  # PAPER: equation 7
        ("objective2", 0.2 + price * memory),
        ("objective3", np.ones(720)),
    ):
        value = made.objective(name, surface.task)(surface.columns, surface.metrics)
        assert value[surface.feasible] == pytest.approx((peak / cost)[surface.feasible])
    assert "not measured" in made.about


def test_heavy_requests_cost_the_cores_more() -> None:
    model = MODELS["resnet_50"]
    assert pipeline_of(model, 3.0).input_s == pytest.approx(3 * pipeline_of(model).input_s)


def test_surfaces_are_written_as_the_format_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = ["mobilenet_v2", "nnlm_50"]
    assert main(["--out", str(tmp_path), "--only", *some]) == 0
    assert "2 tasks of 720" in capsys.readouterr().out
    back = load_surfaces(tmp_path / "ec2-simulated")
    assert set(back.surfaces) == set(some)
    assert back.objective("objective1", "nnlm_50").name == "objective1"


def test_validation_finds_the_numbers_that_made_the_data() -> None:
    recording = recordings.cpu(Path("experiments/surfaces/zoo"))
    made = dict(zip(recording.start, (2e10, 8e9, 2.0, 0.7, 3e-5, 2e-3)))
    tasks = [replace(task, found=recording.law(made, task)) for task in recording.tasks]
    by_name = {task.name: task for task in tasks}
    known, unknown = [by_name["mixer"], by_name["text_encoder"]], by_name["ranker"]
    fitted = validate.fit(recording, known)
    assert recording.law(fitted, unknown) == pytest.approx(unknown.found, rel=0.2)
    assert np.median(np.abs(np.log(recording.law(fitted, known[0]) / known[0].found))) < 0.02


def test_validation_prints_every_model_and_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert validate.main([]) == 0
    out = capsys.readouterr().out.splitlines()
    folder = Path("experiments/surfaces")
    recorded = [recordings.cpu(folder / "zoo"), recordings.h100(folder / "h100")]
    assert len(out) == sum(2 + len(recording.tasks) for recording in recorded)
    assert "families held out" in out[-2]
    assert "the zoo on shares of an H100" in out[-2]


def test_the_physics_of_the_simulator_is_that_of_a_real_card() -> None:
    """Fails if models that the numbers were not fitted to are ranked badly on shares of an H100."""
    recording = recordings.h100(Path("experiments/surfaces/h100"))
    held_out = {"bert_base", "efficientnet_b0"}
    fitted = validate.fit(recording, [task for task in recording.tasks if task.name not in held_out])
    for task in recording.tasks:
        if task.name in held_out:
            told = recording.law(fitted, task)
            assert spearmanr(told, task.found)[0] > 0.95
            assert np.median(np.abs(np.log(told / task.found))) < 0.2


@pytest.mark.parametrize(
    ("read", "task", "knobs", "number"),
    [
        (
            "v100",
            "resnet50",
            {"sm_pct": (10, 50, 100), "quota_pct": (50, 100), "batch_size": (1, 8)},
            ("memory_share", 0.01),
        ),
        ("a100", "vgg16", {"mig_gpcs": (1, 3, 7), "batch_size": (1, 64), "num_procs": (1, 2)}, ("launch_s", 100)),
    ],
)
def test_recordings_of_cards_are_read_and_foretold(
    read: str, task: str, knobs: dict[str, tuple[int, ...]], number: tuple[str, float], tmp_path: Path
) -> None:
    cells: list[Configuration] = [dict(zip(knobs, cell)) for cell in itertools.product(*knobs.values())]
    space = SearchSpace([Knob.infer(k, list(v)) for k, v in knobs.items()], configurations=cells)
    surface = Surface(task, "one", space, {"rps": np.arange(1.0, 13.0)}, np.ones(12, bool), {}, {})
    made = SurfaceSet(
        name="cards",
        about="",
        source="",
        licence="",
        cost=None,
        missing="absent",
        knobs=space.knobs,
        better={"rps": "higher"},
        objectives={"rps": {"maximize": "rps"}},
        surfaces={task: surface},
    )
    save_surfaces(tmp_path, made)
    recording = getattr(recordings, read)(tmp_path)
    (found,) = recording.tasks
    assert len(found.found) == 6, "all of the time, one process"
    told = recording.law(recording.start, found)
    assert (np.diff(told.reshape(3, 2), axis=0) >= 0).all(), "a larger part is no slower"
    other = recording.law({**recording.start, number[0]: recording.start[number[0]] * number[1]}, found)
    assert (told != other).any()
