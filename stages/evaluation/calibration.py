"""How well confidence agrees with accuracy: functions of confidence, or of the logarithms of probabilities."""

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import softmax

BINS = 15  # of confidence, as in Guo et al. 2017
HOTTEST = 50  # limit of a calibrating temperature; the coldest is 1/50


def calibration(correct: np.ndarray, confidence: np.ndarray) -> pd.DataFrame:
    """Tabulate accuracy against confidence (Guo et al. 2017, *On calibration of modern neural networks*, figure 1).

    Args:
        correct: bool N, true for each image that is classified rightly.
        confidence: float N, the probability of the predicted class, in (0, 1].

    Returns:
        A row for each of 15 equal bins of confidence, (lower, upper], that holds images: columns `lower`, `upper`,
        `images`, `confidence` (mean), `accuracy`.
    """
    edges, bins = np.linspace(0, 1, BINS + 1), _bins(confidence)
    table = pd.DataFrame({"confidence": confidence, "accuracy": correct}).groupby(bins).mean()
    bounds = {"lower": edges[table.index], "upper": edges[table.index + 1], "images": np.bincount(bins)[table.index]}
    return pd.DataFrame({**bounds, **table.reset_index(drop=True)})


def _bins(confidence: np.ndarray) -> np.ndarray:
    """Number of the bin of each image, int N, from 0."""
    return np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)


def calibration_error(bins: pd.DataFrame) -> float:
    """Mean distance between confidence and accuracy over all images, in [0, 1]; 0 is best (Guo et al., equation 3).

    Args:
        bins: as `calibration` returns them.
    """
    return float(np.average((bins.confidence - bins.accuracy).abs(), weights=bins.images))


def expected_error(confidence: np.ndarray) -> float:
    """Calibration error that chance alone gives a model whose every confidence is the chance to be right, in [0, 1].

    Bröcker and Smith (2007, *Increasing the reliability of reliability diagrams*) draw such models at random. Here the
    mean is exact: in a bin the number of right images is a sum of independent draws, whose distribution is the product
    of theirs as polynomials.

    Args:
        confidence: float N, in (0, 1].
    """
    bins, distance = _bins(confidence), 0.0
    for held in np.unique(bins):
        chances = confidence[bins == held]
        parts = [np.array([1 - chance, chance]) for chance in chances]  # of 0 and 1 right images
        while len(parts) > 1:  # pairs, so that the lengths stay alike
            products = [np.convolve(one, other) for one, other in zip(parts[::2], parts[1::2], strict=False)]
            parts = products + parts[2 * len(products) :]
        distance += float(parts[0] @ np.abs(np.arange(len(chances) + 1) - chances.sum()))
    return distance / len(confidence)


def best_temperature(true: np.ndarray, log_probabilities: np.ndarray) -> float | None:
    """Find the temperature by which to divide the logits for the lowest cross-entropy on these images (Guo et al. 2017,
    section 4.2): above 1 for a model that is too sure of itself, 1 is best.

    Args:
        true: int64 N.
        log_probabilities: float64 N×classes; logits give the same.

    Returns:
        None unless it lies between 1/50 and 50; so if every image is right, where colder is always better.
    """
    margins = log_probabilities - np.take_along_axis(log_probabilities, true[:, None], 1)  # N×classes

    def slope(coldness: float) -> float:  # of the cross-entropy, which is convex in 1/temperature
        return float((softmax(coldness * margins, axis=1) * margins).sum(1).mean())

    if not slope(1 / HOTTEST) < 0 < slope(HOTTEST):
        return None
    return 1 / brentq(slope, 1 / HOTTEST, HOTTEST)
