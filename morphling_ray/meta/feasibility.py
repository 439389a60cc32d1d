"""How likely a configuration works: a Gaussian process on a latent score, squashed to a probability.

    P(x works) = sigmoid(1.7 m(x) / sqrt(1 + v(x)))        (1.7: the logistic curve that is nearest to the probit)

m, v    posterior mean and variance of the score; before any outcome the mean says p0(x), what earlier tasks showed
score   an outcome counts as a noisy look at +2 or -2: least-squares classification (Rasmussen & Williams 2006, 6.5).
        Deep among failures the probability goes to a few percent, which counting neighbours does not reach.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from morphling_ray.meta.gaussian import Last, cholesky, matern52, squared_distances

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

OPTIMISTIC = 0.9  # without a prior: most of what a user lists works
_SHARPNESS = 1.5**2  # on squared distances: failure has sharper edges than speed
_SCORE = 2.0  # what an outcome says
_SCORE_SD = 2.0  # of the score around what p0 says
_NOISE_SD = 0.7  # of one outcome: a trial may fail by accident
_PROBIT = 1.7
_CLIP = 0.01  # of what is believed before, and of one outcome's evidence
_LEAST = 1e-6  # of what is believed after: among configurations that hardly work, the likeliest must be known


class Outcomes:
    """Which candidates are known to work, and what that says of others.

    Args:
        place: Candidates in units of length scales, shape `(n, d)`.
        points: Indices of the candidates whose outcome is known, k of them.
        works: Their outcomes.
    """

    def __init__(self, place: FloatArray, points: Sequence[int], works: Sequence[bool]) -> None:
        self.points = np.array(points, int)
        self._place = place
        self._works = np.array(works, bool)
        near = self._near(self.points)
        self._factor = cholesky(near + _NOISE_SD**2 * np.eye(len(near))) if len(near) else near
        self._white = np.linalg.inv(self._factor)
        self._explained: Last[FloatArray] = Last()  # hypotheses that share a place ask in turn

    def probability(self, before: FloatArray, known: FloatArray, at: IntArray) -> FloatArray:
        """Probability that candidates work, shape `(..., m)`.

        Args:
            before: p0 of m candidates, shape `(..., m)`.
            known: p0 of those whose outcome is known, shape `(..., k)`.
            at: Indices of the m candidates.
        """
        if not len(self.points):
            return np.clip(before, _CLIP, 1.0 - _CLIP)
        v = self._explained.of(at, lambda a: np.asarray(self._white @ self._near(a)))  # (k, m)
        mean = _start(before) + (_scores(self._works) - _start(known)) @ self._white.T @ v
        return _probability(mean, np.maximum(_SCORE_SD**2 - (v**2).sum(0), 0.0))

    def log_evidence(self, known: FloatArray) -> FloatArray:
        """Log probability of the outcomes, each predicted from those before it, for p0 of shape `(..., k)`."""
        if not len(self.points):
            return np.zeros(known.shape[:-1])
        gap = _scores(self._works) - _start(known)
        surprise = gap @ self._white.T
        sd = np.diag(self._factor)  # an outcome less its prediction is so many predicted standard deviations
        p = _probability(_scores(self._works) - sd * surprise, np.maximum(sd**2 - _NOISE_SD**2, 0.0))
        p = np.clip(p, _CLIP, 1.0 - _CLIP)
        return np.asarray(np.log(np.where(self._works, p, 1.0 - p)).sum(-1))

    def _near(self, at: IntArray) -> FloatArray:
        gap = squared_distances(self._place[self.points], self._place[at])
        return np.asarray(_SCORE_SD**2 * matern52(_SHARPNESS * gap))


def _start(before: FloatArray) -> FloatArray:
    before = np.clip(before, _CLIP, 1.0 - _CLIP)
    return np.asarray(np.log(before / (1.0 - before)) / _PROBIT)


def _scores(works: BoolArray) -> FloatArray:
    return np.where(works, _SCORE, -_SCORE)


def _probability(mean: FloatArray, variance: FloatArray) -> FloatArray:
    # Where nothing near is known the score is as vague as at the start, and p0 stands: hence the ratio of the two.
    widened = np.sqrt((1.0 + variance) / (1.0 + _SCORE_SD**2))
    p = 1.0 / (1.0 + np.exp(-_PROBIT * mean / np.maximum(widened, 0.5)))
    return np.asarray(np.clip(p, _LEAST, 1.0 - _LEAST))
