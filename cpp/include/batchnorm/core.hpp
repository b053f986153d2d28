// batchnorm/core.hpp - batch normalization, forward and backward, for engines.
//
// Every function here is noexcept, reports through a Status, works on memory that the caller owns and can run on the
// caller's workspace and threads: nothing prints, aborts or, when a workspace is given, allocates (but OpenMP's
// runtime, where it cannot have a thread). The header needs C++17 and works under -fno-exceptions -fno-rtti. The
// functions are in namespace batchnorm::core; <batchnorm/batchnorm.hpp> has the same ones in namespace batchnorm,
// throwing.
//
// For x with kept axes A (the axes that keep their own statistics; the channel axis in the usual case) and M values
// per statistic, over the other axes (Ioffe and Szegedy, 2015, arXiv:1502.03167):
//
//     mean = sum(x) / M        var = sum((x - mean)^2) / M        inv_std = 1 / sqrt(var + eps)
//     y    = (x - mean) * inv_std * gamma + beta
//
// and for a loss L with dy = dL/dy and xhat = (x - mean) * inv_std:
//
//     dbeta = sum(dy)          dgamma = sum(dy * xhat)
//     dx    = gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)
//
// Options change that as follows (struct Options).
//
// A residual r and an activation f: y = f(... + beta + r). Backward, dy is first taken through f, and that is the
// gradient of r as well.
//
// Weights w >= 0, with W = sum(w) in the place of M:
//
//     mean = sum(w * x) / W    var = sum(w * (x - mean)^2) / W
//     dx   = gamma * inv_std * (dy - w * dbeta / W - w * xhat * dgamma / W)
//
// An element of weight 0 is left out of the statistics, whatever it is (NaN too); y is written there all the same, and
// dy there counts. Where W is 0, mean and var are 0.
//
// group_size cuts axis 0 into groups of so many samples, each with statistics of its own (Hoffer, Hubara and Soudry,
// 2017, arXiv:1705.08741); the last one may be shorter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#if defined(_WIN32)
#define BATCHNORM_API
#else
#define BATCHNORM_API __attribute__((visibility("default")))
#endif

namespace batchnorm {

// ---------------------------------------------------------------------------------------------------------- status

enum class Code : std::uint8_t {
    ok,
    invalid_value,  // a size, an axis, a number, an overlap
    invalid_type,   // an element type that the argument cannot have
    unavailable,    // BATCHNORM_ISA names an instruction set that this processor or build does not have
    device_error,   // what CUDA reports: a launch that failed, a device that is not there
    out_of_memory,  // no workspace was given and none could be allocated
};

// What went wrong: the function, the argument, what it got and what would fit. When a check fails nothing was written.
struct Status {
    Code code = Code::ok;
    char message[255];

    Status() noexcept { message[0] = '\0'; }
    bool ok() const noexcept { return code == Code::ok; }
};

// ----------------------------------------------------------------------------------------------------------- views

inline constexpr int max_rank = 8;

// No call takes more threads: OpenMP would crash on some number of them.
inline constexpr int max_threads = 4096;

// f16 is IEEE half precision, bf16 the upper half of a float; both are computed in float, and rounded once.
enum class DType : std::uint8_t { f32, f64, f16, bf16 };

constexpr std::int64_t item_size(DType dtype) noexcept { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// A tensor as the user has it, not owned. Strides are in bytes, as NumPy's, so that a field of a packed record is a
// view too; they may be negative or, for what is only read, zero. data need not be aligned.
template <class Pointer>
struct BasicView {
    Pointer* data = nullptr;
    DType dtype = DType::f32;
    int rank = 0;
    std::int64_t shape[max_rank] = {};
    std::int64_t stride[max_rank] = {};

    // What may be written may be read.
    template <class Const, class = std::enable_if_t<!std::is_const_v<Pointer> && std::is_same_v<Const, const Pointer>>>
    operator BasicView<Const>() const noexcept {
        BasicView<Const> view;
        view.data = data;
        view.dtype = dtype;
        view.rank = rank;
        for (int d = 0; d < max_rank; ++d) {
            view.shape[d] = shape[d];
            view.stride[d] = stride[d];
        }
        return view;
    }
};
using View = BasicView<const void>;
using MutView = BasicView<void>;

// One value for each combination of the kept axes: a view of their shape, in x's order, of any type. A view of
// rank 0 is one value for all. Default-constructed (no data, rank 0) means absent: gamma 1, beta 0, not wanted.
using Param = View;
using MutParam = MutView;

namespace detail {
template <class Pointer>
BasicView<Pointer> contiguous(Pointer* data, DType dtype, std::initializer_list<std::int64_t> shape) noexcept {
    BasicView<Pointer> view;
    view.data = data;
    view.dtype = dtype;
    // A rank beyond max_rank is kept as it is: the function that gets the view refuses it by name.
    view.rank = static_cast<int>(shape.size());
    if (view.rank > max_rank) return view;
    auto stride = static_cast<std::uint64_t>(item_size(dtype));  // of an impossible shape it may wrap around
    for (int i = view.rank; i-- > 0;) {
        view.shape[i] = shape.begin()[i];
        view.stride[i] = static_cast<std::int64_t>(stride);
        stride *= static_cast<std::uint64_t>(view.shape[i]);
    }
    return view;
}
}  // namespace detail

// Contiguous views in C order: view(data, {32, 64, 56, 56}), and view(data, DType::f16, {32, 64, 56, 56}) of what C++17
// has no type for.
inline View view(const void* data, DType dtype, std::initializer_list<std::int64_t> shape) noexcept {
    return detail::contiguous<const void>(data, dtype, shape);
}
inline MutView view(void* data, DType dtype, std::initializer_list<std::int64_t> shape) noexcept {
    return detail::contiguous<void>(data, dtype, shape);
}
inline View view(const float* data, std::initializer_list<std::int64_t> shape) noexcept {
    return detail::contiguous<const void>(data, DType::f32, shape);
}
inline View view(const double* data, std::initializer_list<std::int64_t> shape) noexcept {
    return detail::contiguous<const void>(data, DType::f64, shape);
}
inline MutView view(float* data, std::initializer_list<std::int64_t> shape) noexcept {
    return detail::contiguous<void>(data, DType::f32, shape);
}
inline MutView view(double* data, std::initializer_list<std::int64_t> shape) noexcept {
    return detail::contiguous<void>(data, DType::f64, shape);
}

// The axes that keep their own statistics: 1 for NCHW, -1 for NHWC, {0, 1} for instance norm; {} keeps none.
struct Axes {
    int count = 0;
    int axis[max_rank] = {};

    Axes(int only) noexcept : count(1), axis{only} {}
    Axes(std::initializer_list<int> list) noexcept {
        for (int one : list) {
            if (count < max_rank) axis[count] = one;
            ++count;  // a count beyond max_rank is refused by the function that gets the axes
        }
    }
};

// ----------------------------------------------------------------------------------------------------- statistics

// What forward writes for backward; members that are absent are not written. double keeps y and dx accurate where
// |mean| is far above the standard deviation; float loses there what a float loses. With group_size the statistics have
// the groups as a leading axis.
//
// mask has a bit for each element, set where the activation let it through: mask_bytes() of them, in x's memory order,
// each contiguous run of elements padded to whole bytes: the channels of a pixel, a plane, or, if these have at most
// 256 elements and no more than 8 for each of up to 19 samples, the planes of a sample. Where gaps part the rows of a
// plane, as in a crop, the kept axes are next to the rows: n, h, c, w for a crop of n, c, h, w. It fits tensors of x's
// shape and strides.
struct MutStats {
    MutParam mean, inv_std, var;  // var is biased: divided by M
    MutParam count;               // M, or W; may be one value, of rank 0, where there are no weights and no groups
    std::uint8_t* mask = nullptr;

    // Not left to braces: those would take a mask in the place of count for the address of one.
    MutStats() noexcept = default;
    MutStats(const MutParam& mean_, const MutParam& inv_std_, const MutParam& var_ = {}, const MutParam& count_ = {},
             std::uint8_t* mask_ = nullptr) noexcept
        : mean(mean_), inv_std(inv_std_), var(var_), count(count_), mask(mask_) {}
};
struct Stats {
    Param mean, inv_std;
    Param count;  // may be absent where there are no weights; else, of rank 0, it must be x's in backward
    const std::uint8_t* mask = nullptr;

    Stats() noexcept = default;
    Stats(const Param& mean_, const Param& inv_std_, const Param& count_ = {},
          const std::uint8_t* mask_ = nullptr) noexcept
        : mean(mean_), inv_std(inv_std_), count(count_), mask(mask_) {}
};

// Statistics that merge: mean, m2 = sum((x - mean)^2) and the count behind them (one value for all, rank 0, or one
// for each statistic).
struct MutMoments {
    MutParam mean, m2, count;
};
struct Moments {
    Param mean, m2, count;
};

// The sums behind dgamma and dbeta, additive over parts of a batch: sum(dy) and sum(dy * (x - mean)).
struct MutGradSums {
    MutParam count, sum_dy, sum_dy_xmu;
};
struct GradSums {
    Param count, sum_dy, sum_dy_xmu;
};

// --------------------------------------------------------------------------------------------------------- options

// The embedder's own threads: run() calls task(state, i) once for each i in [0, tasks), on any threads, and returns
// when all are done. The results do not depend on how many there are.
struct Executor {
    void* context = nullptr;
    int threads = 0;
    void (*run)(void* context, int tasks, void (*task)(void* state, int index), void* state) = nullptr;
};

// Scratch memory of at least workspace_bytes(); any alignment. Without it a function allocates and frees its own.
struct Workspace {
    void* data = nullptr;
    std::size_t bytes = 0;
};

// leaky_relu(v) = v where v > 0, else negative_slope * v; relu is that with a slope of 0.
enum class Activation : std::uint8_t { none, relu, leaky_relu };

// Each function says which of these it takes; the others must be left as they are.
struct Options {
    double eps = 1e-5;  // positive; at least 1e-76 for other data than f64
    int threads = 0;    // 0: as many as the work is worth, at most get_num_threads() or executor.threads; else exactly
                        // as many, to max_threads
    Executor executor{};
    Workspace workspace{};
    Activation activation = Activation::none;
    double negative_slope = 0.01;
    std::int64_t group_size = 0;         // 0: the whole batch is one group
    const View* weights = nullptr;       // of x's shape without the kept axes, or of x's rank and broadcast; float, or
                                         // double for double data
    const View* residual = nullptr;      // like x
    const MutView* dresidual = nullptr;  // like x: the residual's gradient
    const View* activation_output =
        nullptr;  // like x: forward's output, whose sign tells what the activation let through
};

// ------------------------------------------------------------------------------------------------------- functions

// Outputs lie in memory of their own, or exactly where an input does that the function says they may be: what overlaps
// in any other way is refused. Of masks and workspaces only the caller can tell.

// The functions below, for workspace_bytes().
enum class Op : std::uint8_t {
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    batch_norm_inference_backward,
    moments,
    normalize,
    grad_sums,
    input_grad,
    batch_norm_backward_from_output,
    batch_norm_jvp,
    batch_norm_double_backward,
};

namespace core {

// The workspace that op needs for an x of this shape and these strides and any other operands, with the threads that
// options ask for. No memory is looked at here and in mask_bytes(): x and weights need no data yet.
BATCHNORM_API Status workspace_bytes(Op op, const View& x, const Axes& axes, const Options& options,
                                     std::size_t& bytes) noexcept;

// The bytes of the mask of an activation, for tensors of x's shape and strides.
BATCHNORM_API Status mask_bytes(const View& x, const Axes& axes, const Options& options, std::size_t& bytes) noexcept;

// Training forward. out may be x itself. Needs M >= 2; an empty x gives an empty out. Takes activation, residual,
// weights and group_size.
BATCHNORM_API Status batch_norm(const View& x, const Axes& axes, const Param& gamma, const Param& beta,
                                const MutView& out, const MutStats& saved, const Options& options = {}) noexcept;

// Gradients of batch_norm. dx may be dy or x itself; dgamma and dbeta are written unless absent. Takes activation, for
// which it needs saved.mask, dresidual, weights, for which it needs saved.count, and group_size.
BATCHNORM_API Status batch_norm_backward(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                                         const Param& gamma, const MutView& dx, const MutParam& dgamma,
                                         const MutParam& dbeta, const Options& options = {}) noexcept;

// Forward with given statistics: y = (x - mean) / sqrt(var + eps) * gamma + beta. Takes activation and residual.
BATCHNORM_API Status batch_norm_inference(const View& x, const Axes& axes, const Param& mean, const Param& var,
                                          const Param& gamma, const Param& beta, const MutView& out,
                                          const Options& options = {}) noexcept;

// Gradients of batch_norm_inference, in which mean and var are constants: dx = gamma * inv_std * dy. Takes activation,
// for which it needs activation_output and a negative_slope that is not negative, and dresidual.
BATCHNORM_API Status batch_norm_inference_backward(const View& dy, const View& x, const Axes& axes, const Param& mean,
                                                   const Param& var, const Param& gamma, const MutView& dx,
                                                   const MutParam& dgamma, const MutParam& dbeta,
                                                   const Options& options = {}) noexcept;

// Training forward, y in the place of x, for batch_norm_backward_from_output: what that cannot go back through is
// refused before x is overwritten.
BATCHNORM_API Status batch_norm_inplace(const MutView& x, const Axes& axes, const Param& gamma, const Param& beta,
                                        const MutStats& saved, const Options& options = {}) noexcept;

// Gradients of batch_norm from its output: y and the parameters tell what x was. Both take leaky_relu with a positive
// slope, weights and group_size. No gamma may be 0. The error of xhat is about eps * (1 +
// |beta / gamma|), eps being that of y's type.
BATCHNORM_API Status batch_norm_backward_from_output(const View& dy, const View& y, const Axes& axes,
                                                     const Stats& saved, const Param& gamma, const Param& beta,
                                                     const MutView& dx, const MutParam& dgamma, const MutParam& dbeta,
                                                     const Options& options = {}) noexcept;

// Forward-mode derivative of batch_norm: how y changes as x, gamma and beta go in the direction (tx, tgamma, tbeta).
// With xhat = (x - mean) * inv_std,
//
//     ty = gamma * inv_std * (tx - mean(tx) - xhat * mean(tx * xhat)) + tgamma * xhat + tbeta
//
// An absent tgamma or tbeta is 0. out may be tx or x itself. saved is what batch_norm(x) left. Takes group_size.
BATCHNORM_API Status batch_norm_jvp(const View& tx, const View& x, const Axes& axes, const Stats& saved,
                                    const Param& gamma, const Param& tgamma, const Param& tbeta, const MutView& out,
                                    const Options& options = {}) noexcept;

// Gradients of batch_norm_backward, which took dy, x and gamma to dx, dgamma and dbeta: those, with respect to dy, x
// and gamma, of a loss whose gradients with respect to dx, dgamma and dbeta are ddx, ddgamma and ddbeta. With the means
// over each statistic's values p = mean(ddx * xhat), q = mean(dy * xhat), k = mean((ddx - mean(ddx)) * dy) - p * q, and
// M of them,
//
//     ddy     = gamma * inv_std * (ddx - mean(ddx) - xhat * p) + ddgamma * xhat + ddbeta
//     dx      = gamma * inv_std^2 * (xhat * (2 * p * q - k) - q * (ddx - mean(ddx)) - p * (dy - mean(dy)))
//               + ddgamma * inv_std * (dy - mean(dy) - xhat * q)
//     dgamma  = M * inv_std * k
//
// ddy is batch_norm_jvp's ty of (ddx, ddgamma, ddbeta), to the bit. An absent ddgamma or ddbeta is 0; dgamma is written
// unless absent. Each of ddy and dx may be one of ddx, dy and x themselves; both of them, if dx is dy. Takes
// group_size.
BATCHNORM_API Status batch_norm_double_backward(const View& ddx, const View& dy, const View& x, const Axes& axes,
                                                const Stats& saved, const Param& gamma, const Param& ddgamma,
                                                const Param& ddbeta, const MutView& ddy, const MutView& dx,
                                                const MutParam& dgamma, const Options& options = {}) noexcept;

// The two halves of batch_norm, for statistics that come from more than one tensor. Fused and split calls on the
// same tensor give the same bits. moments takes weights and group_size, normalize activation, residual, group_size and,
// only to check them, weights.
BATCHNORM_API Status moments(const View& x, const Axes& axes, const MutMoments& out,
                             const Options& options = {}) noexcept;
BATCHNORM_API Status normalize(const View& x, const Axes& axes, const Moments& moments, const Param& gamma,
                               const Param& beta, const MutView& out, const MutStats& saved,
                               const Options& options = {}) noexcept;

// The two halves of batch_norm_backward, which take what it takes; dresidual is input_grad's.
BATCHNORM_API Status grad_sums(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                               const MutGradSums& out, const Options& options = {}) noexcept;
BATCHNORM_API Status input_grad(const View& dy, const View& x, const Axes& axes, const Stats& saved,
                                const GradSums& sums, const Param& gamma, const MutView& dx, const MutParam& dgamma,
                                const MutParam& dbeta, const Options& options = {}) noexcept;

// The moving averages that inference takes, a batch further, in place:
//
//     running_mean <- (1 - momentum) * running_mean + momentum * mean
//     running_var  <- (1 - momentum) * running_var + momentum * var * M / (M - 1)
//
// as PyTorch and cuDNN have it; others' momentum is 1 - this one, and Keras, Flax and ONNX leave the variance biased:
// unbiased is false. mean, var and count, M, are what batch_norm saved without groups, of running_mean's shape or of
// rank 0, for all; any may be of any type, and exactly where an average is, as these are computed in double element by
// element. var stays biased where M is not above 1, and where M is 0 nothing moves. With weights batch_norm saves
// sum(w); the M that PyTorch's convention means is (sum w)^2 / sum(w^2), which is for the caller to work out.
BATCHNORM_API Status update_running(const MutParam& running_mean, const MutParam& running_var, const Param& mean,
                                    const Param& var, const Param& count, double momentum = 0.1,
                                    bool unbiased = true) noexcept;

BATCHNORM_API Status set_num_threads(int threads) noexcept;

}  // namespace core

// --------------------------------------------------------------------------------------------- process-wide settings

BATCHNORM_API const char* version() noexcept;

// The instruction set in use ("avx512"): the best that the processor has, or the one that BATCHNORM_ISA names; null,
// and `unavailable` from every function that computes, if BATCHNORM_ISA names one that is not there.
BATCHNORM_API const char* isa() noexcept;
// The i-th instruction set that this processor and build can run, best first; null past the end.
BATCHNORM_API const char* available_isa(int i) noexcept;

// The default thread count: core::set_num_threads(), else BATCHNORM_NUM_THREADS, else OMP_NUM_THREADS, the last two no
// more than the processor affinity and the cgroup quota allow.
BATCHNORM_API int get_num_threads() noexcept;

// "OpenMP" or "POSIX threads".
BATCHNORM_API const char* threading() noexcept;

}  // namespace batchnorm
