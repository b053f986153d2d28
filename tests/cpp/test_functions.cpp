// Every function against the reference, over shapes, kept axes, layouts and types.
#include "calls.hpp"
#include "check.hpp"

namespace {

constexpr Layout param_layouts[] = {Layout::contiguous, Layout::reversed, Layout::every_second, Layout::misaligned,
                                    Layout::transposed};
enum class Given { both, neither, gamma_only, beta_only, scalars };
constexpr Given given[] = {Given::both, Given::neither, Given::gamma_only, Given::beta_only, Given::scalars};

// A result of any type: all but float64 round once more.
void check_close(const char* what, const Tensor& got, const reference::Expected& expected) {
    for (std::size_t i = 0; i < got.size(); ++i) {
        const double value = got.get(i), wanted = expected.value[i];
        const double exact = expected.bound[i];
        const double bound = exact + reference::storage_error(got.dtype(), std::fabs(wanted) + exact);
        if (std::fabs(value - wanted) <= bound) continue;
        char detail[160];
        std::snprintf(detail, sizeof detail, "%s[%zu] is %.17g, expected %.17g within %.3g", what, i, value, wanted,
                      bound);
        CHECK_DETAIL(false, detail);
        return;
    }
    CHECK(true);
}

void run_and_check_status(Op op, Example& example, const Call& call) {
    example.reset();
    const batchnorm::Status status = run(op, call);
    CHECK_DETAIL(status.ok(), status.message);
    CHECK_DETAIL(example.padding_untouched(), name(op));
}

void check_functions(const Setup& setup, Given params) {
    Example e(setup);
    context = text(setup) + " params " + std::to_string(static_cast<int>(params));
    Call call = e.call();
    const double u = reference::unit_roundoff(setup.dtype);

    Values gamma = e.gamma.values(), beta = e.beta.values(), tgamma = e.tgamma.values(), tbeta = e.tbeta.values();
    const Tensor two = Tensor(DType::f32, {}).fill({2}), three = Tensor(DType::f64, {}).fill({3});
    if (params == Given::neither || params == Given::beta_only) {
        call.gamma = call.tgamma = {};
        gamma.assign(gamma.size(), 1);
        tgamma.assign(gamma.size(), 0);
    }
    if (params == Given::neither || params == Given::gamma_only) {
        call.beta = call.tbeta = {};
        beta.assign(beta.size(), 0);
        tbeta.assign(beta.size(), 0);
    }
    if (params == Given::scalars) {
        call.gamma = call.tbeta = two.view();
        call.beta = call.tgamma = three.view();
        gamma.assign(gamma.size(), 2);
        beta.assign(beta.size(), 3);
        tgamma.assign(gamma.size(), 3);
        tbeta.assign(beta.size(), 2);
    }

    const Values x = e.x.values(), dy = e.dy.values();
    const reference::Statistics& s = e.statistics;
    const reference::Expected y = reference::normalize(e.problem, x, s, gamma, beta, u);
    const reference::Expected dx =
        reference::input_grad(e.problem, dy, x, s.mean.value, s.inv_std.value, e.sums, gamma, u);
    const reference::Expected dgamma = reference::dgamma(e.sums, s.inv_std.value);
    reference::Expected count(e.problem.statistics);
    count.value.assign(count.value.size(), e.problem.values);
    const bool trains = e.problem.values > 1;

    const auto check_forward = [&](bool with_statistics) {
        check_close("y", e.out, y);
        if (!with_statistics) return;
        check_close("mean", e.result[0], s.mean);
        check_close("inv_std", e.result[1], s.inv_std);
        check_close("var", e.result[2], s.var);
    };
    const auto check_backward = [&](const reference::Expected& expected) {
        check_close("dx", e.out, expected);
        check_close("dgamma", e.result[0], dgamma);
        check_close("dbeta", e.result[1], e.sums.dy);
    };

    if (trains) {
        run_and_check_status(Op::batch_norm, e, call);
        check_forward(true);
        run_and_check_status(Op::batch_norm_backward, e, call);
        check_backward(dx);

        const Values &mean = s.mean.value, &inv_std = s.inv_std.value, ddx = e.ddx.values();
        run_and_check_status(Op::batch_norm_jvp, e, call);
        check_close("ty", e.out, reference::jvp(e.problem, dy, x, mean, inv_std, e.sums, gamma, tgamma, tbeta, u));
        run_and_check_status(Op::batch_norm_double_backward, e, call);
        const reference::GradSums v_sums =
            reference::grad_sums(e.problem, ddx, x, mean, Example::sum_error(setup.dtype));
        check_close("ddy", e.ddy, reference::jvp(e.problem, ddx, x, mean, inv_std, v_sums, gamma, tgamma, tbeta, u));
        const reference::DoubleGrads grads = reference::double_backward(
            e.problem, ddx, dy, x, mean, inv_std, e.sums, v_sums, gamma, tgamma, u, Example::sum_error(setup.dtype));
        check_close("double backward's dx", e.out, grads.dx);
        check_close("double backward's dgamma", e.result[0], grads.dgamma);
    }
    run_and_check_status(Op::normalize, e, call);
    check_forward(true);
    run_and_check_status(Op::batch_norm_inference, e, call);
    check_forward(false);
    run_and_check_status(Op::moments, e, call);
    check_close("mean", e.result[0], s.mean);
    check_close("m2", e.result[1], s.m2);
    check_close("count", e.result[2], count);
    run_and_check_status(Op::grad_sums, e, call);
    check_close("sum_dy", e.result[0], e.sums.dy);
    check_close("sum_dy_xmu", e.result[1], e.sums.dy_xmu);
    check_close("count", e.result[2], count);
    run_and_check_status(Op::input_grad, e, call);
    check_backward(dx);
    run_and_check_status(Op::batch_norm_inference_backward, e, call);
    check_backward(reference::scale(e.problem, dy, s.inv_std.value, gamma, u));
}

// Cycles through the variants that are not looped over, with periods that share no factor.
void check_variants(Setup setup) {
    static std::size_t n = 0;
    ++n;
    setup.gamma = all_dtypes[n % std::size(all_dtypes)];
    setup.params = param_layouts[n / 2 % std::size(param_layouts)];
    setup.result = all_dtypes[n / 3 % std::size(all_dtypes)];
    // A count of more is infinite there.
    if (setup.result == DType::f16 && product(setup.shape) > 60000) setup.result = DType::bf16;
    check_functions(setup, given[n / 7 % std::size(given)]);
}

std::vector<std::vector<int>> none_one_or_two(int rank) {
    std::vector<std::vector<int>> all = {{}};
    for (int i = 0; i < rank; ++i) all.push_back({i - (i % 2 ? rank : 0)});  // every other one counted from the end
    for (int i = 0; i < rank; ++i)
        for (int k = i + 1; k < rank; ++k) all.push_back({k, i});
    return all;
}

void small_arrays_of_every_layout() {
    for (const Shape& shape : {Shape{7}, {5, 3}, {4, 3, 5}, {3, 4, 5, 2}, {2, 3, 4, 3, 2}, {3, 1, 4, 1, 5}})
        for (const std::vector<int>& axes : none_one_or_two(static_cast<int>(shape.size())))
            for (std::size_t x = 0; x < std::size(layouts); ++x)
                for (const DType dtype : all_dtypes) {
                    static std::size_t n = 0;
                    n += 7;  // dy and out: now as x, now otherwise
                    const bool alike = n % 3 == 0 && x < std::size(writable_layouts);
                    const Layout dy = alike ? layouts[x] : layouts[n % std::size(layouts)];
                    const Layout out = alike ? layouts[x] : writable_layouts[n / 3 % std::size(writable_layouts)];
                    if (quick() && n % 3 == 1) continue;
                    check_variants({shape, axes, dtype, layouts[x], dy, out});
                }
}

// Vector widths and their tails, along the plane and along the channels.
void channels_and_planes() {
    constexpr int64_t planes[] = {1, 3, 7, 15, 16, 17, 49, 196};
    Shape channel_counts(70);
    std::iota(channel_counts.begin(), channel_counts.end(), 1);
    channel_counts.insert(channel_counts.end(), {251, 322});
    std::size_t n = 0;
    for (const int64_t channels : channel_counts)
        for (const DType dtype : all_dtypes) {
            if (quick() && channels % 5 != 1) continue;
            const int64_t plane = planes[n++ % std::size(planes)];
            check_variants({{3, channels, plane}, {1}, dtype});
            check_variants({{3, plane, channels}, {-1}, dtype});
            check_variants(
                {{2, channels, plane}, {1}, dtype, Layout::channels_last, Layout::contiguous, Layout::channels_last});
        }
    for (const int64_t plane : planes) {
        check_variants({{3, 5, plane}, {1}});
        check_variants({{3, plane, 5}, {-1}});
    }
}

// More than one chunk, tile or block of channels.
void large_arrays() {
    if (quick()) return;
    for (const Setup& setup : {
             Setup{{2, 2, 40000}, {1}},  // cut planes
             Setup{{40, 3, 1000}, {1}},  // cut batch
             Setup{{40, 3, 1000}, {1}, DType::f64, Layout::transposed, Layout::contiguous, Layout::records},
             Setup{{8000, 5}, {-1}},  // cut rows
             Setup{{8000, 5}, {-1}, DType::f64, Layout::every_second, Layout::transposed, Layout::padded},
             Setup{{300, 260}, {-1}},
             Setup{{300, 260}, {-1}, DType::f32, Layout::padded, Layout::reversed, Layout::misaligned},
             Setup{{3, 5000}, {-1}},  // wide rows
             Setup{{3, 5000}, {-1}, DType::f32, Layout::records, Layout::records, Layout::records},
             Setup{{6, 5, 300, 3}, {0, 3}},                                                              // groups
             Setup{{300, 3, 2}, {1}, DType::f64, Layout::padded, Layout::contiguous, Layout::reversed},  // folded
             Setup{{17, 33, 49}, {1}},                                                                   // planes
             Setup{{17, 33, 49}, {1}, DType::f32, Layout::misaligned, Layout::misaligned, Layout::misaligned},
             Setup{{17, 33, 49}, {1}, DType::f64, Layout::records, Layout::transposed, Layout::padded},
             Setup{{9, 37, 400}, {1}, DType::f64},  // in turns
             Setup{{9, 37, 1100}, {1}, DType::f16},
             Setup{{9, 37, 1100}, {1}, DType::bf16, Layout::misaligned, Layout::padded, Layout::misaligned},
             Setup{{2, 2, 40000}, {1}, DType::bf16, Layout::every_second},
             Setup{{2, 2, 40000}, {1}, DType::f16},
             Setup{{8000, 5}, {-1}, DType::f16, Layout::every_second, Layout::transposed, Layout::padded},
             Setup{{300, 260}, {-1}, DType::bf16},
             Setup{{17, 33, 49}, {1}, DType::f16, Layout::records, Layout::transposed, Layout::padded},
             Setup{{9, 37, 400}, {1}, DType::f64, Layout::misaligned, Layout::padded, Layout::misaligned},
         })
        check_variants(setup);
}

}  // namespace

int main() {
    small_arrays_of_every_layout();
    channels_and_planes();
    large_arrays();
    return report();
}
