// What is CUDA's alone, on an emulated device: that no plan and no device changes the bits, and what is refused.
#include "calls.hpp"
#include "check.hpp"

#include <string>

namespace {

using batchnorm::Code;
namespace cuda = batchnorm::cuda;

struct Device {
    const char *multiprocessors, *shared, *capability, *order;
};

// By which a tensor stays on chip in one block, in a cluster or in the whole grid, or is read twice.
constexpr Device devices[] = {
    {"4", "233472", "90", "forward"},   {"4", "233472", "90", "backward"}, {"132", "233472", "90", "forward"},
    {"16", "167936", "80", "backward"}, {"1", "65536", "75", "forward"},   {"8", "102400", "120", "backward"},
};

void become(const Device& device) {
    setenv("CUDA_ON_CPU_SMS", device.multiprocessors, 1);
    setenv("CUDA_ON_CPU_SHARED", device.shared, 1);
    setenv("CUDA_ON_CPU_CAPABILITY", device.capability, 1);
    setenv("CUDA_ON_CPU_ORDER", device.order, 1);
}

const Setup setups[] = {
    {{4, 3, 30, 40}, {1}},
    {{2, 2, 300, 131}, {1}},
    {{1, 1, 50000}, {1}},
    {{700, 70}, {-1}},
    {{6000, 5}, {-1}},
    {{3000, 9, 7, 7}, {1}},
    {{40, 24, 7, 7}, {1}},
    {{2, 3, 20, 11}, {0, 1}},
    {{3, 500, 11}, {0}},
    {{16, 5, 15, 15}, {1}},
    {{600, 130}, {-1}, DType::bf16},
    {{12, 64, 28, 28}, {1}, DType::f16},
    {{300, 8}, {-1}, DType::f64},
    {{6000, 64}, {-1}},
    {{2000, 192}, {-1}, DType::bf16},
};

void same_bits_on_all_devices() {
    for (const Setup& setup : setups) {
        Example example(setup);
        Call call = example.call();
        for (const Op op : {Op::batch_norm, Op::batch_norm_backward, Op::batch_norm_inference_backward, Op::moments}) {
            std::vector<unsigned char> expected;
            for (const Device& device : devices) {
                become(device);
                context = text(setup) + " " + name(op) + " on " + device.multiprocessors + " multiprocessors of " +
                          device.shared + " bytes, capability " + device.capability;
                example.reset();
                const batchnorm::Status status = run(op, call);
                CHECK_DETAIL(status.ok(), status.message);
                if (expected.empty()) expected = example.written();
                CHECK(example.written() == expected);
            }
        }
    }
    become(devices[0]);
}

// The halves, by any plan of the whole.
void split_calls_have_the_bits_of_fused_ones() {
    for (const Setup& setup : setups) {
        Example example(setup);
        Call call = example.call();
        for (const Device& device : devices) {
            become(device);
            context = text(setup) + " in halves on " + device.multiprocessors + " multiprocessors";
            const auto written = [&](Op op) {
                example.reset();
                CHECK(run(op, call).ok());
                return example.written();
            };
            const std::vector<unsigned char> forward = written(Op::batch_norm);
            CHECK(run(Op::moments, call).ok());
            const Tensor mean = example.result[0], m2 = example.result[1], count = example.result[2];
            call.mean = mean.view();
            call.m2 = m2.view();
            call.count = count.view();
            CHECK(written(Op::normalize) == forward);

            call = example.call();
            const std::vector<unsigned char> backward = written(Op::batch_norm_backward);
            CHECK(run(Op::grad_sums, call).ok());
            const Tensor sum_dy = example.result[0], sum_dy_xmu = example.result[1];
            call.sum_dy = sum_dy.view();
            call.sum_dy_xmu = sum_dy_xmu.view();
            CHECK(written(Op::input_grad) == backward);
            call = example.call();
        }
    }
    become(devices[0]);
}

void refusals() {
    Example example({{4, 3, 5}, {1}});
    Call call = example.call();
    const auto refused = [&](const batchnorm::Options& options, Code code, const char* message) {
        context = message;
        const batchnorm::Status status =
            cuda::batch_norm(call.x, call.axes, call.gamma, call.beta, call.out, {}, nullptr, options);
        CHECK_DETAIL(status.code == code, status.message);
        CHECK_DETAIL(std::string(status.message).find(message) != std::string::npos, status.message);
        CHECK(example.untouched());
    };
    batchnorm::Options options;
    std::size_t bytes = 0;
    CHECK(cuda::workspace_bytes(Op::batch_norm, call.x, call.axes, options, bytes).ok());
    batchnorm::View planned = call.x;  // which has no memory yet
    planned.data = nullptr;
    std::size_t planned_bytes = 0;
    CHECK(cuda::workspace_bytes(Op::batch_norm, planned, call.axes, options, planned_bytes).ok());
    CHECK(planned_bytes == bytes);
    refused(options, Code::invalid_value, "batch_norm: workspace has 0 bytes, expected at least ");
    std::vector<char> memory(bytes);
    options.workspace = {memory.data(), bytes - 1};
    refused(options, Code::invalid_value, "batch_norm: workspace has ");
    options.workspace.bytes = bytes;
    options.threads = 2;
    refused(options, Code::invalid_value, "batch_norm: threads is not taken on a GPU");
    options.threads = 0;
    setenv("CUDA_ON_CPU_DEVICES", "0", 1);
    CHECK(!cuda::is_available());
    CHECK(cuda::unavailable_because() != nullptr);
    CHECK(cuda::device_count() == 0);
    refused(options, Code::unavailable, cuda::unavailable_because());
    setenv("CUDA_ON_CPU_DEVICES", "1", 1);
    CHECK(cuda::is_available());
    CHECK(cuda::device_name(0) != nullptr);
    CHECK(cuda::device_name(1) == nullptr);
}

// In the place of gamma, dgamma is written only when nobody needs gamma any more.
void gradients_over_parameters() {
    Example example({{64, 2, 31, 31}, {1}});
    Call call = example.call();
    CHECK(run(Op::batch_norm_backward, call).ok());
    const Values dx = example.out.values(), dgamma = example.result[0].values();
    context = "dgamma over gamma";
    call.result[0] = example.gamma.mut();
    CHECK(run(Op::batch_norm_backward, call).ok());
    CHECK(example.out.values() == dx);
    CHECK(example.gamma.values() == dgamma);
}

}  // namespace

int main() {
    setenv("BATCHNORM_TEST_DEVICE", "cuda", 1);
    same_bits_on_all_devices();
    split_calls_have_the_bits_of_fused_ones();
    refusals();
    gradients_over_parameters();
    return report();
}
