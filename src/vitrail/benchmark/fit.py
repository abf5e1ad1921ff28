"""Does memory grow with the tokens or with their square? A fit of the peaks says."""

from collections.abc import Mapping

import numpy as np

from .results import TokenFit

__all__ = ["fit_peaks"]


def fit_peaks(peaks: Mapping[int, int | None]) -> TokenFit | None:
    """constant + linear · N + quadratic · N² through the peaks, relative errors least, no part below zero.

    None for fewer than three peaks, where three parts fit anything.

    Example:
        >>> found = fit_peaks({n: 1000 * n for n in (200, 600, 1000, 4000)})
        >>> round(found.linear), found.dominant, f"{found.linear_share:.3f}"
        (1000, 'linear', '1.000')
        >>> fit_peaks({n: 500 * n + 5 * n**2 for n in (200, 600, 1000, 4000)}).dominant
        'quadratic'
    """
    from scipy.optimize import nnls

    known = {tokens: peak for tokens, peak in peaks.items() if peak is not None and peak > 0}
    if len(known) < 3:
        return None
    tokens = np.array(sorted(known), dtype=float)
    peak = np.array([known[int(number)] for number in tokens], dtype=float)
    most = tokens[-1]
    parts = np.stack([np.ones_like(tokens), tokens / most, (tokens / most) ** 2], axis=1)
    # Divided by the peak, so that the smallest counts as much as the largest; by the most tokens, so that the parts
    # are of one size.
    constant, linear, quadratic = nnls(parts / peak[:, None], np.ones_like(peak))[0].tolist()
    whole = constant + linear + quadratic
    return TokenFit(constant, linear / most, quadratic / most**2, linear / whole, quadratic / whole)
