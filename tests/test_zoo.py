"""The model zoo: the paper's families, published sizes, and answers to its own requests."""

from collections import Counter
from dataclasses import replace

import pytest
from ray import serve

from experiments.record_surfaces import SLO_MS
from experiments.zoo import __main__ as counting
from experiments.zoo import apps, models, requests
from experiments.zoo.catalogue import MODELS, MODERN, PAPER
from morphling_ray.serving.torch_model import PRECISIONS, TorchModel

TABLE_1 = {
    "resnet": 5, "nasnet": 2, "vgg": 2, "inception": 2, "densenet": 1, "mobilenet": 2, "efficientnet": 7,
    "bert": 2, "albert": 4, "elmo": 1, "nnlm": 2, "small_bert": 4, "word2vec": 2, "electra": 2, "use": 4,
}  # fmt: skip


def test_the_papers_families_have_as_many_models_as_in_its_first_table() -> None:
    assert Counter(model.family for model in PAPER.values()) == TABLE_1
    assert len(MODERN) >= 6


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_the_published_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert counting.main([name]) == 0, capsys.readouterr().out


def test_a_model_of_another_size_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(MODELS, "mobilenet_v2", replace(MODELS["mobilenet_v2"], macs=0.4))
    assert counting.main(["mobilenet_v2"]) == 1
    assert "mobilenet_v2" in capsys.readouterr().err


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name", ["nasnet_mobile", "densenet_121", "small_bert_tiny", "use_multilingual_cnn", "vit_base", "whisper_tiny"]
)
def test_a_batch_is_answered_request_by_request(name: str, precision: str) -> None:
    model = TorchModel(f"experiments.zoo.models:{name}")
    answers = model.forward([getattr(requests, name)()] * 2, precision)
    assert len(answers) == 2
    assert 0 < answers[0]["probability"] <= 1


def test_inputs_are_made_smaller_only_where_the_published_ones_cost_too_much() -> None:
    assert models.side(MODELS["mobilenet_v2"]) == 224
    assert models.side(MODELS["vgg_16"]) < 100
    for model in MODELS.values():
        if model.kind == "image" and model.macs and not model.fixed:
            side = models.side(model)
            served = model.macs * (side / model.size) ** 2
            assert side == models.SMALLEST_SIDE or served < 1.5 * models.LARGEST_GMACS


def test_an_unknown_model_is_no_attribute() -> None:
    assert not hasattr(models, "resnet_51")
    assert not hasattr(models, "__wrapped__")


def test_whatever_is_recorded_is_an_application_and_all_families_come_first() -> None:
    assert len(SLO_MS) >= 24
    assert {MODELS[name].family for name in list(SLO_MS)[:16]} == set(TABLE_1)
    for name in (*models.FAMILIES, *SLO_MS):
        assert isinstance(getattr(apps, name), serve.Application)
        assert getattr(requests, name)() == getattr(requests, name)()  # one payload for all
    assert not hasattr(apps, "resnet_51")
