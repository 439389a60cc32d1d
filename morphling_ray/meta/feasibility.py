"""How likely a configuration works: a Gaussian process on a latent score, squashed to a probability.

    P(x works) = sigmoid(1.7 m(x) / sqrt(1 + v(x)))        (1.7: the logistic curve that is nearest to the probit)

m, v    posterior mean and variance of the score; before any outcome the mean says p0(x), what earlier tasks showed
score   an outcome counts as a noisy look at +2 or -2: least-squares classification (Rasmussen & Williams 2006, 6.5).
        Deep among failures the probability goes to a few percent, which counting neighbours does not reach.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.gaussian import cholesky, matern52, squared_distances

FloatArray = npt.NDArray[np.float64]

OPTIMISTIC = 0.9  # without a prior: most of what a user lists works
_SHARPNESS = 1.5**2  # on squared distances: failure has sharper edges than speed
_SCORE = 2.0  # what an outcome says
_SCORE_SD = 2.0  # of the score around what p0 says
_NOISE_SD = 0.7  # of one outcome: a trial may fail by accident
_PROBIT = 1.7
_CLIP = 0.01  # of what is believed before, and of one outcome's evidence
_LEAST = 1e-6  # of what is believed after: among configurations that hardly work, the likeliest must be known


def p_feasible(before: FloatArray, place: FloatArray, points: Sequence[int], works: Sequence[bool]) -> FloatArray:
    """Probability that each candidate works, shape `(n,)`.

    Args:
        before: p0, shape `(n,)`.
        place: Candidates in units of length scales, shape `(n, d)`.
        points: Indices of the candidates whose outcome is known.
        works: Their outcomes.
    """
    if not len(points):
        return np.clip(before, _CLIP, 1.0 - _CLIP)
    rows = list(points)
    start = _start(before)
    near = _SCORE_SD**2 * matern52(_SHARPNESS * squared_distances(place[rows], place))  # (k, n)
    white = np.linalg.inv(cholesky(near[:, rows] + _NOISE_SD**2 * np.eye(len(rows))))
    v = white @ near
    mean = start + (white @ (_scores(works) - start[rows])) @ v
    return _probability(mean, np.maximum(_SCORE_SD**2 - (v**2).sum(0), 0.0))


def log_evidence(before: FloatArray, place: FloatArray, points: Sequence[int], works: Sequence[bool]) -> float:
    """Log probability of the outcomes, each predicted from those before it."""
    if not len(points):
        return 0.0
    rows = np.array(points, int)
    start = _start(before[rows])
    near = _SCORE_SD**2 * matern52(_SHARPNESS * squared_distances(place[rows], place[rows]))
    factor = cholesky(near + _NOISE_SD**2 * np.eye(len(rows)))
    surprise = np.linalg.solve(factor, _scores(works) - start)  # each outcome less its prediction, in predicted sds
    sd = np.diag(factor)
    p = _probability(_scores(works) - sd * surprise, np.maximum(sd**2 - _NOISE_SD**2, 0.0))
    p = np.clip(p, _CLIP, 1.0 - _CLIP)
    return float(np.log(np.where(works, p, 1.0 - p)).sum())


def _start(before: FloatArray) -> FloatArray:
    before = np.clip(before, _CLIP, 1.0 - _CLIP)
    return np.asarray(np.log(before / (1.0 - before)) / _PROBIT)


def _scores(works: Sequence[bool]) -> FloatArray:
    return np.where(works, _SCORE, -_SCORE)


def _probability(mean: FloatArray, variance: FloatArray) -> FloatArray:
    # Where nothing near is known the score is as vague as at the start, and p0 stands: hence the ratio of the two.
    widened = np.sqrt((1.0 + variance) / (1.0 + _SCORE_SD**2))
    p = 1.0 / (1.0 + np.exp(-_PROBIT * mean / np.maximum(widened, 0.5)))
    return np.asarray(np.clip(p, _LEAST, 1.0 - _LEAST))
