from typing import Any

class Saved:
    def __init__(
        self,
        mean: Any,
        inv_std: Any,
        var: Any = None,
        count: Any = None,
        *,
        axis: int | tuple[int, ...] = 1,
        group_size: int | None = None,
        activation: str | None = None,
        negative_slope: float = 0.01,
        mask: Any = None,
        weights: Any = None,
    ) -> None: ...
    @property
    def mean(self) -> Any: ...
    @property
    def inv_std(self) -> Any: ...
    @property
    def var(self) -> Any: ...
    @property
    def count(self) -> Any: ...
    @property
    def axis(self) -> int | tuple[int, ...]: ...
    @property
    def group_size(self) -> int | None: ...
    @property
    def activation(self) -> str | None: ...
    @property
    def negative_slope(self) -> float: ...
    @property
    def mask(self) -> Any: ...
    @property
    def weights(self) -> Any: ...
    def _without_activation(self) -> Saved: ...

def batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    axis: Any,
    eps: Any,
    group_size: Any,
    weights: Any,
    activation: Any,
    negative_slope: Any,
    residual: Any,
    out: Any,
    threads: Any,
    stream: Any,
) -> tuple[Any, Saved]: ...
def batch_norm_backward(
    dy: Any, x: Any, saved: Saved, gamma: Any, need_dresidual: Any, out: Any, threads: Any, stream: Any
) -> tuple[Any, Any, Any, Any]: ...
def batch_norm_inference(
    x: Any,
    mean: Any,
    var: Any,
    gamma: Any,
    beta: Any,
    axis: Any,
    eps: Any,
    activation: Any,
    negative_slope: Any,
    residual: Any,
    out: Any,
    threads: Any,
    stream: Any,
) -> Any: ...
def batch_norm_inference_backward(
    dy: Any,
    x: Any,
    mean: Any,
    var: Any,
    gamma: Any,
    y: Any,
    axis: Any,
    eps: Any,
    activation: Any,
    negative_slope: Any,
    need_dresidual: Any,
    out: Any,
    threads: Any,
    stream: Any,
) -> tuple[Any, Any, Any, Any]: ...
def batch_norm_inplace(
    x: Any,
    gamma: Any,
    beta: Any,
    axis: Any,
    eps: Any,
    group_size: Any,
    weights: Any,
    activation: Any,
    negative_slope: Any,
    threads: Any,
    stream: Any,
) -> Saved: ...
def batch_norm_backward_from_output(
    dy: Any, y: Any, saved: Saved, gamma: Any, beta: Any, out: Any, threads: Any, stream: Any
) -> tuple[Any, Any, Any]: ...
def moments(x: Any, axis: Any, group_size: Any, weights: Any, threads: Any, stream: Any) -> tuple[Any, Any, Any]: ...
def normalize(
    x: Any,
    mean: Any,
    m2: Any,
    count: Any,
    gamma: Any,
    beta: Any,
    axis: Any,
    eps: Any,
    group_size: Any,
    weights: Any,
    activation: Any,
    negative_slope: Any,
    residual: Any,
    out: Any,
    threads: Any,
    stream: Any,
) -> tuple[Any, Saved]: ...
def grad_sums(dy: Any, x: Any, saved: Saved, threads: Any, stream: Any) -> tuple[Any, Any, Any]: ...
def input_grad(
    dy: Any,
    x: Any,
    saved: Saved,
    count: Any,
    sum_dy: Any,
    sum_dy_xmu: Any,
    gamma: Any,
    need_dresidual: Any,
    out: Any,
    threads: Any,
    stream: Any,
) -> tuple[Any, Any, Any, Any]: ...
def batch_norm_jvp(
    tx: Any, x: Any, saved: Saved, gamma: Any, tgamma: Any, tbeta: Any, out: Any, threads: Any
) -> Any: ...
def batch_norm_double_backward(
    ddx: Any, dy: Any, x: Any, saved: Saved, gamma: Any, ddgamma: Any, ddbeta: Any, out: Any, threads: Any
) -> tuple[Any, Any, Any]: ...
def update_running(running_mean: Any, running_var: Any, saved: Saved, momentum: float, unbiased: bool) -> None: ...
def cuda_unavailable_because() -> str | None: ...
def cuda_device_count() -> int: ...
def cuda_device_name(device: int) -> str | None: ...
def clear_cache() -> None: ...
def version() -> str: ...
def isa() -> str | None: ...
def available_isas() -> list[str]: ...
def threading() -> str: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: Any) -> None: ...
