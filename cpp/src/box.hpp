// The one picture of every layout: x[group][outer][channel][inner], each level one or more strided dimensions.
//
// A (group, channel) pair has its own statistics, over outer x inner. The box's sizes come from x's shape and memory
// order alone; the other operands are walked in x's order, by strides of their own.
#pragma once

#include <batchnorm/core.hpp>

#include "kernels/table.hpp"

namespace batchnorm {

using kernels::Pattern;
using std::int64_t;

enum LevelName { group, outer, channel, inner, levels };

// The operands of a call, by role; x is always there. The residual is read forward, and its gradient written backward;
// y is forward's output, whose sign tells what an activation let through; v a further tensor that goes into dx.
enum Role { role_x, role_dy, role_out, role_residual, role_y, role_v, role_weights, roles };

// Elements are computed in this type, and what the kernels look up is of it.
constexpr DType arithmetic(DType dtype) noexcept { return dtype == DType::f64 ? DType::f64 : DType::f32; }
// Of 16 bits: reductions then add up runs of elements in float first (kernels/table.hpp).
constexpr bool is_half(DType dtype) noexcept { return item_size(dtype) == 2; }

// A level is an odometer: its dimensions from slowest to fastest.
struct Level {
    int rank = 0;
    int64_t size[max_rank] = {};
    int64_t count = 1;
};

struct Operand {
    char* data = nullptr;  // null: the call has no such operand
    int64_t unit = 0;      // size of an element
    int64_t stride[levels][max_rank] = {};
    bool direct = false;   // unit stride along the rows that kernels see, so that they can read or write it in place
    bool gapless = false;  // direct, and rows follow each other without a gap
    bool uniform = false;  // weights alone: one for each row that kernels see, which they take as it is

    constexpr bool in_place() const noexcept { return direct || uniform; }

    constexpr int64_t offset(const Level& level, LevelName name, int64_t index) const noexcept {
        if (level.rank <= 1) return index * stride[name][0];
        int64_t bytes = 0;
        for (int d = level.rank - 1; d > 0; --d) {
            bytes += index % level.size[d] * stride[name][d];
            index /= level.size[d];
        }
        return bytes + index * stride[name][0];
    }
};

inline constexpr int64_t most_folded_lanes = 256;

// So many lanes are not folded where moments are weighted: their weights would have to be copied.
inline constexpr int64_t least_weighted_lanes = 16;

// Of rows that are folded at least so many remain.
inline constexpr int64_t least_folded_rows = 8;

// Planes of at most so many elements are lanes, no larger ones.
inline constexpr int64_t most_plane_lanes = 256;

// Which planes become lanes. To gather the sums of lanes, and to write their coefficients out, is worth while of many
// rows, and of fewer if a plane has no more than so many elements for each row (docs/experiments.md).
struct PlaneLimits {
    int64_t elements = most_plane_lanes;
    int64_t elements_to_row = 8, many_rows = 20;
};

struct Box {
    Level level[levels];
    Pattern pattern = Pattern::row;
    DType dtype = DType::f32;
    Operand operand[roles];
    std::uint8_t* mask = nullptr;  // of the activation, or null: see mask_at

    // In Pattern::lane, so many neighbouring lanes share a statistic: the level channel then ends in the dimensions of
    // small planes, whose rows would be too short for Pattern::row.
    int64_t plane = 1;

    // The shape of a statistic: the kept axes in x's order. A (group, channel) pair's place in it follows the strides
    // below (in elements, C order); in_order says that it is simply group * channels + channel.
    int kept_rank = 0;
    int64_t kept_shape[max_rank] = {};
    int64_t kept_stride[2][max_rank] = {};  // of the dimensions of the levels group and channel
    bool in_order = true;

    constexpr int64_t groups() const noexcept { return level[group].count; }
    constexpr int64_t outers() const noexcept { return level[outer].count; }
    constexpr int64_t channels() const noexcept { return level[channel].count / plane; }
    constexpr int64_t inners() const noexcept { return level[inner].count; }
    constexpr int64_t lanes() const noexcept { return level[channel].count; }

    constexpr int64_t statistics() const noexcept { return groups() * channels(); }    // how many
    constexpr int64_t values() const noexcept { return outers() * inners() * plane; }  // M: elements behind each
    constexpr int64_t elements() const noexcept { return statistics() * values(); }

    // Whether what is reduced is weighted: backward's sums are not.
    constexpr bool weights_moments() const noexcept { return operand[role_weights].data && !operand[role_dy].data; }

    // Few lanes leave most of a vector idle: so many rows are then reduced as one, if several of these remain.
    int64_t fold() const noexcept {
        if (pattern == Pattern::row || 2 * lanes() > most_folded_lanes) return 1;
        if (weights_moments() && lanes() >= least_weighted_lanes) return 1;
        const int64_t rows = most_folded_lanes / lanes(), most = outers() / least_folded_rows;
        return rows < most ? rows : most > 1 ? most : 1;
    }

    // The mask has one bit for each element, in the box's order: group, outer, channel, inner. Each row of contiguous
    // elements starts at a whole byte, and tasks are cut at multiples of 8 elements.
    constexpr int64_t mask_pitch() const noexcept { return (level[row_level()].count + 7) / 8; }
    constexpr int64_t mask_rows() const noexcept {
        return groups() * outers() * (pattern == Pattern::row ? channels() : 1);
    }
    constexpr int64_t mask_stride() const noexcept { return mask_pitch() * (pattern == Pattern::row ? channels() : 1); }
    constexpr int64_t mask_bytes() const noexcept { return mask_rows() * mask_pitch(); }
    constexpr std::uint8_t* mask_at(int64_t g, int64_t o, int64_t c, int64_t element) const noexcept {
        if (!mask) return nullptr;
        return mask + (g * outers() + o) * mask_stride() + (pattern == Pattern::row ? c * mask_pitch() : 0) +
               element / 8;
    }

    // Whether kernels can take all of the call's operands where they are.
    bool direct() const noexcept {
        for (const Operand& o : operand)
            if (o.data && !o.in_place()) return false;
        return true;
    }

    // Whether what is written takes the place of inputs, all of it: the caches then have those lines. Backward, that is
    // the residual's gradient, too.
    bool overwrites() const noexcept {
        const bool two = operand[role_dy].data && operand[role_residual].data;
        const auto on_an_input = [&](Role output) {
            for (int r = 0; r < roles; ++r)
                if (r != role_out && !(two && r == role_residual) && operand[r].data &&
                    operand[r].data == operand[output].data)
                    return true;
            return false;
        };
        return on_an_input(role_out) && (!two || on_an_input(role_residual));
    }

    // Whether, in memory, a row of each channel comes before the next outer index. The rows of a plane with gaps
    // between them are outer, and come before the next channel.
    bool channels_follow() const noexcept {
        if (level[outer].rank == 0 || level[channel].rank == 0) return true;
        const Operand& x = operand[role_x];
        return x.stride[outer][level[outer].rank - 1] >= x.stride[channel][0];
    }

    // The level along which kernels see rows of contiguous elements.
    constexpr LevelName row_level() const noexcept { return pattern == Pattern::row ? inner : channel; }
};

// What the body of a stage does with the operands; those that a call does not have it leaves alone.
enum class Access : std::uint8_t { none, read, write };

struct Uses {
    Access of[roles] = {};

    Uses(const Box& box, const Access (&access)[roles]) noexcept {
        for (int r = 0; r < roles; ++r)
            if (box.operand[r].data) of[r] = access[r];
    }
};

// kept[axis] says which axes keep their statistics. x has been validated and has at least one element; the other views
// may be null, and have x's shape otherwise.
Box canonicalize(const View* const (&views)[roles], const bool (&kept)[max_rank],
                 const PlaneLimits& limits = {}) noexcept;

}  // namespace batchnorm
