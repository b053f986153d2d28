// workspace_bytes() is what a call needs: one byte less is refused, and that much is enough at any address.
#include "calls.hpp"
#include "check.hpp"

namespace {

// The bytes that workspace_bytes() tells are enough at any address, and what is written is the same; one less is
// refused.
void exactly_enough(Op op, Example& e, Call& call) {
    CHECK(run(op, call).ok());
    const std::vector<unsigned char> expected = e.written();

    std::size_t needed = 0;
    CHECK(core::workspace_bytes(op, call.x, call.axes, call.options, needed).ok());
    CHECK(needed > 0);
    constexpr std::size_t guard = 4096;
    for (const std::size_t misalignment : {std::size_t{0}, std::size_t{1}, std::size_t{63}}) {
        std::vector<unsigned char> memory(64 + misalignment + needed + guard, Tensor::sentinel);
        unsigned char* const data = memory.data() + 64 + misalignment;
        call.options.workspace = {data, needed};
        e.reset();
        CHECK(run(op, call).ok());
        CHECK(e.written() == expected);
        CHECK(std::all_of(memory.data(), data, [](auto b) { return b == Tensor::sentinel; }));
        CHECK(std::all_of(data + needed, data + needed + guard, [](auto b) { return b == Tensor::sentinel; }));

        call.options.workspace.bytes = needed - 1;
        e.reset();
        const batchnorm::Status status = run(op, call);
        const std::string message = status.message;
        CHECK_DETAIL(status.code == batchnorm::Code::invalid_value, message);
        CHECK_DETAIL(
            message.find(std::string(name(op)) + ": workspace has " + std::to_string(needed - 1) + " bytes") == 0,
            message);
        CHECK_DETAIL(message.find("at least " + std::to_string(needed)) != std::string::npos, message);
        CHECK(e.untouched());
    }
}

void exact_and_too_small() {
    for (const Setup& setup :
         {Setup{{4, 3, 5}, {1}}, Setup{{5, 7}, {1}, DType::f64}, Setup{{4, 6, 9, 5}, {0, 2}}, Setup{{40, 3, 1000}, {1}},
          Setup{{300, 260}, {1}}, Setup{{300, 260}, {1}, DType::bf16}, Setup{{300, 3, 2}, {1}},
          Setup{{261, 127}, {1}, DType::f64}, Setup{{9, 33, 49}, {1}},  // several blocks of small planes
          Setup{{8, 17, 255}, {1}, DType::f16, Layout::padded, Layout::contiguous, Layout::misaligned},
          Setup{{3, 9, 11, 64}, {0, 2}, DType::f64}, Setup{{9, 37, 400}, {1}, DType::f64},
          Setup{{6, 49, 16}, {-1}, DType::f32, Layout::records, Layout::transposed, Layout::every_second}})
        for (const Op op : all_ops)
            for (const int threads : {1, 3}) {
                Example e(setup);
                Call call = e.call();
                call.options.threads = threads;
                context = std::string(name(op)) + " " + text(setup) + " threads " + std::to_string(threads);
                exactly_enough(op, e, call);
            }
}

// Weights of every kind, which a call may have to pack beside the operands; and the other options.
void with_options() {
    int turn = 0;
    for (const Setup& setup :
         {Setup{{32, 16, 7, 7}, {1}}, Setup{{9, 5, 300}, {1}, DType::f64}, Setup{{60, 9, 16}, {-1}, DType::bf16},
          Setup{{6, 49, 16}, {-1}, DType::f32, Layout::records, Layout::transposed, Layout::every_second}})
        for (const Layout layout :
             {Layout::contiguous, Layout::every_second, Layout::repeated_last, Layout::transposed})
            for (const Op op :
                 {Op::batch_norm, Op::batch_norm_backward, Op::moments, Op::normalize, Op::grad_sums, Op::input_grad}) {
                Example e(setup);
                Call call = e.call();
                call.options.threads = ++turn % 2 ? 1 : 3;
                Shape shape = setup.shape;
                if (turn % 3 == 0) shape[static_cast<std::size_t>((setup.axes[0] + call.x.rank) % call.x.rank)] = 1;
                Tensor weights(setup.dtype == DType::f64 ? DType::f64 : DType::f32, shape, layout);
                weights.fill(Values(static_cast<std::size_t>(product(shape)), 1));
                const batchnorm::View view = weights.view();
                call.options.weights = &view;
                context = std::string(name(op)) + " " + text(setup) + " weights " + text(shape) + " " + name(layout) +
                          " threads " + std::to_string(call.options.threads);
                exactly_enough(op, e, call);

                if (op != Op::batch_norm && op != Op::moments) continue;
                context += " in groups";
                call.options.workspace = {};
                call.options.group_size = setup.shape[0] / 2 + 1;
                Shape groups = e.problem.kept_shape;
                groups.insert(groups.begin(), 2);
                for (int i = 0; i < 3; ++i) {
                    e.result[i] = Tensor(DType::f64, groups, Layout::contiguous, Example::guard);
                    call.result[i] = e.result[i].mut();
                }
                std::vector<std::uint8_t> mask;
                if (op == Op::batch_norm) {
                    call.options.residual = &call.dy;
                    call.options.activation = batchnorm::Activation::relu;
                    batchnorm::Options geometry;
                    geometry.group_size = call.options.group_size;
                    std::size_t bytes = 0;
                    CHECK(core::mask_bytes(call.x, call.axes, geometry, bytes).ok());
                    mask.resize(bytes);
                    call.mask = mask.data();
                }
                exactly_enough(op, e, call);
            }
}

// Sizes are known before there is any memory; of strides they depend on x's.
void without_data() {
    for (const Layout layout : {Layout::contiguous, Layout::channels_last})
        for (const Op op : all_ops) {
            context = std::string(name(op)) + " " + name(layout);
            Example e(Setup{{8, 16, 7, 7}, {1}, DType::f32, layout});
            Call call = e.call();
            const bool weighs = op == Op::batch_norm || op == Op::moments;
            Tensor weights(DType::f32, {8, 7, 7});
            batchnorm::View view = weights.fill(Values(8 * 7 * 7, 1)).view();
            if (weighs) call.options.weights = &view;
            std::size_t bytes = 0, planned = 0, mask_bytes = 0, planned_mask = 0;
            CHECK(core::workspace_bytes(op, call.x, call.axes, call.options, bytes).ok());
            CHECK(core::mask_bytes(call.x, call.axes, {}, mask_bytes).ok());
            call.x.data = view.data = nullptr;
            CHECK(core::workspace_bytes(op, call.x, call.axes, call.options, planned).ok());
            CHECK(core::mask_bytes(call.x, call.axes, {}, planned_mask).ok());
            CHECK(bytes > 0);
            CHECK(planned == bytes);
            CHECK(mask_bytes > 0);
            CHECK(planned_mask == mask_bytes);
            CHECK(run(op, call).code == batchnorm::Code::invalid_value);
        }
    Example e(Setup{{4, 3, 5}, {1}});
    std::size_t bytes = 0;
    const batchnorm::Status status = core::workspace_bytes(static_cast<Op>(200), e.call().x, 1, {}, bytes);
    CHECK_DETAIL(std::string(status.message) == "workspace_bytes: op 200 is unknown", status.message);
}

// Without a workspace a call takes what its own operands need, and sanitizers see if it uses more. Of double backward's
// two parts here the one that packs its output needs the most.
void one_output_is_packed() {
    const Setup setup{{6, 49, 16}, {1}};
    for (const bool first : {true, false}) {
        context = std::string("packed ") + (first ? "ddy" : "dx");
        Example e(setup);
        Call call = e.call();
        call.options.threads = 3;
        CHECK(run(Op::batch_norm_double_backward, call).ok());
        Tensor packed(setup.dtype, setup.shape, Layout::every_second, Example::guard);
        (first ? call.ddy : call.out) = packed.mut();
        CHECK(run(Op::batch_norm_double_backward, call).ok());
        CHECK(packed.values() == (first ? e.ddy : e.out).values());
        CHECK(packed.padding_untouched());
    }
}

}  // namespace

int main() {
    exact_and_too_small();
    with_options();
    one_output_is_packed();
    without_data();
    return report();
}
