// From views with any strides to the box.
//
// The axes are put into x's memory order, and runs of like axes (kept or reduced) that x walks with one stride become
// one. The innermost run decides the pattern: reduced, its elements share a channel (row); kept, they are a row of
// channels (lane). Small planes become lanes too. What then remains of the kept axes is the groups, and of the reduced
// ones the outer level.
#include "box.hpp"

namespace batchnorm {
namespace {

// The roles that a call has operands for.
struct Present {
    int count = 0;
    int role[roles];

    explicit Present(const View* const (&views)[roles]) noexcept {
        for (int r = 0; r < roles; ++r)
            if (views[r]) role[count++] = r;
    }
    const int* begin() const noexcept { return role; }
    const int* end() const noexcept { return role + count; }
};

struct Dimension {
    int64_t size;
    bool kept;
    int64_t stride[roles];
    int64_t kept_stride;
    LevelName level;
};

struct Dimensions {
    int count = 0;
    Dimension at[max_rank];
};

int64_t magnitude(int64_t stride) noexcept { return stride < 0 ? -stride : stride; }

// A repeated (0-stride) axis goes outermost: nothing is contiguous along it.
bool slower(const Dimension& a, const Dimension& b) noexcept {
    const int64_t sa = magnitude(a.stride[role_x]), sb = magnitude(b.stride[role_x]);
    return sb != 0 && (sa == 0 || sa > sb);
}

Dimensions in_memory_order(const View* const (&views)[roles], const Present& present, const bool (&kept)[max_rank],
                           const int64_t (&kept_stride)[max_rank]) noexcept {
    const View& x = *views[role_x];
    Dimensions dims;
    for (int axis = 0; axis < x.rank; ++axis) {
        if (x.shape[axis] == 1) continue;
        Dimension dim;
        dim.size = x.shape[axis];
        dim.kept = kept[axis];
        dim.kept_stride = kept_stride[axis];
        for (const int r : present) dim.stride[r] = views[r]->stride[axis];
        int at = dims.count++;  // insertion keeps the order of equal strides
        for (; at > 0 && slower(dim, dims.at[at - 1]); --at) dims.at[at] = dims.at[at - 1];
        dims.at[at] = dim;
    }
    return dims;
}

// One stride walks both, `slow` outside `fast`, for this operand.
bool chains(const Dimension& slow, const Dimension& fast, int role) noexcept {
    return slow.stride[role] == fast.size * fast.stride[role];
}

void assign_levels(Dimensions& dims) noexcept {
    for (int i = 0; i < dims.count; ++i) dims.at[i].level = dims.at[i].kept ? group : outer;

    // The run that ends at dimension `last`: like kinds that x walks with one stride.
    const auto assign_run = [&](int last, LevelName level) {
        int i = last;
        do dims.at[i].level = level;
        while (--i >= 0 && dims.at[i].kept == dims.at[last].kept && chains(dims.at[i], dims.at[i + 1], role_x));
        return i;
    };

    int last = dims.count - 1;
    if (last >= 0 && !dims.at[last].kept) last = assign_run(last, inner);
    while (last >= 0 && !dims.at[last].kept) --last;
    if (last >= 0) assign_run(last, channel);
}

// Appends dim to its level, as one with the level's last dimension if one stride walks both for every operand and for
// the statistics.
void append(Box& box, const Dimension& dim, const Present& present, Dimension (&last_of)[levels]) noexcept {
    Level& level = box.level[dim.level];
    Dimension& last = last_of[dim.level];
    bool merges = level.rank > 0 && last.kept_stride == dim.size * dim.kept_stride;
    for (const int r : present) merges = merges && chains(last, dim, r);

    const int64_t merged_size = merges ? last.size * dim.size : dim.size;
    if (!merges) ++level.rank;
    last = dim;
    last.size = merged_size;
    const int at = level.rank - 1;
    level.size[at] = merged_size;
    level.count *= dim.size;
    for (const int r : present) box.operand[r].stride[dim.level][at] = dim.stride[r];
    if (dim.kept) box.kept_stride[dim.level == channel][at] = dim.kept_stride;
}

// Small planes next to their channels become lanes. Returns the lanes of a channel.
int64_t flatten_planes(Dimensions& dims, const PlaneLimits& limits) noexcept {
    int64_t plane = 1, rows = 1;
    int first = dims.count;
    while (first > 0 && dims.at[first - 1].level == inner) plane *= dims.at[--first].size;
    for (int i = 0; i < first; ++i)
        if (dims.at[i].level == outer) rows *= dims.at[i].size;
    if (plane == 1 || plane > limits.elements) return 1;
    if (rows < limits.many_rows && plane > limits.elements_to_row * rows) return 1;
    if (first == 0 || dims.at[first - 1].level != channel) return 1;
    for (int i = first; i < dims.count; ++i) dims.at[i].level = channel;
    return plane;
}

bool stays(const Level& level, const int64_t (&stride)[max_rank]) noexcept {
    for (int d = 0; d < level.rank; ++d)
        if (stride[d] != 0) return false;
    return true;
}

bool walks_by(const Level& level, const int64_t (&stride)[max_rank], int64_t unit, int rank) noexcept {
    for (int d = rank - 1; d >= 0; --d) {
        if (stride[d] != unit) return false;
        unit *= level.size[d];
    }
    return true;
}

}  // namespace

Box canonicalize(const View* const (&views)[roles], const bool (&kept)[max_rank], const PlaneLimits& limits) noexcept {
    const View& x = *views[role_x];
    Box box;
    box.dtype = x.dtype;
    const Present present(views);
    for (const int r : present) {
        // Operands are only written through roles that came as a MutView.
        box.operand[r].data = static_cast<char*>(const_cast<void*>(views[r]->data));
        box.operand[r].unit = item_size(views[r]->dtype);
    }

    int64_t kept_stride[max_rank] = {};
    int64_t stride = 1;
    for (int axis = x.rank - 1; axis >= 0; --axis) {
        if (!kept[axis]) continue;
        kept_stride[axis] = stride;
        stride *= x.shape[axis];
    }
    for (int axis = 0; axis < x.rank; ++axis)
        if (kept[axis]) box.kept_shape[box.kept_rank++] = x.shape[axis];

    Dimensions dims = in_memory_order(views, present, kept, kept_stride);
    assign_levels(dims);
    box.plane = flatten_planes(dims, limits);
    Dimension last_of[levels];
    for (int i = 0; i < dims.count; ++i) append(box, dims.at[i], present, last_of);

    box.pattern = dims.count > 0 && dims.at[dims.count - 1].level == channel ? Pattern::lane : Pattern::row;
    const LevelName rows = box.row_level();
    for (const int r : present) {
        Operand& operand = box.operand[r];
        operand.direct = walks_by(box.level[rows], operand.stride[rows], operand.unit, box.level[rows].rank);
        operand.gapless = operand.direct && walks_by(box.level[outer], operand.stride[outer],
                                                     box.level[rows].count * operand.unit, box.level[outer].rank);
    }
    // Folded rows are several, and have a weight each.
    Operand& weights = box.operand[role_weights];
    const bool folded = box.weights_moments() && box.fold() > 1;
    weights.uniform = weights.data && !folded && stays(box.level[rows], weights.stride[rows]);
    int kept_dimensions = 0;  // before those of planes
    while (kept_dimensions < box.level[channel].rank && box.kept_stride[1][kept_dimensions] != 0) ++kept_dimensions;
    box.in_order = walks_by(box.level[channel], box.kept_stride[1], 1, kept_dimensions) &&
                   walks_by(box.level[group], box.kept_stride[0], box.channels(), box.level[group].rank);

    return box;
}

}  // namespace batchnorm
