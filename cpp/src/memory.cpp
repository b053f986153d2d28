#include "memory.hpp"

#include "plan.hpp"

namespace batchnorm {
namespace {

// Bytes after which the next array starts, so that arrays which are walked together do not take each other's place in
// L1: not at about the same place of a page.
int64_t apart(int64_t bytes) noexcept {
    constexpr int64_t page = 4096, apart = 11 * 64;
    return bytes < page / 4 ? bytes : (bytes + page - apart - 1) / page * page + apart;
}

constexpr int64_t line = 64;

// Where the coefficients of lanes start in a line, so that theirs start where those of an output do that is streamed:
// that is written by whole lines, and what is looked up for one would lie in two, wherever the output starts.
int64_t shift_of(const Box& box, bool stream) noexcept {
    const Operand& out = box.operand[role_out];
    if (!stream || box.pattern != Pattern::lane || !out.direct) return 0;
    const auto in_line = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(out.data) % line);
    return in_line / item_size(box.dtype) * Memory::coefficient_size(box) % line;
}

// Room for coefficients, that far into a line.
char* take_coefficients(Arena& arena, int64_t bytes, int64_t shift) noexcept {
    char* const piece = arena.take<char>(bytes + line);
    return piece ? piece + shift : nullptr;
}

}  // namespace

WorkerMemory Memory::take_worker(Arena& arena, const Box& box) const noexcept {
    const bool by_lane = box.pattern == Pattern::lane;
    int64_t lanes = by_lane ? box.lanes() * box.fold() : 1;
    if (lanes > most_lanes) lanes = most_lanes;
    const int64_t shared_lanes = box.plane * box.fold() > 1 ? lanes : 0;

    WorkerMemory worker;
    for (int r = 0; r < roles; ++r) {
        const Operand& operand = box.operand[r];
        const bool in_place = operand.in_place() && (box.fold() == 1 || operand.gapless);
        worker.tiles[r] = operand.data && !in_place ? arena.take<char>(tile_bytes) : nullptr;
    }
    worker.lists = arena.take<RowLists>(by_lane);
    worker.values = arena.take<double>(lanes);
    worker.sums = arena.take<double>(sum_count * shared_lanes);
    worker.coefficients = take_coefficients(
        arena, coefficient_count * (shared_lanes + kernels::lane_padding) * coefficient_size(box), shift_);
    return worker;
}

Memory::Memory(Arena& arena, const Box& box, const Chunks& chunks, int threads, int sums, bool stream) noexcept
    : chunks_(chunks.count()), channels_(box.channels()), shift_(shift_of(box, stream)) {
    const int64_t n = box.statistics();
    for (int i = 0; i < sums; ++i) slots_[i] = arena.take<double>(n * chunks.count());
    for (double** column : {&mean, &spread, &inv_std, &gamma, &beta, &count, &sum_dy, &sum_dy_xmu, &tgamma, &tbeta,
                            &v_mean, &sum_v_xmu, &sum_dy_v})
        *column = arena.take<double>(n);
    for (void*& values : coefficients)
        values = take_coefficients(arena, apart(box.groups() * coefficient_pitch(box) * coefficient_size(box)), shift_);

    Arena measure;
    take_worker(measure, box);
    worker_bytes_ = static_cast<int64_t>(measure.bytes());
    workers_ = arena.take<char>(threads * worker_bytes_);
}

}  // namespace batchnorm
