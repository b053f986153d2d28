// workspace_bytes() is what a call needs: one byte less is refused, and that much is enough at any address.
#include "calls.hpp"
#include "check.hpp"

namespace {

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
                CHECK(run(op, call).ok());
                const std::vector<unsigned char> expected = e.written();

                std::size_t needed = 0;
                CHECK(core::workspace_bytes(op, call.x, call.axes, call.options, needed).ok());
                CHECK(needed > 0);
                constexpr std::size_t guard = 256;
                for (const std::size_t misalignment : {std::size_t{0}, std::size_t{1}, std::size_t{63}}) {
                    std::vector<unsigned char> memory(guard + misalignment + needed + guard, Tensor::sentinel);
                    unsigned char* const data = memory.data() + guard + misalignment;
                    call.options.workspace = {data, needed};
                    e.reset();
                    CHECK(run(op, call).ok());
                    CHECK(e.written() == expected);
                    CHECK(std::all_of(memory.data(), data, [](auto b) { return b == Tensor::sentinel; }));
                    CHECK(std::all_of(data + needed, data + needed + guard,
                                      [](auto b) { return b == Tensor::sentinel; }));

                    call.options.workspace.bytes = needed - 1;
                    e.reset();
                    const batchnorm::Status status = run(op, call);
                    const std::string message = status.message;
                    CHECK_DETAIL(status.code == batchnorm::Code::invalid_value, message);
                    CHECK_DETAIL(message.find(std::string(name(op)) + ": workspace has " + std::to_string(needed - 1) +
                                              " bytes") == 0,
                                 message);
                    CHECK_DETAIL(message.find("at least " + std::to_string(needed)) != std::string::npos, message);
                    CHECK(e.untouched());
                }
            }
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
    one_output_is_packed();
    return report();
}
