// The public functions of cuda.hpp: the same checks and the same box as on the CPU, handed to the CUDA part.
#include <batchnorm/cuda.hpp>

#include <optional>

#include "arena.hpp"
#include "cuda/work.hpp"
#include "functions.hpp"
#include "params.hpp"
#include "status.hpp"

namespace batchnorm::cuda {
namespace {

// So many blocks of threads keep the largest devices busy; chunks of fewer elements than the least would leave each
// thread too little to have under way, and those of more than the most gain nothing.
constexpr int64_t wanted_chunks = 2048, least_elements = 4096, most_elements = 65536;
// Pattern::lane: a chunk leaves 16 bytes for each channel, which are to be few beside those of its rows.
constexpr int64_t least_rows = 128, most_chunks = int64_t{1} << 40;

Chunks cut(const Box& box) noexcept {
    int64_t elements = box.elements() / wanted_chunks;
    if (elements < least_elements) elements = least_elements;
    if (elements > most_elements) elements = most_elements;
    return Chunks(box, {elements, Tile(box).lanes, least_rows, most_chunks});
}

template <class AnyParam>
Values values_of(const AnyParam& param) noexcept {
    Values values;
    values.data = static_cast<char*>(const_cast<void*>(static_cast<const void*>(param.data)));
    values.dtype = param.dtype;
    values.one_for_all = param.rank == 0;
    for (int d = 0; d < param.rank; ++d) values.stride[d] = param.stride[d];
    return values;
}

Work work_of(const Problem& problem, const Part& part, std::uint8_t* mask) noexcept {
    const auto own = [&](const auto& param) { return values_of(part.own(param)); };
    const auto shared = [&](const Param& param) { return values_of(part.shared(param)); };
    Box box = problem.box_of(part);
    box.mask = mask;
    const Chunks chunks = cut(box);
    const Tile tile(box);
    const int64_t units =
        box.pattern == Pattern::row ? box.channels() : (box.channels() + tile.channels - 1) / tile.channels;
    return {
        .op = problem.op,
        .weighted = problem.options.weights != nullptr,
        .writes = problem.writes,
        .epilogue = problem.epilogue,
        .eps = problem.options.eps,
        .box = box,
        .chunks = chunks,
        .tile = tile,
        .units_of_group = units,
        .chunks_of_unit = chunks.count(),
        .pieces = box.groups() * units * chunks.count(),
        .gamma = shared(*problem.gamma),
        .beta = shared(*problem.beta),
        .mean = own(*problem.mean),
        .inv_std = own(*problem.inv_std),
        .var = own(*problem.var),
        .m2 = own(*problem.m2),
        .count = own(*problem.count),
        .sum_dy = own(*problem.sum_dy),
        .sum_dy_xmu = own(*problem.sum_dy_xmu),
        .to_mean = own(*problem.to_mean),
        .to_inv_std = own(*problem.to_inv_std),
        .to_var = own(*problem.to_var),
        .to_m2 = own(*problem.to_m2),
        .to_count = own(*problem.to_count),
        .to_sum_dy = own(*problem.to_sum_dy),
        .to_sum_dy_xmu = own(*problem.to_sum_dy_xmu),
        .to_dgamma = values_of(*problem.to_dgamma),  // of all groups
        .to_dbeta = values_of(*problem.to_dbeta),
        .groups = part.groups,
        .first = part.first_group == 0,
        .last = part.last,
        .slots = {},
        .coefficients = {},
        .dgamma = nullptr,
        .dbeta = nullptr,
        .dgamma_total = nullptr,
        .dbeta_total = nullptr,
    };
}

// The workspace of a problem's part. Totals come first: all parts have them in common.
void lay_out(Arena& arena, const Problem& problem, Work& work) noexcept {
    const int64_t n = work.box.statistics();
    if (work.groups > 0) {
        work.dgamma_total = arena.take<double>(problem.valid.statistics());
        work.dbeta_total = arena.take<double>(problem.valid.statistics());
        work.dgamma = arena.take<double>(n);
        work.dbeta = arena.take<double>(n);
    }
    for (int i = 0; i < sums(problem.op, problem.options); ++i)
        work.slots[i] = arena.take<double>(n * work.chunks_of_unit);
    for (void*& values : work.coefficients) values = arena.take<char>(n * item_size(arithmetic(work.box.dtype)));
}

// The work of each part of a problem, without memory, and the workspace that they need.
struct Works {
    const Parts parts;
    std::optional<Work> at[2];
    std::size_t bytes = 0;

    explicit Works(const Problem& problem) noexcept : parts(problem.parts()) {
        std::uint8_t* mask = problem.mask;
        for (int i = 0; i < parts.count; ++i) {
            at[i].emplace(work_of(problem, parts.at[i], mask));
            if (mask) mask += at[i]->box.mask_bytes();
            Arena arena;
            lay_out(arena, problem, *at[i]);
            if (arena.bytes() > bytes) bytes = arena.bytes();
        }
    }
};

// The CUDA part, where it can compute.
const Table* available(const char*& why_not) noexcept {
    const Table* const table = load(why_not);
    if (table) why_not = table->unavailable_because();
    return why_not ? nullptr : table;
}

Status reported(const char* function, const char* error) noexcept {
    return error ? failure(Code::device_error, "%s: CUDA reports: %s", function, error) : Status{};
}

class Cuda final : public Backend {
  public:
    explicit Cuda(Stream stream) noexcept : stream_(stream) {}

    Status run(const Problem& problem) const noexcept override {
        const char* const function = problem.valid.function();
        const char* why_not;
        const Table* const table = available(why_not);
        if (!table) return failure(Code::unavailable, "%s: %s", function, why_not);
        const Workspace& workspace = problem.options.workspace;
        Works works(problem);
        if (!workspace.data || workspace.bytes < works.bytes)
            return failure(Code::invalid_value, "%s: workspace has %zu bytes, expected at least %zu", function,
                           workspace.data ? workspace.bytes : std::size_t{0}, works.bytes);
        for (int i = 0; i < works.parts.count; ++i) {
            Arena arena(workspace.data);
            lay_out(arena, problem, *works.at[i]);
            if (const char* const error = table->run(*works.at[i], stream_)) return reported(function, error);
        }
        return {};
    }

    Status fill(const MutParam& param, double value) const noexcept override {
        if (absent(param)) return {};
        const char* why_not;
        const Table* const table = available(why_not);
        if (!table) return failure(Code::unavailable, "%s", why_not);
        return reported("fill", table->fill(values_of(param), param.shape, param.rank, value, stream_));
    }

    bool sees_values() const noexcept override { return false; }

  private:
    Stream stream_;
};

}  // namespace

bool is_available() noexcept { return unavailable_because() == nullptr; }

const char* unavailable_because() noexcept {
    const char* why_not;
    available(why_not);
    return why_not;
}

int device_count() noexcept {
    const char* why_not;
    const Table* const table = available(why_not);
    return table ? table->device_count() : 0;
}

const char* device_name(int device) noexcept {
    const char* why_not;
    const Table* const table = available(why_not);
    return table ? table->device_name(device) : nullptr;
}

namespace {

// What a function of the table reports.
template <class Function>
Status ask(const char* name, const Function& function) noexcept {
    const char* why_not;
    const Table* const table = available(why_not);
    return table ? reported(name, function(*table)) : failure(Code::unavailable, "%s: %s", name, why_not);
}

}  // namespace

Status get_device(int& device) noexcept {
    return ask("get_device", [&](const Table& table) { return table.get_device(device); });
}

Status set_device(int device) noexcept {
    return ask("set_device", [&](const Table& table) { return table.set_device(device); });
}

Status synchronize(Stream stream) noexcept {
    return ask("synchronize", [&](const Table& table) { return table.synchronize(stream); });
}

Status workspace_bytes(Op op, const View& x, const Axes& axes, const Options& options, std::size_t& bytes) noexcept {
    bytes = 0;
    Validator valid("workspace_bytes", false);
    valid.shapes_alone();
    valid.x(x, axes);
    valid.known(op);
    valid.options(options);
    valid.more_options(options, ~0u);
    if (!valid.ok() || valid.statistics() == 0 || valid.no_groups()) return valid.status();
    const View read = functions::to_measure(x, valid);
    bytes = Works({op, valid, options, {&read}}).bytes;
    return {};
}

Status batch_norm(const View& x, const Axes& axes, const Param& gamma, const Param& beta, const MutView& out,
                  const MutStats& saved, Stream stream, const Options& options) noexcept {
    return functions::batch_norm(Cuda(stream), x, axes, gamma, beta, out, saved, options);
}

Status batch_norm_backward(const View& dy, const View& x, const Axes& axes, const Stats& saved, const Param& gamma,
                           const MutView& dx, const MutParam& dgamma, const MutParam& dbeta, Stream stream,
                           const Options& options) noexcept {
    return functions::batch_norm_backward(Cuda(stream), dy, x, axes, saved, gamma, dx, dgamma, dbeta, options);
}

Status batch_norm_inference(const View& x, const Axes& axes, const Param& mean, const Param& var, const Param& gamma,
                            const Param& beta, const MutView& out, Stream stream, const Options& options) noexcept {
    return functions::batch_norm_inference(Cuda(stream), x, axes, mean, var, gamma, beta, out, options);
}

Status batch_norm_inference_backward(const View& dy, const View& x, const Axes& axes, const Param& mean,
                                     const Param& var, const Param& gamma, const MutView& dx, const MutParam& dgamma,
                                     const MutParam& dbeta, Stream stream, const Options& options) noexcept {
    return functions::batch_norm_inference_backward(Cuda(stream), dy, x, axes, mean, var, gamma, dx, dgamma, dbeta,
                                                    options);
}

Status batch_norm_inplace(const MutView& x, const Axes& axes, const Param& gamma, const Param& beta,
                          const MutStats& saved, Stream stream, const Options& options) noexcept {
    return functions::batch_norm_inplace(Cuda(stream), x, axes, gamma, beta, saved, options);
}

Status batch_norm_backward_from_output(const View& dy, const View& y, const Axes& axes, const Stats& saved,
                                       const Param& gamma, const Param& beta, const MutView& dx, const MutParam& dgamma,
                                       const MutParam& dbeta, Stream stream, const Options& options) noexcept {
    return functions::batch_norm_backward_from_output(Cuda(stream), dy, y, axes, saved, gamma, beta, dx, dgamma, dbeta,
                                                      options);
}

Status moments(const View& x, const Axes& axes, const MutMoments& out, Stream stream, const Options& options) noexcept {
    return functions::moments(Cuda(stream), x, axes, out, options);
}

Status normalize(const View& x, const Axes& axes, const Moments& moments, const Param& gamma, const Param& beta,
                 const MutView& out, const MutStats& saved, Stream stream, const Options& options) noexcept {
    return functions::normalize(Cuda(stream), x, axes, moments, gamma, beta, out, saved, options);
}

Status grad_sums(const View& dy, const View& x, const Axes& axes, const Stats& saved, const MutGradSums& out,
                 Stream stream, const Options& options) noexcept {
    return functions::grad_sums(Cuda(stream), dy, x, axes, saved, out, options);
}

Status input_grad(const View& dy, const View& x, const Axes& axes, const Stats& saved, const GradSums& sums,
                  const Param& gamma, const MutView& dx, const MutParam& dgamma, const MutParam& dbeta, Stream stream,
                  const Options& options) noexcept {
    return functions::input_grad(Cuda(stream), dy, x, axes, saved, sums, gamma, dx, dgamma, dbeta, options);
}

}  // namespace batchnorm::cuda
