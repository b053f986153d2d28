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

}  // namespace

WorkerMemory Memory::take_worker(Arena& arena, const Box& box) noexcept {
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
    worker.coefficients =
        arena.take<char>(coefficient_count * (shared_lanes + kernels::lane_padding) * coefficient_size(box));
    return worker;
}

Memory::Memory(Arena& arena, const Box& box, const Chunks& chunks, int threads, int sums) noexcept
    : chunks_(chunks.count()), channels_(box.channels()) {
    const int64_t n = box.statistics();
    for (int i = 0; i < sums; ++i) slots_[i] = arena.take<double>(n * chunks.count());
    for (double** column : {&mean, &spread, &inv_std, &gamma, &beta, &count, &sum_dy, &sum_dy_xmu, &tgamma, &tbeta,
                            &v_mean, &sum_v_xmu, &sum_dy_v})
        *column = arena.take<double>(n);
    for (void*& values : coefficients)
        values = arena.take<char>(apart(box.groups() * coefficient_pitch(box) * coefficient_size(box)));

    Arena measure;
    take_worker(measure, box);
    worker_bytes_ = static_cast<int64_t>(measure.bytes());
    workers_ = arena.take<char>(threads * worker_bytes_);
}

}  // namespace batchnorm
