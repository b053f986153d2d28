"""What other libraries mean by momentum, eps, variance and state: each named, and states converted between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .arguments import named_arrays, number, numbers, whole_numbers
from .running import Exponential, scale_factor

Convention = Literal["torch", "keras", "flax", "onnx", "caffe", "matconvnet", "tensorflow"]
Array = npt.NDArray[Any]

OWN = ("weight", "bias", "running_mean", "running_var")
_REMEMBERED = ("window_", "population_", "cumulative_batches")


@dataclass(frozen=True)
class Rules:
    """A library's defaults, whether its running variance is unbiased, and its names of gamma, beta, mean and var."""

    momentum: float
    sense: Literal["torch", "keras"]
    eps: float
    unbiased: bool
    names: tuple[str, ...]

    def policy(self, name: str, momentum: float, eps: float) -> Exponential:
        """The library's exponential average."""
        return Exponential(momentum, self.sense, name == "caffe", eps if name == "matconvnet" else 0.0)


RULES: dict[str, Rules] = {
    "torch": Rules(0.1, "torch", 1e-5, True, OWN),
    "keras": Rules(0.99, "keras", 1e-3, False, ("gamma", "beta", "moving_mean", "moving_variance")),
    "flax": Rules(0.99, "keras", 1e-5, False, ("scale", "bias", "mean", "var")),
    "onnx": Rules(0.9, "keras", 1e-5, False, ("scale", "B", "input_mean", "input_var")),
    # The blobs of BatchNorm, sums of which scale_factor is the weight, and of the Scale layer after it.
    "caffe": Rules(0.999, "keras", 1e-5, True, ("scale", "bias", "mean", "variance")),
    # moments is (..., 2): the mean and sigma = sqrt(var + eps).
    "matconvnet": Rules(0.1, "torch", 1e-4, False, ("multipliers", "biases", "moments", "moments")),
    # The fused operation, whose running variance is unbiased.
    "tensorflow": Rules(0.99, "keras", 1e-3, True, ("gamma", "beta", "moving_mean", "moving_variance")),
}


def rules(convention: str, argument: str = "convention") -> Rules:
    """The rules of a convention, or a ValueError that names the argument."""
    if not isinstance(convention, str) or convention not in RULES:
        raise ValueError(f"{argument} {convention!r} is unknown, expected one of {', '.join(get_args(Convention))}")
    return RULES[convention]


def convert_state(
    state: Mapping[str, Any], from_: Convention, to: Convention, count: Any = None, *, eps: float = 1e-4
) -> dict[str, Array]:
    """The state of a batch norm layer of one library as that of another.

    ===========  ==========  ======  ===========  ===============  =========
    convention   gamma       beta    mean         variance         variance
    ===========  ==========  ======  ===========  ===============  =========
    torch        weight      bias    running_mean running_var      unbiased
    keras        gamma       beta    moving_mean  moving_variance  biased
    flax         scale       bias    mean         var              biased
    onnx         scale       B       input_mean   input_var        biased
    caffe        scale       bias    mean         variance         unbiased
    matconvnet   multipliers biases  moments[..., 0], [..., 1]     biased
    tensorflow   gamma       beta    moving_mean  moving_variance  unbiased
    ===========  ==========  ======  ===========  ===============  =========

    Caffe's mean and variance are sums, scale_factor times the statistics, of 16-bit ones in float32; to Caffe,
    scale_factor is that after num_batches_tracked batches, else its limit 1 / (1 - 0.999). MatConvNet's second moment
    is sqrt(var + eps), with eps the layer's there; it is float64, since var is found again from a difference. Flax's
    two collections may be nested in a state. PyTorch's names are those of `BatchNorm.state_dict` with every convention,
    and from_ may be any with them: it then tells whether the variance is biased; what a policy remembers is left out.

    Where one variance is biased and the other is not, count is needed: the number of values behind each statistic of a
    batch, N * H * W for NCHW. The statistics are then those that the other library would have, and inference differs by
    the factor between the two variances; with ``count=math.inf`` variances stay as they are, and a layer of the same
    eps (which no state has) infers the same. There and back gives each value within 2 ulp (variances by way of
    MatConvNet: 2 ulp of var + eps, times M / (M - 1)). A value that its type cannot hold then is a ValueError.
    """
    source, target = rules(from_, "from_"), rules(to, "to")
    if not (np.isfinite(number("eps", eps)) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    own = {key: value for key, value in to_own(state, from_, eps).items() if not _is_remembered(key)}
    if unknown := own.keys() - {*OWN, "num_batches_tracked", "scale_factor"}:
        raise ValueError(
            f"state has unknown keys {sorted(unknown)}, expected those of {from_}: {_expected(from_)}"
            + nesting(own[key] for key in unknown)
        )
    if missing := {"running_mean", "running_var"} - own.keys():
        raise ValueError(f"state lacks {sorted(missing)} in {from_}'s names, expected {_expected(from_)}")
    names = _names_of(state, source)
    own = {key: numbers(names.get(key, key), value) for key, value in own.items()}
    mean, var = own["running_mean"], own["running_var"]
    for key in OWN:
        if key in own and own[key].shape != mean.shape:
            raise ValueError(
                f"{names[key]} has shape {own[key].shape}, expected {mean.shape}, that of {names['running_mean']}"
            )
    if (var < 0).any():
        raise ValueError("variances of state must not be negative")
    batches = _batches(own)
    wide = _wide(var)
    if source.unbiased != target.unbiased:
        wide = wide * _bias_factor(var.shape, target.unbiased, count, from_, to)

    converted = {name: own[key].copy() for name, key in zip(target.names[:2], OWN[:2], strict=True) if key in own}
    if to == "caffe":
        factor = _caffe_factor(own, batches)
        converted["mean"] = _round(names["running_mean"], _wide(mean) * factor, mean, least=4)
        converted["variance"] = _round(names["running_var"], wide * factor, var, least=4)
        converted["scale_factor"] = np.array([factor], np.float64)
    elif to == "matconvnet":
        converted["moments"] = np.stack([_wide(mean), np.sqrt(wide + eps)], axis=-1).astype(np.float64)
    else:
        converted[target.names[2]], converted[target.names[3]] = mean.copy(), _round(names["running_var"], wide, var)
    if to == "torch" and "num_batches_tracked" in own:
        converted["num_batches_tracked"] = own["num_batches_tracked"].copy()
    return converted


def to_own(state: Mapping[str, Any], convention: str, eps: float, prefix: str = "") -> dict[str, Any]:
    """A state of a convention under this library's names, without prefix; biased variances stay so.

    A state that has them already is left as it is, and so are keys that the convention does not have.
    """
    items = dict(_flat(named_arrays("state", state), prefix))
    if convention == "torch" or {"running_mean", "running_var"} & items.keys():
        return items
    names = RULES[convention].names
    own = {key: items.pop(name) for key, name in zip(OWN[:2], names[:2], strict=True) if name in items}
    if convention == "matconvnet":
        if "moments" in items:
            moments = numbers(f"{prefix}moments", items.pop("moments"))
            if moments.shape[-1:] != (2,):
                raise ValueError(f"moments has shape {moments.shape}, expected (C, 2): mean and sqrt(var + eps)")
            own["running_mean"] = moments[..., 0]
            own["running_var"] = np.maximum(_wide(moments[..., 1]) ** 2 - eps, 0)
        return {**own, **items}
    statistics = {key: items.pop(name) for key, name in zip(OWN[2:], names[2:], strict=True) if name in items}
    if convention == "caffe" and statistics:
        if "scale_factor" not in items:
            raise ValueError("state lacks 'scale_factor', expected Caffe's third blob beside mean and variance")
        factor = _wide(numbers(f"{prefix}scale_factor", items["scale_factor"])).reshape(-1)
        if factor.shape != (1,) or not 0 <= factor[0] < np.inf:
            raise ValueError(f"scale_factor must be one number, finite and not negative, got {factor}")
        for key, value in statistics.items():
            name = prefix + names[OWN.index(key)]
            sums = numbers(name, value)
            # Caffe takes the statistics as 0 where nothing was added up yet.
            statistics[key] = _round(name, _wide(sums) / factor[0] if factor[0] else np.zeros(sums.shape), sums)
            items["scale_factor"] = np.full(sums.shape, factor[0], np.float64)
    return {**own, **statistics, **items}


def _flat(state: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key in state:
        if not key.startswith(prefix):
            continue
        value = state[key]
        if isinstance(value, Mapping):  # Flax's params and batch_stats
            yield from value.items()
        else:
            yield key[len(prefix) :], value


def nesting(values: Iterable[Any]) -> str:
    """What to add to an error where a state holds such values: how states may be nested, if they are."""
    if not any(isinstance(value, Mapping) for value in values):
        return ""
    return "; of a Flax tree, {'params': tree['params'][name], 'batch_stats': tree['batch_stats'][name]} is one layer's"


def _names_of(state: Mapping[str, Any], source: Rules) -> dict[str, str]:
    """What the state itself calls this library's gamma, beta, mean and variance."""
    present = {name for name, _ in _flat(state, "")}
    return {key: name if name in present else key for key, name in zip(OWN, source.names, strict=True)}


def _bias_factor(shape: tuple[int, ...], unbiased: bool, count: Any, from_: str, to: str) -> Array:
    """M / (M - 1), or its inverse."""
    kinds = ("biased", "unbiased") if unbiased else ("unbiased", "biased")
    if count is None:
        raise ValueError(
            f"count is needed from {from_}'s {kinds[0]} to {to}'s {kinds[1]} variance: the number of values behind "
            "each statistic of a batch, N * H * W for NCHW"
        )
    m = _wide(numbers("count", count))
    if m.shape not in ((), (1,), shape):
        raise ValueError(f"count has shape {m.shape}, expected one number or {shape}, that of the variances")
    if not (m > 1).all():
        raise ValueError(f"count must be above 1, got {count}")
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(m), 1, m / (m - 1) if unbiased else (m - 1) / m)


def _batches(own: Mapping[str, Array]) -> int:
    batches = own.get("num_batches_tracked", np.zeros((), np.int64))
    whole_numbers("num_batches_tracked", batches)
    if batches.size != 1:
        raise ValueError(f"num_batches_tracked has shape {batches.shape}, expected ()")
    return int(batches.item())


def _caffe_factor(own: Mapping[str, Array], batches: int) -> float:
    if "scale_factor" in own:
        return float(own["scale_factor"].max(initial=0)) or 1.0
    keep = RULES["caffe"].momentum
    return scale_factor(keep, batches) if batches > 0 else 1 / (1 - keep)


def _wide(array: Array) -> Array:
    return array.astype(np.longdouble)  # so that each conversion rounds once, at its end


def _round(name: str, array: Array, like: Array, least: int = 2) -> Array:
    """In the type of `like`, which the array was made of, or float32 if that has fewer than `least` bytes."""
    dtype = np.dtype(np.float64) if like.dtype.kind in "iub" or like.dtype == np.longdouble else like.dtype
    dtype = dtype if dtype.itemsize >= least else np.dtype(np.float32)
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    if (np.isfinite(like) & ~np.isfinite(rounded)).any():
        raise ValueError(f"{name} overflows {dtype} when it is converted, expected a wider type or smaller values")
    return rounded


def _is_remembered(key: str) -> bool:
    return key.startswith(_REMEMBERED)


def _expected(convention: str) -> str:
    names = dict.fromkeys((*RULES[convention].names, *(("scale_factor",) if convention == "caffe" else ())))
    return ", ".join(names)
