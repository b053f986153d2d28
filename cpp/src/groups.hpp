// group_size: axis 0 cut into groups of so many samples, which becomes two axes, of groups that keep their statistics
// and of samples that do not. A shorter last group is a part of its own.
#pragma once

#include <batchnorm/core.hpp>

namespace batchnorm {

// The groups of one size, of a call; all of the batch, as it is, where there is no group_size.
struct Part {
    std::int64_t groups = 0;                                      // 0: there is no group_size
    std::int64_t first_group = 0, first_sample = 0, samples = 0;  // samples of a group
    bool last = true;

    // A tensor's part.
    template <class AnyView>
    AnyView tensor(const AnyView& whole) const noexcept {
        if (groups == 0) return whole;
        AnyView part = whole;
        part.rank = whole.rank + 1;
        for (int d = whole.rank; d > 1; --d) {
            part.shape[d] = whole.shape[d - 1];
            part.stride[d] = whole.stride[d - 1];
        }
        part.shape[0] = groups;
        part.shape[1] = samples;
        part.stride[0] = samples * whole.stride[0];
        part.stride[1] = whole.stride[0];
        return moved(part, first_sample * whole.stride[0]);
    }

    // A statistic's part, which has the groups as a leading axis.
    template <class AnyView>
    AnyView own(const AnyView& whole) const noexcept {
        if (groups == 0 || whole.rank == 0) return whole;
        AnyView part = whole;
        part.shape[0] = groups;
        return moved(part, first_group * whole.stride[0]);
    }

    // A parameter, the same for all groups.
    Param shared(const Param& param) const noexcept {
        if (groups == 0 || param.rank == 0) return param;
        Param repeated = param;
        repeated.rank = param.rank + 1;
        for (int d = param.rank; d > 0; --d) {
            repeated.shape[d] = param.shape[d - 1];
            repeated.stride[d] = param.stride[d - 1];
        }
        repeated.shape[0] = groups;
        repeated.stride[0] = 0;
        return repeated;
    }

  private:
    template <class AnyView>
    static AnyView moved(AnyView view, std::int64_t bytes) noexcept {
        using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>, const char, char>;
        if (view.data) view.data = static_cast<Byte*>(view.data) + bytes;
        return view;
    }
};

// The parts of a call, one or two.
struct Parts {
    int count = 1;
    Part at[2];

    Parts(std::int64_t samples, std::int64_t group_size) noexcept {
        if (group_size == 0) return;
        const std::int64_t whole = samples / group_size, rest = samples % group_size;
        count = 0;
        if (whole > 0) at[count++] = {whole, 0, 0, group_size, rest == 0};
        if (rest > 0) at[count++] = {1, whole, whole * group_size, rest, true};
    }
};

}  // namespace batchnorm
