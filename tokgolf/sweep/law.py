"""The law that bpb follows over sizes and training tokens, and all that the cells leave open of it.

    bpb = (E + A N^-a + B D^-b) * exp(effects + misfit)

N is the weights, D the training tokens (Hoffmann et al. 2022). Effects are one for each level of
what else differs (head, tokenizer, bits) and a parabola in log V (Tao et al. 2024); they are
relative, hence in the exponent. Unlike a least-squares fit, this keeps every law that the cells
allow, weighed by how well it explains them: a few small cells hardly tell E from the powers, and an
interval that leaves that out is far too narrow at a hundred times the size. Sampled by tempering
from the prior (sequential Monte Carlo, Del Moral et al. 2006), effects integrated exactly; the same
cells give the same numbers.

Priors, wide, the same for all: E uniform from 0 to the lowest bpb; exponents around 0.35 (between
0.09 and 1.4 at 95 %: Hoffmann et al. 0.34 and 0.28, Kaplan et al. 2020 0.08 and 0.10 without E);
either power is 0.3 of the lowest bpb amid the cells, give or take a factor e; a level moves bpb by
5 %; a cell lies 0.5 % off, give or take a factor e.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

CENTER = np.array([0.0, np.log(0.35), np.log(0.3), np.log(0.35), np.log(0.3), np.log(0.005)])
SPREAD = np.array([1.0, 0.7, 1.0, 0.7, 1.0, 1.0])  # the first is of a logistic distribution
DRAWS = 2000
MOVES, LAST_MOVES = 20, 100
LARGEST = 50.0  # of a logarithm: nothing overflows, however wild a proposal
LEVELS = (0.025, 0.5, 0.975)
POINTS = 20


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is known of n settings, each a mean over its seeds.

    `sizes` are weights, `tokens` training tokens, `effects` (n, k) the columns of the effects,
    each times its prior standard deviation; `variance` is of log bpb, from seeds alone.
    """

    bpb: Doubles
    sizes: Doubles
    tokens: Doubles
    effects: Doubles
    variance: Doubles

    def without(self, out: NDArray[np.bool_]) -> "Data":
        """The settings that are not marked in `out`."""
        return Data(
            bpb=self.bpb[~out],
            sizes=self.sizes[~out],
            tokens=self.tokens[~out],
            effects=self.effects[~out],
            variance=self.variance[~out],
        )


class Law:
    """Draws from all laws that explain the data, as `draws` (draws, 6), and what they predict."""

    def __init__(self, data: Data, *, draws: int = DRAWS, seed: int = 0) -> None:
        """Sample the laws; takes about a second."""
        self.data = data
        self._lowest = float(data.bpb.min())
        self._size = float(np.exp(np.log(data.sizes).mean()))
        self._tokens = float(np.exp(np.log(data.tokens).mean()))
        values, vectors = np.linalg.eigh(data.effects @ data.effects.T + np.diag(data.variance))
        self._values, self._vectors = np.maximum(values, 0), vectors
        self._random = np.random.default_rng(seed)
        self.draws = self._sample(draws)

    def terms(self) -> dict[str, Doubles]:
        """E, either power amid the cells (bpb), the exponents and the misfit, a draw each."""
        return {
            "E": self._lowest / (1 + np.exp(-self.draws[:, 0])),
            "size": self._lowest * np.exp(self.draws[:, 2]),
            "tokens": self._lowest * np.exp(self.draws[:, 4]),
            "a": np.exp(self.draws[:, 1]),
            "b": np.exp(self.draws[:, 3]),
            "misfit": np.exp(self.draws[:, 5]),
        }

    def at(
        self, sizes: Doubles, tokens: Doubles, effects: Doubles, *, thin: int = 1
    ) -> tuple[Doubles, Doubles]:
        """Mean and variance of log bpb at m settings under every `thin`-th draw, (draws, m) each.

        The variance is of the effects alone: of what a cell would be if its misfit were none.
        """
        some = self.draws[::thin]
        rotated, inverse = self._whitened(some)
        cross = effects @ self.data.effects.T @ self._vectors  # (m, n)
        mean = self._law(some, sizes, tokens) + (rotated * inverse) @ cross.T
        variance = np.square(effects).sum(1) - inverse @ np.square(cross).T
        return mean, np.maximum(variance, 0)

    def predict(
        self, sizes: Doubles, tokens: Doubles, effects: Doubles, *, seed_variance: Doubles
    ) -> Doubles:
        """bpb that runs at m settings may come to: quantiles 0.025, 0.5, 0.975, (3, m).

        `seed_variance` (m,) is of log bpb: the pooled one over the seeds that are averaged.
        """
        mean, variance = self.at(sizes, tokens, effects)
        noise = np.exp(2 * self.draws[:, 5:]) + seed_variance
        return _quantiles(mean, variance + noise, np.ones(mean.shape))

    def worth(
        self,
        target: tuple[float, float, Doubles],
        cells: tuple[Doubles, Doubles, Doubles],
        *,
        seed_variance: float,
        thin: int,
    ) -> Doubles:
        """What share of the variance of log bpb at the target each of m cells would take away.

        As for a linear law: the squared covariance of the two, over the variance that a measurement
        at the cell has. Both are (weights, tokens, effects); the target's effects are (1, k).
        """
        sizes, tokens = (np.append(cells[i], target[i]) for i in (0, 1))
        effects = np.concatenate([cells[2], target[2]])
        mean, variance = self.at(sizes, tokens, effects, thin=thin)
        some = self.draws[::thin]
        inverse = self._whitened(some)[1].mean(0)
        cross = effects @ self.data.effects.T @ self._vectors
        shared = effects[:-1] @ effects[-1] - (cross[:-1] * inverse) @ cross[-1]
        centred = mean - mean.mean(0)
        shared += (centred[:, :-1] * centred[:, -1:]).mean(0)
        total = np.square(centred).mean(0) + variance.mean(0)
        noise = float(np.exp(2 * some[:, 5]).mean()) + seed_variance
        gain: Doubles = np.square(shared) / ((total[:-1] + noise) * total[-1])
        return gain

    def left_out(self) -> Doubles:
        """What each measured setting would be if it had not been measured, quantiles (3, n).

        By weighing the draws (Gelfand et al. 1992), not by fitting n times.
        """
        rotated, inverse = self._whitened(self.draws)
        precision = inverse @ np.square(self._vectors).T  # (draws, n): of one given all others
        shift = ((rotated * inverse) @ self._vectors.T) / precision
        mean, variance = np.log(self.data.bpb) - shift, 1 / precision
        weights = np.exp(0.5 * np.square(shift) / variance) * np.sqrt(variance)
        # Cut as Ionides (2008) has it: without, a single draw may have all the weight.
        limit = weights.mean(0) * np.sqrt(len(weights))
        return _quantiles(mean, variance, np.minimum(weights, limit))

    def _law(self, draws: Doubles, sizes: Doubles, tokens: Doubles) -> Doubles:
        """log bpb without effects, (draws, settings)."""
        floor, a, size, b, token, _ = draws.T[:, :, None]
        x, y = np.log(sizes / self._size), np.log(tokens / self._tokens)
        logs = np.stack([size - np.exp(a) * x, token - np.exp(b) * y])
        powers = np.exp(np.clip(logs, -LARGEST, LARGEST)).sum(0)
        total: Doubles = np.log(self._lowest * (1 / (1 + np.exp(-floor)) + powers))
        return total

    def _whitened(self, draws: Doubles) -> tuple[Doubles, Doubles]:
        """Residuals along independent directions, and the inverse of their variances."""
        residuals = np.log(self.data.bpb) - self._law(draws, self.data.sizes, self.data.tokens)
        return residuals @ self._vectors, 1 / (self._values + np.exp(2 * draws[:, 5:]))

    def _likelihood(self, draws: Doubles) -> Doubles:
        rotated, inverse = self._whitened(draws)
        total: Doubles = 0.5 * (np.log(inverse) - np.square(rotated) * inverse).sum(1)
        return total

    def _sample(self, count: int) -> Doubles:
        """Temper from the prior to the posterior, half of the draws' weight at a time."""
        random, power = self._random, 0.0
        draws = CENTER + SPREAD * random.standard_normal((count, len(CENTER)))
        draws[:, 0] = random.logistic(size=count)
        fit = self._likelihood(draws)
        scale = 1.0
        while power < 1:
            step = _largest_step(fit, 1 - power)
            power += step
            weights = np.exp(step * (fit - fit.max()))
            points = (np.arange(count) + random.random()) / count
            chosen = np.searchsorted(np.cumsum(weights) / weights.sum(), points)
            chosen = np.minimum(chosen, count - 1)
            draws, fit = draws[chosen], fit[chosen]
            for _ in range(MOVES if power < 1 else LAST_MOVES):
                root = np.linalg.cholesky(np.cov(draws.T) + 1e-12 * np.eye(len(CENTER)))
                moved = draws + scale * random.standard_normal(draws.shape) @ root.T
                moved_fit = self._likelihood(moved)
                gain = _prior(moved) - _prior(draws) + power * (moved_fit - fit)
                taken = np.log(random.random(count)) < gain
                draws, fit = np.where(taken[:, None], moved, draws), np.where(taken, moved_fit, fit)
                # A quarter of the proposals taken is best in several dimensions (Roberts 1997).
                scale = float(np.clip(scale * np.exp(taken.mean() - 0.25), 0.05, 3.0))
        return draws[random.permutation(count)]


def _prior(draws: Doubles) -> Doubles:
    """Log density, but for a constant."""
    floor, rest = draws[:, 0], (draws[:, 1:] - CENTER[1:]) / SPREAD[1:]
    total: Doubles = -floor - 2 * np.log1p(np.exp(-floor)) - 0.5 * np.square(rest).sum(1)
    return total


def _largest_step(fit: Doubles, most: float) -> float:
    """How far to temper so that the weights are worth half of the draws, at most `most`."""

    def worth(step: float) -> float:
        weights = np.exp(step * (fit - fit.max()))
        return float(np.square(weights.sum()) / np.square(weights).sum())

    low, high = 0.0, most
    if worth(most) >= len(fit) / 2:
        return most
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if worth(middle) >= len(fit) / 2 else (low, middle)
    return high


def _quantiles(mean: Doubles, variance: Doubles, weights: Doubles) -> Doubles:
    """Quantiles 0.025, 0.5, 0.975 of exp of weighed mixtures of normals, (3, m); all (draws, m).

    Every normal is stood for by 20 values of equal probability.
    """
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / POINTS) for i in range(POINTS)])
    values = mean[:, None] + np.sqrt(variance)[:, None] * normal[:, None]
    values = values.reshape(-1, mean.shape[1])
    order = np.argsort(values, axis=0)
    values = np.take_along_axis(values, order, 0)
    mass = np.take_along_axis(np.repeat(weights, POINTS, 0), order, 0).cumsum(0)
    mass = (mass - mass[:1] / 2) / mass[-1]
    ends = [np.interp(LEVELS, m, v) for m, v in zip(mass.T, values.T, strict=True)]
    found: Doubles = np.exp(np.array(ends)).T
    return found
