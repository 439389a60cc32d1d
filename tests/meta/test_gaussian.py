"""Conditioning against closed forms that are written out here once more, the plain way."""

import numpy as np
import pytest

from morphling_ray.meta.gaussian import GaussianModel, Observations, cholesky, matern52
from morphling_ray.meta.plain import estimate, plain_model


def model(n: int = 6, metrics: int = 2, tasks: int = 3, extra: int = 1) -> GaussianModel:
    rng = np.random.default_rng(0)
    z = rng.random((n, 2))
    return GaussianModel(
        mean=rng.normal(size=(metrics, n)),
        features=rng.normal(size=(metrics, n, tasks)),
        inputs=[z] * metrics,
        extra=rng.random((n, extra)),
        offset_sd=np.array([0.5, 0.8])[:metrics],
        residual_sd=np.array([0.3, 0.2])[:metrics],
        extra_sd=np.array([0.4, 0.1])[:metrics],
        white_sd=np.array([0.1, 0.05])[:metrics],
        correlation=np.array([[1.0, -0.7], [-0.7, 1.0]])[:metrics, :metrics],
    )


def full_covariance(m: GaussianModel) -> np.ndarray:
    """Of all metrics at all candidates, entry by entry, metrics varying fastest."""
    metrics, n = m.mean.shape
    out = np.empty((n * metrics, n * metrics))
    for i in range(n):
        for a in range(metrics):
            for j in range(n):
                for b in range(metrics):
                    e2 = float(((m.extra[i] - m.extra[j]) ** 2).sum())
                    d2 = float(((m.inputs[a][i] - m.inputs[b][j]) ** 2).sum()) + e2
                    r, re = np.sqrt(5 * d2), np.sqrt(5 * e2)
                    own = m.offset_sd[a] * m.offset_sd[b]
                    own += m.residual_sd[a] * m.residual_sd[b] * (1 + r + r * r / 3) * np.exp(-r)
                    own += m.extra_sd[a] * m.extra_sd[b] * (1 + re + re * re / 3) * np.exp(-re)
                    own += m.white_sd[a] * m.white_sd[b] * (i == j)
                    out[i * metrics + a, j * metrics + b] = (
                        m.features[a, i] @ m.features[b, j] + m.correlation[a, b] * own
                    )
    return out


OBS = Observations(np.array([0, 0, 3]), np.array([0, 1, 1]), np.array([0.3, -1.0, 2.0]), np.array([0.01, 0.02, 0.5]))


def test_posterior_is_the_closed_form() -> None:
    """Fails if a term of the covariance, the noise or a sign is wrong anywhere in `condition` or `joint`."""
    m = model()
    k, mean = full_covariance(m), m.mean.T.reshape(-1)
    at = OBS.point * 2 + OBS.metric
    inverse = np.linalg.inv(k[np.ix_(at, at)] + np.diag(OBS.variance))
    expected = mean + k[:, at] @ inverse @ (OBS.value - mean[at])
    covariance = k - k[:, at] @ inverse @ k[at, :]
    posterior = m.condition(OBS)
    np.testing.assert_allclose(posterior.mean.reshape(-1), expected, atol=1e-9)
    for i in range(6):
        block = covariance[2 * i : 2 * i + 2, 2 * i : 2 * i + 2]
        np.testing.assert_allclose(posterior.covariance[i], block, atol=1e-9)
    points = np.array([1, 4, 5])
    rows = np.array([2, 3, 8, 9, 10, 11])
    joint_mean, joint = m.joint(OBS, points)
    np.testing.assert_allclose(joint_mean, expected[rows], atol=1e-9)
    np.testing.assert_allclose(joint, covariance[np.ix_(rows, rows)], atol=1e-9)
    gap = OBS.value - mean[at]
    density = -0.5 * gap @ inverse @ gap + 0.5 * np.linalg.slogdet(inverse)[1] - 1.5 * np.log(2 * np.pi)
    assert posterior.log_evidence == pytest.approx(density)
    assert m.log_density(OBS) == pytest.approx(density)


def test_pending_narrows_and_does_not_move() -> None:
    """Fails if the fantasy's value is used, or if it is not used at all."""
    m = model()
    pending = Observations(np.array([5]), np.array([0]), np.array([99.0]), np.array([0.01]))
    alone, both = m.condition(OBS), m.condition(OBS, pending)
    np.testing.assert_allclose(both.mean, alone.mean)
    assert both.covariance[5, 0, 0] < 0.2 * alone.covariance[5, 0, 0]
    assert both.log_evidence == alone.log_evidence


def test_without_observations_the_prior_is_returned() -> None:
    """Fails if the marginal covariance forgets a term that `block` has."""
    m = model()
    nothing = Observations(*(np.zeros(0, np.int64),) * 2, *(np.zeros(0),) * 2)
    k = full_covariance(m)
    np.testing.assert_allclose(m.condition(nothing).covariance[2], k[4:6, 4:6], atol=1e-12)


def test_matern_at_a_known_distance() -> None:
    """Fails if the constant 5 or the quadratic term is off (Rasmussen & Williams, Eq. 4.17)."""
    assert matern52(np.array(1.0)) == pytest.approx(0.5239941, rel=1e-6)


def test_cholesky_of_a_rounded_matrix() -> None:
    """Fails if jitter is not tried: a matrix of rank one has no factor of its own."""
    assert np.isfinite(cholesky(np.ones((5, 5)))).all()


def test_length_scales_are_learned() -> None:
    """Fails if `estimate` returns its defaults, or mixes up knobs: y depends on the first knob alone."""
    z = np.array([[i, j] for i in np.linspace(0, 1, 5) for j in np.linspace(0, 1, 4)])
    hyper = estimate(z, np.sin(6 * z[:, 0]), np.full(20, 1e-4), np.array([0, 1]))
    first, second, *_ = np.exp(hyper.log)
    assert second > 3 * first


def test_plain_model_follows_its_data_in_any_unit() -> None:
    """Fails if the level is not free: metrics may be seconds or millions."""
    z = np.linspace(0, 1, 9)[:, None]
    rows = np.arange(0, 9, 2)
    for level in (-30.0, 0.0, 30.0):
        obs = Observations(rows, np.zeros(5, np.int64), level + z[rows, 0], np.full(5, 1e-4))
        fitted, _ = plain_model(z, np.array([0]), obs, 1)
        np.testing.assert_allclose(fitted.condition(obs).mean[:, 0], level + z[:, 0], atol=0.05)
