// Pattern::row, where a channel has one row: a few rows at a time, which L1 has while they are reduced and written.
//
// Of float and double: what is reduced of 16-bit elements is not yet a chunk's sum.
#pragma once

#include "apply.hpp"
#include "reduce.hpp"

namespace batchnorm {

// To put calls together anew for so few rows takes as long as a row: they are those of the rows before, moved.
template <class Reduce, class Apply, class Merge>
void row_by_row(const Stages& stages, int64_t at_once, int64_t g, Range channels, const Merge& merge) noexcept {
    const Box& box = stages.box;
    const Range inners{0, box.inners()};
    DirectRows from(box, Uses(box, Reduce::access), g), to(box, Uses(box, Apply::access), g);
    from.go_to(0, inners);
    to.go_to(0, inners);
    const RowSteps from_steps = from.channel_steps(at_once), to_steps = to.channel_steps(at_once);

    const Reduce terms(stages, g, 0);
    BlockSums<Reduce> sums(terms, g, 0, channels);
    auto read = sums.args(from.span(channels.begin, at_once), 0, true, true);
    auto write = row_args<Apply>(stages, to.span(channels.begin, at_once), g, channels.begin);
    for (int64_t c = channels.begin; c < channels.end; c += at_once) {
        const int64_t some = channels.end - c < at_once ? channels.end - c : at_once;
        read.rows = write.rows = some;
        terms.add(read);
        merge(g, {c, c + some});
        Apply::write(stages, write);
        Reduce::move(read, from_steps);
        Reduce::skip(read, some);
        Apply::move(write, to_steps);
        Apply::skip(write, some * Memory::coefficient_size(box));
    }
    if (stages.stream) stages.kernels.finish_streams();
}

}  // namespace batchnorm
