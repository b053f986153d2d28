// oneDNN's batch normalization behind five C functions. peers/onednn.py compiles this against the oneDNN that it finds,
// version 3 or 2, and loads it.
#include <omp.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <unordered_map>

namespace {

using dnnl::memory;
using Arguments = std::unordered_map<int, memory>;
using Forward = dnnl::batch_normalization_forward;
using Backward = dnnl::batch_normalization_backward;

enum Task { forward, inference, backward };
enum Layout { channels_first, channels_last, blocked };

const dnnl::engine& cpu() {
    static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    return engine;
}

memory::format_tag tag(Layout layout, std::size_t rank) {
    using Tag = memory::format_tag;
    const Tag tags[3][3] = {{Tag::ncw, Tag::nchw, Tag::ncdhw},
                            {Tag::nwc, Tag::nhwc, Tag::ndhwc},
                            {Tag::nCw16c, Tag::nChw16c, Tag::nCdhw16c}};
    if (rank == 2 && layout == channels_last) return Tag::nc;
    if (rank < 3 || rank > 5) throw std::invalid_argument("no such layout");
    return tags[layout][rank - 3];
}

memory::desc describe(const memory::dims& dims, memory::format_tag format) {
    return memory::desc(dims, memory::data_type::f32, format);
}

memory vector_of(std::int64_t c, void* data) { return memory(describe({c}, memory::format_tag::x), cpu(), data); }

Forward::primitive_desc forward_descriptor(Task task, const memory::desc& data, float eps) {
    using dnnl::normalization_flags;
    const auto kind = task == inference ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;
    auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    if (task == inference) flags = flags | normalization_flags::use_global_stats;
#if DNNL_VERSION_MAJOR >= 3
    return Forward::primitive_desc(cpu(), kind, data, data, eps, flags);
#else
    return Forward::primitive_desc(Forward::desc(kind, data, eps, flags), cpu());
#endif
}

Backward::primitive_desc backward_descriptor(const memory::desc& data, float eps) {
    using dnnl::normalization_flags;
    const auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    const auto hint = forward_descriptor(forward, data, eps);
#if DNNL_VERSION_MAJOR >= 3
    return Backward::primitive_desc(cpu(), dnnl::prop_kind::backward, data, data, data, eps, flags, hint);
#else
    return Backward::primitive_desc(Backward::desc(dnnl::prop_kind::backward, data, data, eps, flags), cpu(), hint);
#endif
}

// A primitive with its arguments. In the blocked layout x, dy and out have memory of their own, in which x and dy are
// put beforehand.
struct Call {
    dnnl::stream stream{cpu()};
    dnnl::primitive primitive;
    Arguments arguments;
    memory plain_out, out;

    // The user's array as the primitive wants it.
    memory operand(const memory::desc& plain, const memory::desc& wanted, void* data, bool fill) {
        memory user(plain, cpu(), data);
        if (plain == wanted) return user;
        memory own(wanted, cpu());
        if (fill) copy(user, own);
        return own;
    }

    void execute() {
        primitive.execute(stream, arguments);
        stream.wait();
    }

    void copy(memory& from, memory& to) {
        dnnl::reorder(from, to).execute(stream, from, to);
        stream.wait();
    }
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* onednn_version() {
    static char text[32];
    const dnnl_version_t* version = dnnl::version();
    std::snprintf(text, sizeof text, "%d.%d.%d", version->major, version->minor, version->patch);
    return text;
}

struct Arrays {
    float *x, *dy, *out, *gamma, *beta, *mean, *var, *dgamma, *dbeta;
};

// Sizes are N, C and those of the space; x, dy and out lie as plain says. Null, and a message, if it cannot be done.
EXPORTED void* onednn_prepare(int task, int layout, int plain, int rank, const std::int64_t* sizes, float eps,
                              int threads, const Arrays* arrays, char* message, std::size_t message_size) try {
    omp_set_num_threads(threads);
    auto call = std::make_unique<Call>();
    const memory::dims dims(sizes, sizes + rank);
    const std::int64_t c = dims[1];
    const auto user = describe(dims, tag(static_cast<Layout>(plain), dims.size()));
    const auto data = describe(dims, tag(static_cast<Layout>(layout), dims.size()));

    Arguments& arguments = call->arguments;
    arguments[DNNL_ARG_SRC] = call->operand(user, data, arrays->x, true);
    arguments[DNNL_ARG_SCALE] = vector_of(c, arrays->gamma);
    // Backward has no use for it, but version 2 asks for it.
    if (task != backward || DNNL_VERSION_MAJOR < 3) arguments[DNNL_ARG_SHIFT] = vector_of(c, arrays->beta);
    arguments[DNNL_ARG_MEAN] = vector_of(c, arrays->mean);
    arguments[DNNL_ARG_VARIANCE] = vector_of(c, arrays->var);
    call->plain_out = memory(user, cpu(), arrays->out);
    call->out = call->operand(user, data, arrays->out, false);
    if (task == backward) {
        arguments[DNNL_ARG_DIFF_DST] = call->operand(user, data, arrays->dy, true);
        arguments[DNNL_ARG_DIFF_SRC] = call->out;
        arguments[DNNL_ARG_DIFF_SCALE] = vector_of(c, arrays->dgamma);
        arguments[DNNL_ARG_DIFF_SHIFT] = vector_of(c, arrays->dbeta);
        call->primitive = Backward(backward_descriptor(data, eps));
    } else {
        arguments[DNNL_ARG_DST] = call->out;
        call->primitive = Forward(forward_descriptor(static_cast<Task>(task), data, eps));
    }
    call->execute();  // once here, where it may throw
    return call.release();
} catch (const std::exception& error) {
    std::snprintf(message, message_size, "%s", error.what());
    return nullptr;
}

EXPORTED void onednn_run(void* prepared) { static_cast<Call*>(prepared)->execute(); }

// The output as the user's array has it; nothing to do in a plain layout.
EXPORTED void onednn_fetch(void* prepared) {
    auto* call = static_cast<Call*>(prepared);
    if (call->out.get_desc() != call->plain_out.get_desc()) call->copy(call->out, call->plain_out);
}

EXPORTED void onednn_release(void* prepared) { delete static_cast<Call*>(prepared); }
