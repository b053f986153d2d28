// What the four kernels share: elements, stepping through rows, and looking up a per-channel value.
#pragma once

#include "half.hpp"
#include "table.hpp"

namespace {

using batchnorm::kernels::Pattern;
using batchnorm::kernels::Reading;
using batchnorm::kernels::RowOrder;
using std::int64_t;

// The type that elements of type T are computed in.
template <class T>
struct ArithmeticOf {
    using type = T;
};
template <>
struct ArithmeticOf<Half> {
    using type = float;
};
template <>
struct ArithmeticOf<BFloat16> {
    using type = float;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

// Whether elements of type T are of 16 bits: then the arithmetic is of another type, into which Vec's header loads
// them, and out of which it stores them.
template <class T>
constexpr bool is_half = sizeof(T) == 2;

// One element, which need not be aligned.
template <class T>
T scalar(const void* p) {
    T value;
    __builtin_memcpy(&value, p, sizeof(T));
    return value;
}

// Elements of memory, as what they are computed in, and back; at most the first n of a vector with a trailing n.
template <class T, class... Left>
Vec<Arithmetic<T>> load(const T* p, Left... left) {
    return Vec<T>::load(p, left...);
}
template <class T, class... Left>
void store(Vec<Arithmetic<T>> v, T* p, Left... left) {
    v.store(p, left...);
}
// Of 16 bits through a small array, so that no memory past n is touched, unless Vec's header has a better way.
template <class T>
    requires is_half<T>
Vec<float> load(const T* p, int n) {
    T lanes[Vec<float>::width] = {};
    __builtin_memcpy(lanes, p, static_cast<unsigned>(n) * sizeof(T));
    return load(lanes + 0);
}
// As many as a Vec<double> holds, as doubles; one by one, unless Vec's header has a better way.
template <class T>
    requires is_half<T>
Vec<double> widen(const T* p) {
    double lanes[Vec<double>::width];
    for (int i = 0; i < Vec<double>::width; ++i) lanes[i] = static_cast<double>(to_float(scalar<T>(p + i)));
    return Vec<double>::load(lanes + 0);
}
template <class T>
    requires is_half<T>
Vec<double> widen(const T* p, int n) {
    T lanes[Vec<double>::width] = {};
    __builtin_memcpy(lanes, p, static_cast<unsigned>(n) * sizeof(T));
    return widen(lanes + 0);
}
template <class T>
    requires is_half<T>
void store(Vec<float> v, T* p, int n) {
    T lanes[Vec<float>::width];
    store(v, lanes + 0);
    __builtin_memcpy(p, lanes, static_cast<unsigned>(n) * sizeof(T));
}
template <class T>
void stream(Vec<Arithmetic<T>> v, T* p) {
    v.stream(p);
}

// A vector that is loaded whole, whatever a mask then leaves of it: hardware follows rows by their loads, but not by
// masked ones, which a compiler may make of both (docs/experiments.md).
template <class V>
V whole(V v) {
    return v;
}

template <class T>
const T* row_at(const void* data, int64_t stride, int64_t row) {
    return reinterpret_cast<const T*>(static_cast<const char*>(data) + stride * row);
}
template <class T>
T* row_at(void* data, int64_t stride, int64_t row) {
    return reinterpret_cast<T*>(static_cast<char*>(data) + stride * row);
}

// step(i) for each whole vector of a row of n elements, then step(i, left) for the elements that are left: what takes
// the trailing count, such as load(p, left...), serves both.
template <int width, class Step>
void for_each_vector(int64_t n, const Step& step) {
    int64_t i = 0;
    for (; i + width <= n; i += width) step(i);
    if (i < n) step(i, static_cast<int>(n - i));
}

// A number that the compiler knows.
template <int n>
struct Count {
    static constexpr int value = n;
    constexpr operator int() const { return n; }
};
// The number that a type stands for, or 0.
template <class N>
constexpr int known = 0;
template <int n>
constexpr int known<Count<n>> = n;

// For the writers: step(i, channel), where channel is i mod period, for what lies in whole lines, so many elements in
// each step. Before and behind them, less than a line at a time, step(i, channel, left) for a vector of `left`
// elements.
template <int width, int line, int in_step, class Step>
[[gnu::always_inline]] inline void for_each_vector(int64_t n, int head, int64_t period, const Step& step) {
    static_assert(in_step % width == 0 && line % in_step == 0);
    int64_t i = 0, channel = 0;
    const auto rest = [&](int64_t end) __attribute__((always_inline)) {
        if constexpr (line > width) {
            for (; i + width <= end; i += width) {
                step(i, channel, width);
                channel = (channel + width) % period;
            }
        }
        if (i >= end) return;
        step(i, channel, static_cast<int>(end - i));
        channel = (channel + end - i) % period;
        i = end;
    };
    if (head > 0) rest(head);
    const int64_t advance = in_step % period, whole = i + (n - i) / line * line;
    for (; i < whole; i += in_step) {
        step(i, channel);
        channel += advance;
        if (channel >= period) channel -= period;
    }
    rest(n);
}

// The reductions of lanes take a block of rows at once, column by column, so that the sums of a column stay in
// registers: step(row, Count<block>) for whole blocks, then step(row, left) for the rows that are left.
template <int block, class Step>
[[gnu::always_inline]] inline void for_each_block(int64_t rows, const Step& step) {
    int64_t row = 0;
    for (; row + block <= rows; row += block) step(row, Count<block>{});
    if (row < rows) step(row, static_cast<int>(rows - row));
}

// How many vectors a column of elements of type T has: a line, with AVX-512. The few 16-bit rows that are left of whole
// blocks take one at a time, for less code.
template <class T, class Rows>
constexpr int column_of =
    is_half<T> ? (known<Rows> ? 2 : 1)
               : 64 / static_cast<int>(sizeof(T)) / (Vec<double>::width > 4 ? Vec<double>::width : 4);

// step(Count<vectors>{}, i) for columns of so many vectors, then step(Count<1>{}, i) for single ones and
// step(Count<1>{}, i, left) for the elements that are left.
template <int width, int vectors, class Step>
[[gnu::always_inline]] inline void for_each_column(int64_t n, const Step& step) {
    int64_t i = 0;
    for (; i + vectors * width <= n; i += vectors * width) step(Count<vectors>{}, i);
    for (; i + width <= n; i += width) step(Count<1>{}, i);
    if (i < n) step(Count<1>{}, i, static_cast<int>(n - i));
}

// To L2: what is fetched so early would leave L1 before it is read.
inline void prefetch(const char* line) { __builtin_prefetch(line, 0, 2); }

// To L1, for what is read next but one: rows that are walked side by side are more streams than hardware follows.
inline void prefetch_next(const void* line) { __builtin_prefetch(line, 0, 3); }

// What is written through the caches: its old content must come, and stores behind it would wait for that.
inline void prefetch_to_write(const void* line) { __builtin_prefetch(line, 1, 3); }

// Of a row that is streamed, the line that it shares with what is behind it. A whole line is left alone: streaming to
// one that the caches have takes longer than all others of a row of a few KB (docs/experiments.md).
inline void prefetch_end(const void* end) {
    if (reinterpret_cast<std::uintptr_t>(end) % 64 != 0) prefetch_to_write(end);
}

// Walks rows in memory order that are read `ahead` later, at most rows_ahead. A block of rows is read across, column by
// column, which hardware prefetchers take for no stream at all; with these fetched in order it comes at the memory's
// speed (docs/experiments.md).
class RowsAhead {
  public:
    RowsAhead(const void* const* rows, int64_t row, int64_t listed, int64_t row_bytes,
              int64_t ahead = batchnorm::kernels::rows_ahead)
        : row_bytes_(row_bytes) {
        const int64_t first = listed - row > ahead ? row + ahead : row;
        rows_ = rows + first;
        left_ = listed - first;
        at_ = static_cast<const char*>(*rows_);
        // As a rule rows follow each other without a gap. Of a block, no more than `ahead` rows are taken.
        const int64_t last = (left_ < ahead ? left_ : ahead) - 1;
        const bool follow = static_cast<const char*>(rows_[last]) == at_ + last * row_bytes;
        end_ = at_ + (follow ? ahead * row_bytes : row_bytes);
    }

    // The next bytes; where there are none, some that do no harm.
    [[gnu::always_inline]] const char* take(int bytes) {
        const char* at = at_;
        at_ += bytes;
        if (at_ >= end_) [[unlikely]] {
            if (left_ > 1) {
                ++rows_;
                --left_;
            }
            at_ = static_cast<const char*>(*rows_);
            end_ = at_ + row_bytes_;
        }
        return at;
    }

  private:
    const void* const* rows_;
    int64_t left_, row_bytes_;
    const char *at_, *end_;
};

// The writers fetch so many rows ahead.
constexpr int64_t row_distance = 4;

// What is fetched ahead of a row: rows to come, and its output; neither where another row is read in turns.
struct Fetches {
    bool rows = false, output = false;
};

// A line of cache, in elements of type T.
template <class T>
constexpr int line_of = 64 / static_cast<int>(sizeof(T));

// Instruction sets without streams do not fetch rows either: there it was not measured.
inline bool fetches_ahead(int64_t ahead) { return has_streams && ahead != 0; }

// Rows that are read one after the other, each `stride` bytes after the one before, and what is read `then`, if not
// what lies behind them.
template <class T>
struct RowsRead {
    const void* first;
    int64_t stride, rows, n;
    const void* then;

    // How far behind the i-th element of a row, in bytes, that lies which is read `ahead` bytes later: in that row, in
    // the next one, or where reading goes on. Hardware follows a row, but learns from its first lines alone where
    // another one is.
    [[gnu::noinline]] int64_t distance(int64_t ahead, int64_t row, int64_t i) const {
        const int64_t unit = static_cast<int64_t>(sizeof(T)), row_bytes = n * unit, gap = stride - row_bytes;
        const int64_t left = row_bytes - i * unit, later = rows - 1 - row;
        // No further than the next row is long, or as many rows as follow each other.
        const int64_t most = gap == 0 ? rows * row_bytes : row_bytes;
        if (ahead > most) ahead = most;
        if (left > ahead) return ahead;
        if (left + later * row_bytes > ahead) return ahead + gap;
        if (!then) return ahead;
        return ahead +
               (static_cast<const char*>(then) - reinterpret_cast<const char*>(row_at<T>(first, stride, rows - 1) + n));
    }
};

// Elements before a row's first line, of n.
template <class T>
int head_of(const T* row, int64_t n) {
    const auto element = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(row) / sizeof(T));
    const int64_t elements = (line_of<T> - element % line_of<T>) % line_of<T>;
    return static_cast<int>(elements < n ? elements : n);
}

// Whether lines start at the same elements of both rows. A row may start within an element's size: its head would be
// the same, and no vector of it aligned.
template <class T>
bool aligned_alike(const T* a, const T* b) {
    return (reinterpret_cast<std::uintptr_t>(a) - reinterpret_cast<std::uintptr_t>(b)) % 64 == 0;
}

// A kernel is compiled in these flavours: plain, writing through the caches or past them; full, which decides that and
// all else at run time (table.hpp); and what is asked of full most often, relu by a mask and, backward, leaky_relu,
// without its branches.
enum class Flavour { plain, streaming, full, masked, leaky };

// Whether a kernel does what full ones do.
constexpr bool is_full(Flavour flavour) { return flavour != Flavour::plain && flavour != Flavour::streaming; }

// Where the ends of a row are written that are not whole lines: where they are, or to lines kept elsewhere.
template <class T>
struct Ends {
    const T *head_end = nullptr, *tail_begin = nullptr;
    T *head = nullptr, *tail = nullptr;

    T* place(T* at) const {
        const auto in_line = reinterpret_cast<std::uintptr_t>(at) % 64 / sizeof(T);
        if (head && at < head_end) return head + in_line;
        return tail && at >= tail_begin ? tail + in_line : at;
    }
};

// Rows that are streamed and follow each other without a gap share lines. Each is put together here, from the end of
// one row and the start of the next, so that it goes past the caches as a whole.
template <class T>
class Seams {
  public:
    Seams(void* out, int64_t stride, int64_t n, int64_t rows, bool streams)
        : out_(static_cast<T*>(out)),
          n_(n),
          rows_(rows),
          joined_(streams && stride == n * static_cast<int64_t>(sizeof(T)) && n > 2 * line_of<T>) {}

    // Whether a row shares a line with the one before it, and with the one behind it.
    bool before(int64_t row) const { return joined_ && row > 0 && row < rows_ && address(row) % 64 != 0; }
    bool behind(int64_t row) const { return before(row + 1); }

    Ends<T> ends(int64_t row) { return joined_ ? shared_ends(row) : Ends<T>{}; }

    // When a row is written: streams the line that it shares with the one before.
    void close(int64_t row) const {
        if (before(row)) stream_line_of(row);
    }

  private:
    [[gnu::noinline]] Ends<T> shared_ends(int64_t row) {
        Ends<T> ends;
        if (before(row)) {
            ends.head_end = line_at(row) + line_of<T>;
            ends.head = lines_[(row - 1) % 2];
        }
        if (behind(row)) {
            ends.tail_begin = line_at(row + 1);
            ends.tail = lines_[row % 2];
        }
        return ends;
    }

    [[gnu::noinline]] void stream_line_of(int64_t row) const {
        __asm__ volatile("" ::: "memory");  // what was written as T is read as float
        const auto* from = reinterpret_cast<const float*>(lines_[(row - 1) % 2]);
        auto* to = reinterpret_cast<float*>(line_at(row));
        for (int i = 0; i < line_of<float>; i += Vec<float>::width) Vec<float>::load(from + i).stream(to + i);
    }

    std::uintptr_t address(int64_t row) const { return reinterpret_cast<std::uintptr_t>(out_ + row * n_); }
    // That in which a row starts.
    T* line_at(int64_t row) const { return reinterpret_cast<T*>(address(row) / 64 * 64); }

    T* const out_;
    const int64_t n_, rows_;
    const bool joined_;
    alignas(64) T lines_[2][line_of<T>];
};

// How a row is written. Past the caches go whole lines alone: one that is written partly so and partly through them
// costs more than it saves.
template <class T, Flavour flavour>
struct RowWriter {
    T* row;
    bool streams;
    Ends<T> ends{};

    static constexpr int width = Vec<Arithmetic<T>>::width;
    // Whether two vectors are written at a time, which takes fewer operations. Not in the full flavour: weights may be
    // NaNs of any bits.
    static constexpr bool in_twos =
        flavour != Flavour::full && requires(T* p, Vec<Arithmetic<T>> v) { store_two(v, v, p); };
    static constexpr int in_step = in_twos ? 2 * width : width;
    // Vectors of a step, which may have a trailing count.
    template <class... Left>
    static constexpr int vectors = in_twos && sizeof...(Left) == 0 ? 2 : 1;
    static constexpr int line = flavour == Flavour::plain || line_of<T> < in_step ? in_step : line_of<T>;

    bool past_caches() const { return flavour == Flavour::streaming || (is_full(flavour) && streams); }
    // Elements before those that are written by whole lines: past the caches, and in the plain flavour from a row's
    // start on, where a vector is a line, which would lie in two, and lanes do not look up what would then. `least`:
    // rows of fewer elements lose more by a vector more.
    template <Pattern pattern>
    int head(int64_t begin, int64_t n, int64_t least) const {
        constexpr bool by_lines = flavour == Flavour::plain && pattern == Pattern::row && width == line_of<T>;
        return past_caches() || (by_lines && begin == 0 && n >= least) ? head_of(row, n) : 0;
    }
    void write(Vec<Arithmetic<T>> v, int64_t i) const {
        if (past_caches())
            stream(v, row + i);
        else
            store(v, row + i);
    }
    void write(Vec<Arithmetic<T>> v, int64_t i, int n) const {
        store(v, flavour == Flavour::plain ? row + i : ends.place(row + i), n);
    }

    // Two vectors: those of even elements and of odd ones, where that is quicker and all have the same per-channel
    // values, or one after the other.
    template <Pattern pattern>
    static constexpr bool apart = pattern == Pattern::row && !is_full(flavour) &&
                                  requires(const T* p, Vec<Arithmetic<T>> v) { load_apart(p, v, v); };
    template <Pattern pattern>
    static void load_both(const T* p, Vec<Arithmetic<T>>& a, Vec<Arithmetic<T>>& b) {
        if constexpr (apart<pattern>)
            load_apart(p, a, b);
        else
            load_two(p, a, b);
    }
    template <Pattern pattern>
    void write_both(Vec<Arithmetic<T>> a, Vec<Arithmetic<T>> b, int64_t i) const {
        if constexpr (apart<pattern>)
            past_caches() ? stream_apart(a, b, row + i) : store_apart(a, b, row + i);
        else
            past_caches() ? stream_two(a, b, row + i) : store_two(a, b, row + i);
    }
};

// A per-channel value, in the type of the arithmetic: one for the whole row, that of a channel, or one for each of its
// elements.
template <class T, Pattern pattern>
struct PerChannel;

template <class T>
struct PerChannel<T, Pattern::row> {
    Vec<T> value;
    template <class Args>
    PerChannel(const void* p, const Args& args, int64_t row)
        : value(Vec<T>::all(static_cast<const T*>(p)[args.next_channel ? row : 0])) {}
    template <class... Left>
    Vec<T> at(int64_t, Left...) const {
        return value;
    }
};

template <class T>
struct PerChannel<T, Pattern::lane> {
    const T* p;
    template <class Args>
    PerChannel(const void* p_, const Args&, int64_t) : p(static_cast<const T*>(p_)) {}
    template <class... Left>
    Vec<T> at(int64_t i, Left... left) const {
        return Vec<T>::load(p + i, left...);
    }
};

// alternate-inl.hpp
template <class Writer>
class Steps;

// The kernels of a writer: Writer<T, pattern, flavour> writes a row of one element type,
template <class Writer>
void write_rows(const typename Writer::Args& args) noexcept {
    auto seams = Writer::seams(args);
    for (int64_t row = 0; row < args.rows; ++row) {
        const Writer writer(args, row, seams.ends(row));
        if (args.stream && !seams.behind(row)) prefetch_end(writer.out() + args.n);
        const bool rows_to_come =
            args.fetches_rows && !(args.next_channel && args.stream) && row + row_distance < args.rows;
        writer.write(0, args.n, {.rows = rows_to_come, .output = !args.stream});
        seams.close(row);
    }
}

// or some at a time from this one on, vector by vector,
template <class Writer>
void write_across(const typename Writer::Args& args) noexcept {
    constexpr int64_t rows = 4;
    for (int64_t row = 0; row < args.rows; row += rows)
        Writer(args, row, {}).write_across(row + rows < args.rows ? rows : args.rows - row);
}

// or all of them in nothing but two loops.
template <class Writer>
[[gnu::noinline]] void write_whole(const typename Writer::Args& given) noexcept {
    const auto args = given;  // which is not in memory that the rows may overwrite
    // What is looked up for one step serves all rows of no more.
    if (args.n == Writer::in_step) return Writer(args, 0, {}).write_across(args.rows);
    for (int64_t row = 0; row < args.rows; ++row) Writer(args, row, {}).write_whole();
}

template <class Writer, Pattern pattern>
void write_in_order(const typename Writer::Args& args) noexcept {
    if constexpr (pattern == Pattern::lane) {
        if (args.order == RowOrder::whole) return write_whole<Writer>(args);
        if (args.order == RowOrder::across) return write_across<Writer>(args);
    }
    write_rows<Writer>(args);
}

template <class T, Pattern pattern, template <class, Pattern, Flavour> class Writer>
void write_plain(const typename Writer<T, pattern, Flavour::plain>::Args& args) noexcept {
    if constexpr (has_streams)
        if (args.stream) return write_rows<Writer<T, pattern, Flavour::streaming>>(args);
    write_in_order<Writer<T, pattern, Flavour::plain>, pattern>(args);
}

}  // namespace
