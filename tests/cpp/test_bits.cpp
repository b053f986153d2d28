// Results that must agree to the bit: fused and split calls, out of place and in place, packed and direct operands.
#include "calls.hpp"
#include "check.hpp"

namespace {

const std::vector<Setup>& setups() {
    static const std::vector<Setup> all = [] {
        std::vector<Setup> some = {
            {{6, 16, 49}, {1}},
            {{6, 49, 16}, {-1}},
            {{5, 33}, {1}, DType::f64},
            {{4, 6, 9, 5}, {0, 1}},
            {{4, 9, 6, 5}, {0, 2}, DType::f64},
            {{6, 16, 49}, {1}, DType::f32, Layout::channels_last, Layout::records, Layout::transposed},
            {{17, 5, 9}, {1}},   // folded
            {{9, 19, 22}, {1}},  // small planes
            {{2, 11, 7, 33}, {0, 2}, DType::f64},
            {{6, 16, 49}, {1}, DType::f16},
            {{6, 49, 16}, {-1}, DType::bf16},
            {{37, 5, 9}, {1}, DType::f16, Layout::channels_last, Layout::records, Layout::transposed},
        };
        if (!quick())
            some.insert(some.end(), {{{40, 3, 1000}, {1}},
                                     {{1, 2, 33000}, {1}, DType::f64},
                                     {{8000, 5}, {1}},
                                     {{300, 130}, {1}},
                                     {{2, 5000}, {1}},
                                     {{21, 50, 49}, {1}},
                                     {{40, 3, 1000}, {1}, DType::bf16},
                                     {{1, 2, 33000}, {1}, DType::f16},
                                     {{300, 130}, {1}, DType::f16},
                                     {{2, 5000}, {1}, DType::bf16},
                                     {{9, 37, 1100}, {1}, DType::f16},  // read and written in turns
                                     {{1, 401, 600}, {1}},              // row by row, where L3 is quick
                                     {{1, 401, 600}, {1}, DType::f64},
                                     {{9, 37, 400}, {1}, DType::f64}});
        return some;
    }();
    return all;
}

// batch_norm is moments then normalize; batch_norm_backward is grad_sums then input_grad.
void fused_and_split() {
    for (const Setup& setup : setups()) {
        context = text(setup);
        Example e(setup);
        Call call = e.call();
        CHECK(run(Op::batch_norm, call).ok());
        const std::vector<unsigned char> forward = e.written();
        e.reset();
        CHECK(run(Op::moments, call).ok());
        const Tensor mean = e.result[0], m2 = e.result[1], count = e.result[2];
        call.mean = mean.view();
        call.m2 = m2.view();
        call.count = count.view();
        e.reset();
        CHECK(run(Op::normalize, call).ok());
        CHECK(e.written() == forward);

        call = e.call();
        e.reset();
        CHECK(run(Op::batch_norm_backward, call).ok());
        const std::vector<unsigned char> backward = e.written();
        CHECK(run(Op::grad_sums, call).ok());
        const Tensor sum_dy = e.result[0], sum_dy_xmu = e.result[1], values = e.result[2];
        call.sum_dy = sum_dy.view();
        call.sum_dy_xmu = sum_dy_xmu.view();
        call.count = values.view();
        e.reset();
        CHECK(run(Op::input_grad, call).ok());
        CHECK(e.written() == backward);
    }
}

void in_place() {
    for (Setup setup : setups()) {
        setup.dy = setup.out = setup.x;
        for (const Op op : all_ops) {
            Example e(setup);
            Call call = e.call();
            if (op == Op::moments || op == Op::grad_sums) continue;
            context = std::string(name(op)) + " in place " + text(setup);
            CHECK(run(op, call).ok());
            const std::vector<unsigned char> expected = e.out.bytes();
            const bool takes_dy = op != Op::batch_norm && op != Op::normalize && op != Op::batch_norm_inference;
            for (const bool over_dy : {false, true}) {
                if (over_dy && !takes_dy) continue;
                Example other(setup);
                Call same = other.call();
                Tensor& target = over_dy ? other.dy : other.x;
                same.out = target.mut();
                CHECK(run(op, same).ok());
                CHECK(target.bytes() == expected);
            }
        }
    }
}

// x in one memory order, and so one box: what lies between its elements, and how dy and out lie, makes no difference.
void packed_and_direct() {
    struct Variant {
        Layout x, dy, out;
    };
    for (Setup setup : setups()) {
        setup.x = setup.dy = setup.out = Layout::contiguous;
        Example direct(setup);
        for (const Variant& variant : {Variant{Layout::misaligned, Layout::misaligned, Layout::misaligned},
                                       {Layout::every_second, Layout::padded, Layout::every_second},
                                       {Layout::records, Layout::records, Layout::records},
                                       {Layout::contiguous, Layout::transposed, Layout::channels_last}}) {
            setup.x = variant.x;
            setup.dy = variant.dy;
            setup.out = variant.out;
            Example packed(setup);
            for (const Op op : all_ops) {
                context = std::string(name(op)) + " " + text(setup);
                direct.reset();
                packed.reset();
                CHECK(run(op, direct.call()).ok());
                CHECK(run(op, packed.call()).ok());
                CHECK(packed.written() == direct.written());
            }
        }
    }
}

// Outputs too large for the caches may be written past them. One sample after the other they are not.
void whole_and_by_sample(int64_t rows, int64_t row) {
    constexpr int64_t samples = 20;
    const int64_t per_sample = rows * row;
    const auto total = static_cast<std::size_t>(samples * per_sample);
    std::vector<float> x(total), dy(total), whole(total + 1), parts(total);
    Random random(7);
    for (std::size_t i = 0; i < total; ++i) {
        x[i] = static_cast<float>(random.uniform());
        dy[i] = static_cast<float>(random.uniform());
    }
    for (const int axis : {1, 2}) {
        const int64_t channels = axis == 1 ? rows : row;
        std::vector<double> columns(static_cast<std::size_t>(6 * channels));
        for (double& value : columns) value = random.uniform() + 1.5;
        const auto column = [&](int64_t i) { return batchnorm::view(columns.data() + i * channels, {channels}); };
        double count = static_cast<double>(samples * per_sample / channels);
        const auto call_of = [&](int64_t first, int64_t n, float* out) {
            Call call;
            call.axes = axis;
            call.x = batchnorm::view(x.data() + first * per_sample, {n, rows, row});
            call.dy = batchnorm::view(dy.data() + first * per_sample, {n, rows, row});
            call.out = batchnorm::view(out, {n, rows, row});
            call.mean = column(0);
            call.var = call.inv_std = column(1);
            call.gamma = column(2);
            call.beta = column(3);
            call.sum_dy = column(4);
            call.sum_dy_xmu = column(5);
            call.count = batchnorm::view(&count, {});
            return call;
        };
        for (const Op op : {Op::batch_norm_inference, Op::input_grad, Op::batch_norm_inference_backward}) {
            context = std::string(name(op)) + " of " + text({samples, rows, row}) + ", axis " + std::to_string(axis);
            for (int64_t sample = 0; sample < samples; ++sample)
                CHECK(run(op, call_of(sample, 1, parts.data() + sample * per_sample)).ok());
            for (const int misalignment : {0, 1}) {
                std::fill(whole.begin(), whole.end(), 0.0f);
                CHECK(run(op, call_of(0, samples, whole.data() + misalignment)).ok());
                CHECK(std::memcmp(whole.data() + misalignment, parts.data(), total * sizeof(float)) == 0);
            }
        }
    }
}

}  // namespace

int main() {
    fused_and_split();
    in_place();
    packed_and_direct();
    if (!quick()) {  // 21 MB each
        whole_and_by_sample(5500, 49);
        whole_and_by_sample(30000, 9);
        whole_and_by_sample(20, 13500);
    }
    return report();
}
