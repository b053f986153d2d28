"""Batch normalization, forward and backward, on NumPy, PyTorch and JAX arrays, without copying them.

On a GPU, CuPy's too.

`axis` is the axis, or tuple of axes, that keeps its own statistics: 1 for NCHW, -1 for NHWC.
"""

from . import cuda, distributed
from ._core import Saved
from ._core import version as _version
from .accumulation import accumulate
from .config import clear_cache, get_num_threads, set_num_threads, show_config
from .conventions import convert_state
from .functional import (
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_from_output,
    batch_norm_inference,
    batch_norm_inference_backward,
    batch_norm_inplace,
    grad_sums,
    input_grad,
    moments,
    normalize,
)
from .higher_order import DoubleGrads, batch_norm_double_backward, batch_norm_jvp
from .layers import BatchNorm
from .population import population_statistics
from .renorm import BatchRenorm
from .running import Cumulative, Exponential, Population, PopulationStatistics, Window
from .statistics import Grads, GradSums, Moments

__version__ = _version()

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "Cumulative",
    "DoubleGrads",
    "Exponential",
    "GradSums",
    "Grads",
    "Moments",
    "Population",
    "PopulationStatistics",
    "Saved",
    "Window",
    "__version__",
    "accumulate",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_from_output",
    "batch_norm_double_backward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "batch_norm_inplace",
    "batch_norm_jvp",
    "clear_cache",
    "convert_state",
    "cuda",
    "distributed",
    "get_num_threads",
    "grad_sums",
    "input_grad",
    "moments",
    "normalize",
    "population_statistics",
    "set_num_threads",
    "show_config",
]
