// The search for shared memory against sets of byte addresses, over small views of any strides.
#include "../../cpp/src/overlap.hpp"
#include "check.hpp"
#include "tensor.hpp"

#include <set>

namespace {

using batchnorm::View;

// Addresses of the elements in C order, from the start of `origin`.
std::vector<int64_t> places(const View& view, const char* origin) {
    std::vector<int64_t> all = {static_cast<const char*>(view.data) - origin};
    for (int d = 0; d < view.rank; ++d) {
        std::vector<int64_t> longer;
        for (const int64_t place : all)
            for (int64_t i = 0; i < view.shape[d]; ++i) longer.push_back(place + i * view.stride[d]);
        all = longer;
    }
    return all;
}

std::set<int64_t> bytes(const View& view, const char* origin) {
    std::set<int64_t> all;
    for (const int64_t place : places(view, origin))
        for (int64_t i = 0; i < batchnorm::item_size(view.dtype); ++i) all.insert(place + i);
    return all;
}

View random_view(Random& random, const char* origin) {
    View view;
    view.dtype = random.integer(0, 1) ? DType::f32 : DType::f64;
    view.rank = static_cast<int>(random.integer(0, 3));
    view.data = origin + random.integer(-40, 40);
    const int64_t unit = random.integer(0, 2) ? batchnorm::item_size(view.dtype) : 1;
    for (int d = 0; d < view.rank; ++d) {
        view.shape[d] = random.integer(random.integer(0, 9) ? 1 : 0, 4);
        view.stride[d] = unit * random.integer(-16, 16);
    }
    return view;
}

void random_views() {
    static const char buffer[1000] = {};
    const char* const origin = buffer + 500;
    Random random(11);
    int overlapping = 0, distinct = 0;
    const int rounds = quick() ? 2000 : 20000;
    for (int i = 0; i < rounds; ++i) {
        const View a = random_view(random, origin), b = random_view(random, origin);
        const std::set<int64_t> bytes_a = bytes(a, origin), bytes_b = bytes(b, origin);
        const bool share =
            std::any_of(bytes_a.begin(), bytes_a.end(), [&](int64_t at) { return bytes_b.count(at) > 0; });
        context = "round " + std::to_string(i);
        CHECK(batchnorm::overlap(a, b) == share);
        CHECK(batchnorm::overlap(b, a) == share);
        overlapping += share;

        // It may be too careful, never too careless.
        const std::size_t item = static_cast<std::size_t>(batchnorm::item_size(a.dtype));
        const bool own = bytes_a.size() == places(a, origin).size() * item;
        if (batchnorm::elements_distinct(a)) CHECK(own);
        distinct += own;
        if (batchnorm::identical(a, b)) CHECK(places(a, origin) == places(b, origin));
        CHECK(batchnorm::identical(a, a));
    }
    // Both outcomes were common.
    CHECK(overlapping > rounds / 10 && overlapping < rounds * 9 / 10);
    CHECK(distinct > rounds / 10 && distinct < rounds * 9 / 10);
}

// Every layout that users have is known to have a place for each element.
void usual_layouts() {
    for (const Layout layout : writable_layouts)
        for (const DType dtype : {DType::f32, DType::f64}) {
            context = name(layout);
            const Tensor tensor(dtype, {3, 4, 1, 5}, layout), other(dtype, {3, 4, 1, 5}, layout);
            CHECK(batchnorm::elements_distinct(tensor.view()));
            CHECK(!batchnorm::overlap(tensor.view(), other.view()));
            CHECK(batchnorm::overlap(tensor.view(), tensor.view()));
            CHECK(batchnorm::identical(tensor.view(), tensor.view()));
            CHECK(!batchnorm::identical(tensor.view(), other.view()));
        }
    for (const Layout layout : {Layout::repeated_first, Layout::repeated_last})
        CHECK(!batchnorm::elements_distinct(Tensor(DType::f32, {3, 4}, layout).view()));
}

// Large views, for which a search element by element would not end: two column ranges of one matrix.
void large_views() {
    static const char memory[8] = {};
    View left;
    left.data = memory;
    left.rank = 4;
    const int64_t shape[] = {1000, 500, 300, 100}, stride[] = {500 * 300 * 800, 300 * 800, 800, 4};
    std::copy(shape, shape + 4, left.shape);
    std::copy(stride, stride + 4, left.stride);
    View right = left;
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    right.data = reinterpret_cast<const void*>(address + 400);
    context = "columns";
    CHECK(!batchnorm::overlap(left, right));
    right.data = reinterpret_cast<const void*>(address + 399);
    CHECK(batchnorm::overlap(left, right));
}

}  // namespace

int main() {
    random_views();
    usual_layouts();
    large_views();
    return report();
}
