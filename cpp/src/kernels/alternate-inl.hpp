// alternate: reduces rows and writes others, as many and of the same length, in turns.
//
// Reading waits for memory, and so does writing past the caches, but not for the same thing: in turns of a KB both
// together take little longer than either. They share the loop alone.
#pragma once

#include "grad_sums-inl.hpp"
#include "input_grad-inl.hpp"
#include "moments-inl.hpp"
#include "normalize-inl.hpp"

namespace {

template <class T, Flavour>
using MomentsOf = RowMoments<T>;

template <class T, class Reader, class Writer>
void alternate_rows(const typename Reader::Args& read, const typename Writer::Args& write) noexcept {
    constexpr int64_t turn = turn_of<T>;
    const int64_t n = read.n;
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

template <class T, class Reader, template <class, Pattern, Flavour> class Writer>
void alternate_plain(const typename Reader::Args& read,
                     const typename Writer<T, Pattern::row, Flavour::plain>::Args& write) noexcept {
    if constexpr (has_streams)
        if (write.stream) return alternate_rows<T, Reader, Writer<T, Pattern::row, Flavour::streaming>>(read, write);
    alternate_rows<T, Reader, Writer<T, Pattern::row, Flavour::plain>>(read, write);
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
