"""Where the bit of an element is in Saved.mask, worked out from x's shape and strides as the docs say."""

import numpy as np
import reference


def packed(through, x, axis=1, group_size=None):
    """The bytes of the mask of x, of which `through` says what an activation let through."""
    kept = reference.kept_axes(x, axis)
    if group_size is None:
        return _bytes(through, x.strides, kept)
    parts, whole = [], x.shape[0] // group_size
    # Whole groups, in two axes, and then a shorter last one.
    for first, groups, samples in ((0, whole, group_size), (whole * group_size, 1, x.shape[0] % group_size)):
        if groups * samples == 0:
            continue
        part = through[first : first + groups * samples].reshape(groups, samples, *x.shape[1:])
        strides = (samples * x.strides[0], *x.strides)
        parts.append(_bytes(part, strides, (0, *(a + 1 for a in kept))))
    return np.concatenate(parts)


def _bytes(through, strides, kept):
    """Rows of elements: one run of like axes (kept or reduced), the fastest in memory. The other axes follow outside
    of it, the runs of kept axes next to the fastest reduced ones last."""
    axes = [a for a in range(through.ndim) if through.shape[a] > 1]
    axes.sort(key=lambda a: (strides[a] == 0, abs(strides[a])), reverse=True)
    runs = []  # from the fastest
    for a in reversed(axes):
        chained = runs and strides[a] == strides[runs[-1][0]] * through.shape[runs[-1][0]]
        if chained and (a in kept) == (runs[-1][0] in kept):
            runs[-1].insert(0, a)
        else:
            runs.append([a])
    if not runs:
        return np.packbits(through.reshape(-1), bitorder="little")
    row = runs[0]
    kept_runs = [run for run in runs if run[0] in kept]
    if row[0] in kept:
        channel = []
        inside = row
    else:
        channel = kept_runs[0] if kept_runs else []
        inside = row
    groups = [a for a in axes if a in kept and a not in channel and a not in inside]
    outer = [a for a in axes if a not in kept and a not in inside]
    plane = int(np.prod([through.shape[a] for a in inside]))
    samples = int(np.prod([through.shape[a] for a in outer]))
    small = plane <= 256 and (samples >= 20 or plane <= 8 * samples)
    if channel and len(runs) > 1 and runs[1] is channel and small:
        channel, inside = [], channel + inside  # small planes and their channels make one row
    ones = [a for a in range(through.ndim) if a not in axes]
    rows = through.transpose(ones + groups + outer + channel + inside)
    length = int(np.prod([through.shape[a] for a in inside]))
    return np.packbits(rows.reshape(-1, length), axis=1, bitorder="little").reshape(-1)
