"""Conditioning and evidence against closed forms that are written out here once more, the plain way."""

from dataclasses import replace

import numpy as np
import pytest

from morphling_ray.meta.ensemble import Conditioned, Ensemble, Hypothesis, Mixtures, log_evidence
from morphling_ray.meta.gaussian import NOTHING, Covariance, Observations, cholesky, matern52
from morphling_ray.meta.plain import estimate, plain_hypothesis

N, METRICS, TASKS = 6, 2, 3
OBS = Observations(np.array([0, 0, 3]), np.array([0, 1, 1]), np.array([0.3, -1.0, 2.0]), np.array([0.01, 0.02, 0.5]))


def covariance() -> Covariance:
    rng = np.random.default_rng(0)
    z = rng.random((N, 2))
    return Covariance(
        features=rng.normal(size=(METRICS, N, TASKS)),
        inputs=[z] * METRICS,
        extra=rng.random((N, 1)),
        offset_sd=np.array([0.5, 0.8]),
        residual_sd=np.array([0.3, 0.2]),
        extra_sd=np.array([0.4, 0.1]),
        white_sd=np.array([0.1, 0.05]),
        correlation=np.array([[1.0, -0.7], [-0.7, 1.0]]),
    )


def hypothesis(name: str = "h", weights: np.ndarray | None = None, *, levels: bool = True, seed: int = 1) -> Hypothesis:
    surfaces = np.random.default_rng(seed).normal(size=(TASKS, N, METRICS))
    weights = np.array([[0.2, 0.5, 0.3]]) if weights is None else weights
    return Hypothesis(name, 0.0, Mixtures(surfaces, weights), covariance(), levels)


def full_covariance(c: Covariance) -> np.ndarray:
    """Of all metrics at all candidates, entry by entry, metrics varying fastest."""
    out = np.empty((N * METRICS, N * METRICS))
    for i in range(N):
        for a in range(METRICS):
            for j in range(N):
                for b in range(METRICS):
                    e2 = float(((c.extra[i] - c.extra[j]) ** 2).sum())
                    d2 = float(((c.inputs[a][i] - c.inputs[b][j]) ** 2).sum()) + e2
                    r, re = np.sqrt(5 * d2), np.sqrt(5 * e2)
                    own = c.offset_sd[a] * c.offset_sd[b]
                    own += c.residual_sd[a] * c.residual_sd[b] * (1 + r + r * r / 3) * np.exp(-r)
                    own += c.extra_sd[a] * c.extra_sd[b] * (1 + re + re * re / 3) * np.exp(-re)
                    own += c.white_sd[a] * c.white_sd[b] * (i == j)
                    both = c.features[a, i] @ c.features[b, j] + c.correlation[a, b] * own
                    out[i * METRICS + a, j * METRICS + b] = both
    return out


def closed_form(h: Hypothesis) -> tuple[np.ndarray, np.ndarray, float]:
    """Posterior mean and covariance after OBS, and the log density of OBS, for a hypothesis of one template."""
    assert isinstance(h.templates, Mixtures)
    mean = np.einsum("t,tnm->nm", h.templates.weights[0], h.templates.surfaces).reshape(-1)
    k, at = full_covariance(h.covariance), OBS.point * METRICS + OBS.metric
    inverse = np.linalg.inv(k[np.ix_(at, at)] + np.diag(OBS.variance))
    gap = OBS.value - mean[at]
    density = -0.5 * gap @ inverse @ gap + 0.5 * np.linalg.slogdet(inverse)[1]
    return mean + k[:, at] @ inverse @ gap, k - k[:, at] @ inverse @ k[at, :], float(density)


def test_posterior_is_the_closed_form() -> None:
    """Fails if a term of the covariance, the noise or a sign is wrong anywhere in conditioning."""
    h = hypothesis()
    mean, posterior, density = closed_form(h)
    got, everywhere = Conditioned(h, OBS), np.arange(N)
    np.testing.assert_allclose(got.means(np.array([0]), everywhere).reshape(-1), mean, atol=1e-9)
    np.testing.assert_allclose(got.joint(everywhere), posterior, atol=1e-9)
    for i, block in enumerate(got.each(everywhere)):
        own = slice(METRICS * i, METRICS * (i + 1))
        np.testing.assert_allclose(block, posterior[own, own], atol=1e-9)
    assert got.log_evidence[0] == pytest.approx(density)


def test_what_is_kept_is_of_the_same_candidates_and_places() -> None:
    """Fails if correlations that were computed before are taken for those of others."""
    c = covariance()
    moved = replace(c, inputs=[2.0 * c.inputs[0]] * METRICS)
    assert moved.nearness is c.nearness
    for one in (c, moved, c):
        for points in (np.array([0, 3]), np.array([1, 5]), np.arange(N)):
            at = (points[:, None] * METRICS + np.arange(METRICS)).ravel()
            np.testing.assert_allclose(one.joint(points), full_covariance(one)[np.ix_(at, at)], atol=1e-9)


def test_hypotheses_are_weighed_by_what_they_foretold() -> None:
    """Fails if templates, log priors or outcomes do not enter the weights as Bayes' rule has it."""
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    two, other = hypothesis("two", weights), hypothesis("other", seed=2)
    outcomes = [0.0, -0.5]
    each = [closed_form(hypothesis(weights=row[None]))[2] for row in weights]
    expected = np.exp([each[0] - np.log(2), each[1] - np.log(2), closed_form(other)[2] - 0.5])
    ensemble = Ensemble([two, other], OBS, outcomes)
    np.testing.assert_allclose(ensemble.weights, [expected[:2].sum() / expected.sum(), expected[2] / expected.sum()])
    assert log_evidence([two, other], OBS) == pytest.approx(
        np.log(expected[:2].sum() + expected[2] * np.exp(0.5)), abs=1e-9
    )


def test_a_free_level_is_neither_for_nor_against() -> None:
    """Fails if a hypothesis whose level means nothing is punished for having none."""
    first = Observations(OBS.point[:2], OBS.metric[:2], OBS.value[:2], OBS.variance[:2])
    ensemble = Ensemble([hypothesis("a"), hypothesis("b", levels=False, seed=2)], first, [0.0, 0.0])
    np.testing.assert_allclose(ensemble.weights, 0.5)


def test_draws_have_the_moments_of_the_mixture() -> None:
    """Fails if a factor is transposed, a template is left out, or marginal and joint draws disagree."""
    mean, posterior, _ = closed_form(hypothesis())
    ensemble, points = Ensemble([hypothesis()], OBS, [0.0]), np.array([1, 4, 5])
    rows = (METRICS * points[:, None] + np.arange(METRICS)).reshape(-1)
    rng = np.random.default_rng(0)
    joint = ensemble.joint_draws(points, rng.standard_normal((40_000, len(rows))))
    flat = joint.reshape(len(joint), -1)
    np.testing.assert_allclose(flat.mean(0), mean[rows], atol=0.05)
    np.testing.assert_allclose(np.cov(flat.T), posterior[np.ix_(rows, rows)], atol=0.15)
    single = ensemble.marginal_draws(points, rng.standard_normal((40_000, METRICS)))
    for i in range(len(points)):
        own = rows[METRICS * i : METRICS * (i + 1)]
        np.testing.assert_allclose(np.cov(single[:, i].T), posterior[np.ix_(own, own)], atol=0.15)
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    mixed = Ensemble([hypothesis("two", weights)], NOTHING, [0.0])
    mixed_surfaces = np.random.default_rng(1).normal(size=(TASKS, N, METRICS))
    np.testing.assert_allclose(mixed.mean(points), mixed_surfaces[:2].mean(0)[points], atol=1e-9)


def test_matern_against_its_definition() -> None:
    """Fails if a factor is off: r = 1 gives (1 + sqrt5 + 5/3) exp(-sqrt5)."""
    expected = (1 + np.sqrt(5.0) + 5 / 3) * np.exp(-np.sqrt(5.0))
    np.testing.assert_allclose(matern52(np.array([0.0, 1.0])), [1.0, expected])


def test_cholesky_of_a_singular_matrix() -> None:
    """Fails if rounding stops a search: two equal rows are semi-definite."""
    factor = cholesky(np.ones((4, 4)))
    np.testing.assert_allclose(factor @ factor.T, np.ones((4, 4)), atol=1e-3)


def test_length_scales_and_correlations_are_learned() -> None:
    """Fails if `estimate` returns its defaults, or mixes up knobs: both metrics depend on the first knob alone."""
    z = np.array([[i, j] for i in np.linspace(0, 1, 5) for j in np.linspace(0, 1, 4)])
    point, metric = np.tile(np.arange(20), 2), np.repeat([0, 1], 20)
    wave = np.sin(6 * z[:, 0])
    obs = Observations(point, metric, np.concatenate([wave, -wave]), np.full(40, 1e-4))
    hyper = estimate(z, np.array([0, 1]), obs, 2)
    first, second, *_ = np.exp(hyper.log)
    assert second > 3 * first
    assert hyper.correlation[0, 1] <= -0.9


def test_plain_hypothesis_follows_its_data_in_any_unit() -> None:
    """Fails if the level is not free: metrics may be seconds or millions."""
    z = np.linspace(0, 1, 9)[:, None]
    rows = np.arange(0, 9, 2)
    for level in (-30.0, 0.0, 30.0):
        obs = Observations(rows, np.zeros(5, np.int64), level + z[rows, 0], np.full(5, 1e-4))
        plain = plain_hypothesis(z, np.array([0]), obs, 1)
        mean = Ensemble([plain], obs, [0.0]).mean(np.arange(9))
        np.testing.assert_allclose(mean[:, 0], level + z[:, 0], atol=0.05)
