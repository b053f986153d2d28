// alternate: reduces rows and writes others, as many and of the same length, in turns.
//
// Reading waits for memory, and so does writing past the caches, but not for the same thing: in turns of a KB both
// together take little longer than either. Within the caches adding up waits for arithmetic, and writing for them:
// there a vector of one is taken after a vector of the other. They share the loop alone.
#pragma once

#include "grad_sums-inl.hpp"
#include "input_grad-inl.hpp"
#include "moments-inl.hpp"
#include "normalize-inl.hpp"

namespace {

template <class T, Flavour>
using MomentsOf = RowMoments<T>;

// What is streamed beside moments, which read one operand, is so in turns of half as much, but not of 16 bits. In the
// full flavours that pays off for float64 alone, where its vectors are lines; there through a mask as well
// (docs/experiments.md).
template <class T, class Reader, Flavour flavour>
constexpr int64_t streamed_turn() {
    constexpr bool moments = __is_same(Reader, RowMoments<T>), masked = flavour == Flavour::masked;
    constexpr bool doubles_in_lines = __is_same(T, double) && Vec<double>::width == line_of<double>;
    constexpr bool half = is_full(flavour) ? doubles_in_lines && (moments || masked)
                                           : flavour == Flavour::streaming && moments && !is_half<T>;
    return half ? turn_of<T> / 2 : turn_of<T>;
}
static_assert(turn_of<double> / 2 % batchnorm::kernels::row_alignment == 0);

template <class T, class Reader, class Writer>
void alternate_rows(const typename Reader::Args& read, const typename Writer::Args& write) noexcept {
    const int64_t n = read.n, turn = write.stream ? streamed_turn<T, Reader, Writer::flavour>() : turn_of<T>;
    auto seams = Writer::seams(write);
    for (int64_t row = 0; row < read.rows; ++row) {
        Reader reader(read, row);
        const Writer writer(write, row, seams.ends(row));
        // What is written is cut where a line of the output starts.
        const int64_t head = head_of(writer.out(), turn);
        int64_t written = 0;
        if (write.stream && !seams.behind(row)) prefetch_end(writer.out() + n);
        for (int64_t i = 0; i < n; i += turn) {
            const int64_t end = i + turn < n ? i + turn : n, until = end + head < n ? end + head : n;
            reader.add(row, i, end);
            // Looks the page up that will be written next.
            if (write.page_ahead) prefetch(reinterpret_cast<const char*>(writer.out() + until) + write.page_ahead);
            writer.write(written, until, {});
            written = until;
        }
        seams.close(row);
        reader.store();
    }
}

// Writes the vectors of a row, which are lines, some at a time.
template <class Writer>
class Steps {
  public:
    explicit Steps(const Writer& writer)
        : writer_(writer), place_(writer.args_, writer.row_, 0, {}), looked_(writer.look_up(0, 0)) {}

    template <int bytes>
    [[gnu::always_inline]] void write() {
        static_assert(bytes % 64 == 0);
#pragma GCC unroll 8
        for (int line = 0; line < bytes / 64; ++line, written_ += width)
            writer_.write_vectors(place_, looked_, written_, written_);
    }
    int64_t written() const { return written_; }

  private:
    static constexpr int width = Writer::Row::width;
    const Writer& writer_;
    typename Writer::Place place_;
    const typename Writer::template Looked<1> looked_;
    int64_t written_ = 0;
};

// The same through the caches, where vectors of both and of doubles are lines.
template <class T, class Reader, class Writer>
void alternate_vectors(const typename Reader::Args& read, const typename Writer::Args& write) noexcept {
    const int64_t n = read.n, turn = fetches_ahead(read.ahead) ? turn_of<T> : n;  // to look up anew what to fetch
    for (int64_t row = 0; row < read.rows; ++row) {
        Reader reader(read, row);
        const Writer writer(write, row, {});
        Steps<Writer> steps(writer);
        for (int64_t i = 0; i < n; i += turn)
            reader.add(row, i, i + turn < n ? i + turn : n,
                       [&](auto bytes) __attribute__((always_inline)) { steps.template write<bytes>(); });
        writer.write(steps.written(), n, {});
        reader.store();
    }
}

template <class T, class Reader, template <class, Pattern, Flavour> class Writer>
void alternate_plain(const typename Reader::Args& read,
                     const typename Writer<T, Pattern::row, Flavour::plain>::Args& write) noexcept {
    using Plain = Writer<T, Pattern::row, Flavour::plain>;
    if constexpr (has_streams)
        if (write.stream) return alternate_rows<T, Reader, Writer<T, Pattern::row, Flavour::streaming>>(read, write);
    if constexpr (Vec<Arithmetic<T>>::width == line_of<T> && Vec<double>::width == line_of<double>)
        alternate_vectors<T, Reader, Plain>(read, write);
    else
        alternate_rows<T, Reader, Plain>(read, write);
}

// Where elements are not weighted: the reader is of the writer's flavour.
template <class T, template <class, Flavour> class Reader, template <class, Pattern, Flavour> class Writer>
void alternate_full(const typename Reader<T, Flavour::full>::Args& read,
                    const typename Writer<T, Pattern::row, Flavour::full>::Args& write) noexcept {
    in_flavour<T>(write, [&]<Flavour flavour> {
        alternate_rows<T, Reader<T, flavour>, Writer<T, Pattern::row, flavour>>(read, write);
    });
}

}  // namespace
