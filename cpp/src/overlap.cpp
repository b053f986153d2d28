#include "overlap.hpp"

namespace batchnorm {
namespace {

using std::int64_t;

// coefficient * [low, high], one for each dimension of either view
struct Term {
    int64_t coefficient, low, high;
};

// Depth-first search for integers with |target - sum(coefficient_i * n_i)| <= slack, terms from the largest
// coefficient to the smallest: what the smaller ones can reach bounds the choice of each.
struct Search {
    Term term[2 * max_rank];
    int terms = 0;
    int64_t reach_low[2 * max_rank + 1], reach_high[2 * max_rank + 1];  // of the terms from i on
    int64_t slack_low, slack_high;
    int budget = 10000;

    void add(int64_t coefficient, int64_t low, int64_t high) noexcept {
        if (coefficient == 0) return;
        if (coefficient < 0) {
            coefficient = -coefficient;
            const int64_t flipped = -low;
            low = -high;
            high = flipped;
        }
        int at = 0;
        while (at < terms && term[at].coefficient > coefficient) ++at;
        if (at < terms && term[at].coefficient == coefficient) {
            term[at].low += low;
            term[at].high += high;
            return;
        }
        for (int i = terms++; i > at; --i) term[i] = term[i - 1];
        term[at] = {coefficient, low, high};
    }

    void bound() noexcept {
        reach_low[terms] = slack_low;
        reach_high[terms] = slack_high;
        for (int i = terms; i-- > 0;) {
            reach_low[i] = reach_low[i + 1] + term[i].coefficient * term[i].low;
            reach_high[i] = reach_high[i + 1] + term[i].coefficient * term[i].high;
        }
    }

    bool reaches(int64_t target, int i) noexcept {
        if (target < reach_low[i] || target > reach_high[i]) return false;
        if (i == terms || --budget < 0) return true;
        const Term& t = term[i];
        // n * coefficient must lie in [target - reach_high, target - reach_low] of the rest.
        const int64_t low = ceil_div(target - reach_high[i + 1], t.coefficient);
        const int64_t high = floor_div(target - reach_low[i + 1], t.coefficient);
        for (int64_t n = low > t.low ? low : t.low; n <= (high < t.high ? high : t.high); ++n)
            if (reaches(target - n * t.coefficient, i + 1)) return true;
        return false;
    }

    static int64_t floor_div(int64_t a, int64_t b) noexcept { return a / b - (a % b < 0); }
    static int64_t ceil_div(int64_t a, int64_t b) noexcept { return a / b + (a % b > 0); }
};

bool empty(const View& view) noexcept {
    for (int i = 0; i < view.rank; ++i)
        if (view.shape[i] == 0) return true;
    return false;
}

}  // namespace

Extent::Extent(const View& view) noexcept {
    if (!view.data || empty(view)) return;
    begin = reinterpret_cast<std::uintptr_t>(view.data);
    end = begin + static_cast<std::uintptr_t>(item_size(view.dtype));
    for (int d = 0; d < view.rank; ++d) {
        const int64_t reach = view.stride[d] * (view.shape[d] - 1);
        (reach < 0 ? begin : end) += static_cast<std::uintptr_t>(reach);
    }
}

bool overlap(const View& a, const View& b) noexcept {
    if (!Extent(a).meets(Extent(b))) return false;
    // Elements at a + sum(i * sa) and b + sum(j * sb) share a byte if their distance is in (-size of a's, size of b's).
    Search search;
    for (int d = 0; d < a.rank; ++d) search.add(a.stride[d], 0, a.shape[d] - 1);
    for (int d = 0; d < b.rank; ++d) search.add(-b.stride[d], 0, b.shape[d] - 1);
    search.slack_low = 1 - item_size(b.dtype);
    search.slack_high = item_size(a.dtype) - 1;
    search.bound();
    const int64_t distance = static_cast<const char*>(b.data) - static_cast<const char*>(a.data);
    return search.reaches(distance, 0);
}

bool identical(const View& a, const View& b) noexcept {
    if (a.data != b.data || a.rank != b.rank || a.dtype != b.dtype) return false;
    for (int d = 0; d < a.rank; ++d)
        if (a.shape[d] != b.shape[d] || (a.shape[d] > 1 && a.stride[d] != b.stride[d])) return false;
    return true;
}

bool elements_distinct(const View& a) noexcept {
    if (empty(a)) return true;
    // From the smallest stride up, each must step over all that the smaller ones reach.
    bool done[max_rank] = {};
    int64_t reach = item_size(a.dtype);
    for (int i = 0; i < a.rank; ++i) {
        int smallest = -1;
        int64_t stride = 0;
        for (int d = 0; d < a.rank; ++d) {
            const int64_t magnitude = a.stride[d] < 0 ? -a.stride[d] : a.stride[d];
            if (!done[d] && a.shape[d] > 1 && (smallest < 0 || magnitude < stride)) {
                smallest = d;
                stride = magnitude;
            }
        }
        if (smallest < 0) break;
        if (stride < reach) return false;
        done[smallest] = true;
        reach += stride * (a.shape[smallest] - 1);
    }
    return true;
}

}  // namespace batchnorm
