// Moving averages against their formula, for all types and strides, and what they refuse.
#include "check.hpp"
#include "reference.hpp"
#include "tensor.hpp"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace {

namespace core = batchnorm::core;
using batchnorm::Code;
using batchnorm::Status;

constexpr DType types[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
constexpr double infinity = std::numeric_limits<double>::infinity();

struct Batch {
    Tensor running_mean, running_var, mean, var, count;
    double momentum = 0.1;
    bool unbiased = true;

    // type, layout: those of the averages; type_of_batch, layout_of_batch: of the others.
    Batch(const Shape& shape, DType type, Layout layout, DType type_of_batch, Layout layout_of_batch,
          bool one_count = false)
        : running_mean(type, shape, layout, 16),
          running_var(type, shape, layout, 16),
          mean(type_of_batch, shape, layout_of_batch),
          var(type_of_batch, shape, layout_of_batch),
          count(type_of_batch, one_count ? Shape{} : shape, layout_of_batch) {
        running_mean.randomize(1);
        running_var.randomize(2, 0.5, 1);
        mean.randomize(3, 2);
        var.randomize(4, 1, 3);
        for (std::size_t i = 0; i < count.size(); ++i) count.set(i, static_cast<double>((i + 3) % 5));  // 3, 4, 0, 1, 2
    }

    Status run() {
        return core::update_running(running_mean.mut(), running_var.mut(), mean.view(), var.view(), count.view(),
                                    momentum, unbiased);
    }

    // Runs and compares each average; the formula in double, rounded to the type.
    void check_values() {
        const Values means = running_mean.values(), vars = running_var.values();
        const Status status = run();
        if (!CHECK_DETAIL(status.ok(), status.message)) return;
        for (std::size_t i = 0; i < means.size(); ++i) {
            const double m = count.get(count.size() == 1 ? 0 : i);
            const double factor = unbiased && m > 1 ? m / (m - 1) : 1;
            const auto compare = [&](const Tensor& got, double before, double statistic) {
                const double want = m > 0 ? (1 - momentum) * before + momentum * statistic : before;
                const double off = 4 * 0x1p-53 * (std::fabs(before) + std::fabs(statistic));
                CHECK(std::fabs(got.get(i) - want) <= reference::storage_error(got.dtype(), want) + off);
                if (m == 0) CHECK(got.get(i) == before);
            };
            compare(running_mean, means[i], mean.get(i));
            compare(running_var, vars[i], var.get(i) * factor);
        }
        CHECK(running_mean.padding_untouched() && running_var.padding_untouched());
    }
};

void values() {
    for (const DType type : types)
        for (const Layout layout : writable_layouts)
            for (const Layout of_batch : layouts)
                for (const Shape& shape : {Shape{}, Shape{5}, Shape{3, 5}, Shape{700}, Shape{2, 150, 3}, Shape{0}}) {
                    context = text(shape) + " " + name(layout) + " " + name(of_batch);
                    Batch(shape, type, layout, DType::f64, of_batch).check_values();
                    Batch(shape, type, layout, DType::f32, of_batch, true).check_values();
                }
    for (const DType type : types) {
        Batch batch({6}, DType::f32, Layout::contiguous, type, Layout::contiguous);
        batch.momentum = 1 - 0.99;
        batch.unbiased = false;
        batch.check_values();
    }
}

// The shares are exact at both ends, and a batch that is not a number stays in its channel.
void ends() {
    context = "ends";
    for (const double momentum : {0.0, 1.0}) {
        Batch batch({3}, DType::f32, Layout::contiguous, DType::f32, Layout::contiguous, true);
        batch.momentum = momentum;
        batch.unbiased = false;
        const Values before = batch.running_mean.values();
        CHECK(batch.run().ok());
        CHECK(batch.running_mean.values() == (momentum == 0 ? before : batch.mean.values()));
        if (momentum == 1) CHECK(batch.running_var.values() == batch.var.values());
    }
    Batch batch({3}, DType::f32, Layout::contiguous, DType::f64, Layout::contiguous, true);
    batch.mean.set(1, std::nan(""));
    batch.var.set(1, infinity);
    CHECK(batch.run().ok());
    CHECK(std::isnan(batch.running_mean.get(1)) && batch.running_var.get(1) == infinity);
    CHECK(std::isfinite(batch.running_mean.get(0)) && std::isfinite(batch.running_var.get(2)));
}

// A batch's statistics may lie where the averages do.
void in_place() {
    context = "in place";
    Batch batch({300}, DType::f64, Layout::contiguous, DType::f64, Layout::contiguous, true);
    const Values mean = batch.running_mean.values(), var = batch.running_var.values();
    // Each in the other's place; three values, so that the variance is 3/2 of what it is given as.
    batch.running_mean.fill(Values(mean.size(), 1));
    const Status status =
        core::update_running(batch.running_mean.mut(), batch.running_var.mut(), batch.running_var.view(),
                             batch.running_mean.view(), batch.count.view(), 0.5);
    CHECK_DETAIL(status.ok(), status.message);
    for (std::size_t i = 0; i < mean.size(); ++i) {
        CHECK(batch.running_mean.get(i) == 0.5 + 0.5 * var[i]);
        CHECK(batch.running_var.get(i) == 0.5 * var[i] + 0.75);
    }
}

void errors() {
    struct Bad {
        const char* text;
        Code code;
        std::function<Status(Batch&)> run;
    };
    const auto with = [](Batch& b, const batchnorm::View& mean, const batchnorm::View& var,
                         const batchnorm::View& count) {
        return core::update_running(b.running_mean.mut(), b.running_var.mut(), mean, var, count);
    };
    const Tensor longer(DType::f64, {4});
    const Bad cases[] = {
        {"mean has shape (4,), expected (3,)", Code::invalid_value,
         [&](Batch& b) { return with(b, longer.view(), b.var.view(), b.count.view()); }},
        {"var has shape (4,), expected (3,)", Code::invalid_value,
         [&](Batch& b) { return with(b, b.mean.view(), longer.view(), b.count.view()); }},
        {"count has shape (4,), expected (3,)", Code::invalid_value,
         [&](Batch& b) { return with(b, b.mean.view(), b.var.view(), longer.view()); }},
        {"mean is required", Code::invalid_value, [&](Batch& b) { return with(b, {}, b.var.view(), b.count.view()); }},
        {"var is required", Code::invalid_value, [&](Batch& b) { return with(b, b.mean.view(), {}, b.count.view()); }},
        {"count is required", Code::invalid_value, [&](Batch& b) { return with(b, b.mean.view(), b.var.view(), {}); }},
        {"running_mean", Code::invalid_value,
         [&](Batch& b) {
             return core::update_running({}, b.running_var.mut(), b.mean.view(), b.var.view(), b.count.view());
         }},
        {"running_var is required", Code::invalid_value,
         [&](Batch& b) {
             return core::update_running(b.running_mean.mut(), {}, b.mean.view(), b.var.view(), b.count.view());
         }},
        {"running_var is a scalar, expected shape (3,)", Code::invalid_value,
         [&](Batch& b) {
             Tensor scalar(DType::f64, {});
             return core::update_running(b.running_mean.mut(), scalar.mut(), b.mean.view(), b.var.view(),
                                         b.count.view());
         }},
        {"var must not be negative, got -2", Code::invalid_value,
         [&](Batch& b) {
             b.var.set(2, -2);
             return b.run();
         }},
        {"count must not be negative, got -1", Code::invalid_value,
         [&](Batch& b) {
             b.count.set(0, -1);
             return b.run();
         }},
        {"momentum must be from 0 to 1, got 1.5", Code::invalid_value,
         [&](Batch& b) {
             b.momentum = 1.5;
             return b.run();
         }},
        {"momentum must be from 0 to 1, got nan", Code::invalid_value,
         [&](Batch& b) {
             b.momentum = std::nan("");
             return b.run();
         }},
        {"outputs running_mean and running_var overlap", Code::invalid_value,
         [&](Batch& b) {
             return core::update_running(b.running_mean.mut(), b.running_mean.mut(), b.mean.view(), b.var.view(),
                                         b.count.view());
         }},
        {"running_mean has elements that share memory", Code::invalid_value,
         [&](Batch& b) {
             batchnorm::MutView same = b.running_mean.mut();
             same.stride[0] = 0;
             return core::update_running(same, b.running_var.mut(), b.mean.view(), b.var.view(), b.count.view());
         }},
        {"running_mean overlaps mean", Code::invalid_value,
         [&](Batch& b) {
             batchnorm::View shifted = b.running_mean.view();
             shifted.data = static_cast<const char*>(shifted.data) + 4;
             shifted.shape[0] = 3;
             return with(b, shifted, b.var.view(), b.count.view());
         }},
        {"update_running: mean has", Code::invalid_type,
         [&](Batch& b) {
             batchnorm::View odd = b.mean.view();
             odd.dtype = static_cast<DType>(9);
             return with(b, odd, b.var.view(), b.count.view());
         }},
    };
    for (const Bad& bad : cases) {
        context = bad.text;
        Batch batch({3}, DType::f32, Layout::contiguous, DType::f64, Layout::contiguous);
        const Values means = batch.running_mean.values(), vars = batch.running_var.values();
        const Status status = bad.run(batch);
        CHECK_DETAIL(status.code == bad.code && std::strstr(status.message, bad.text), status.message);
        CHECK_DETAIL(std::strncmp(status.message, "update_running: ", 16) == 0, status.message);
        CHECK(batch.running_mean.values() == means && batch.running_var.values() == vars);
    }
}

}  // namespace

int main() {
    values();
    ends();
    in_place();
    errors();
    return report();
}
