// How calls go through the box: which way each shape of tests/python/test_traversals.py takes, and what the stages rely
// on for all of them.
#include "../../cpp/src/alternate.hpp"
#include "../../cpp/src/plan.hpp"
#include "../../cpp/src/thread_count.hpp"
#include "check.hpp"
#include "tensor.hpp"

namespace {

using batchnorm::Ahead;
using batchnorm::Box;
using batchnorm::Caches;
using batchnorm::Chunks;
using batchnorm::Pattern;
using batchnorm::Plan;
using batchnorm::Traversal;
using batchnorm::kernels::Reading;

constexpr const char* pattern_names[] = {"row", "lane"};
constexpr const char* traversal_names[] = {"alternate", "row by row", "slabs", "two passes"};

// Those of Zen 4 and of a recent Intel Xeon; and of systems that say nothing, or of large ones.
constexpr Caches zen = {32 << 10, 1 << 20}, zen5 = {48 << 10, 1 << 20}, xeon = {48 << 10, 2 << 20}, silent = {0, 0},
                 large = {128 << 10, 16 << 20}, large_first = {128 << 10, 1 << 20};

// The box of a tensor in memory order; every operand is like x if `alike`, and dy and out are absent otherwise.
Box box_of(const Shape& shape, const std::vector<int>& axes, DType dtype, bool alike = false) {
    static char memory;
    batchnorm::View x = batchnorm::view(static_cast<float*>(nullptr), {});
    x.data = &memory;
    x.dtype = dtype;
    x.rank = static_cast<int>(shape.size());
    int64_t stride = batchnorm::item_size(dtype);
    for (int d = x.rank; d-- > 0;) {
        x.shape[d] = shape[static_cast<std::size_t>(d)];
        x.stride[d] = stride;
        stride *= x.shape[d];
    }
    bool kept[batchnorm::max_rank] = {};
    for (const int axis : axes) kept[axis] = true;
    return batchnorm::canonicalize({&x, alike ? &x : nullptr, alike ? &x : nullptr}, kept);
}

struct Way {
    Shape shape;
    std::vector<int> axes;
    Pattern pattern;
    int64_t plane, fold;
    Traversal forward, backward;
    bool cached[2] = {true, true}, stream[2] = {false, false};  // forward, backward
};

// Of float32, with two threads.
void ways() {
    constexpr Pattern row = Pattern::row, lane = Pattern::lane;
    constexpr Traversal alternate = Traversal::alternate, slabs = Traversal::slabs, passes = Traversal::two_passes;
    for (const Way& way : {
             // Folded.
             Way{{300, 3, 2}, {1}, lane, 2, 37, passes, passes},
             {{2001, 5, 3, 3}, {1}, lane, 9, 5, passes, passes},
             {{261, 8, 4, 4}, {1}, lane, 16, 2, passes, passes},
             {{1900, 17}, {1}, lane, 1, 15, passes, passes},
             {{301, 127}, {1}, lane, 1, 2, passes, passes},
             {{301, 129}, {1}, lane, 1, 1, passes, passes},
             // Planes.
             {{9, 333, 2}, {1}, lane, 2, 1, passes, passes},
             {{255, 43, 7, 7}, {1}, lane, 49, 1, slabs, slabs},
             {{12, 30, 9, 9}, {1}, lane, 81, 1, slabs, slabs},
             {{3, 603, 4, 5}, {1}, lane, 20, 1, slabs, slabs},
             {{1, 1201, 5}, {1}, lane, 5, 1, slabs, slabs},
             {{20, 20, 13, 13}, {1}, lane, 169, 1, slabs, slabs},
             {{257, 9, 255}, {1}, lane, 255, 1, slabs, slabs},
             {{21, 19, 16, 16}, {1}, lane, 256, 1, slabs, slabs},
             {{6, 137, 7, 7}, {1}, row, 1, 1, slabs, slabs},
             {{8, 20, 101}, {1}, row, 1, 1, alternate, alternate},
             {{8, 24, 10, 10}, {1}, row, 1, 1, alternate, alternate},
             {{19, 20, 13, 13}, {1}, row, 1, 1, alternate, alternate},
             {{9, 19, 257}, {1}, row, 1, 1, alternate, alternate},
             // Columns.
             {{500, 700}, {1}, lane, 1, 1, passes, passes},
             {{250, 2100}, {1}, lane, 1, 1, slabs, slabs},
             {{3001, 131}, {1}, lane, 1, 1, passes, passes},
             // In turns.
             {{9, 37, 29, 31}, {1}, row, 1, 1, alternate, alternate},
             {{13, 80, 17, 16}, {1}, row, 1, 1, alternate, alternate},
             {{3, 403, 16, 17}, {1}, row, 1, 1, alternate, alternate},
             {{97, 6, 22, 25}, {1}, row, 1, 1, alternate, alternate},
             {{2, 5, 181, 183}, {1}, row, 1, 1, alternate, alternate},
             {{70, 3, 23, 25}, {1}, row, 1, 1, passes, passes},
             {{70, 4, 65, 63}, {1}, row, 1, 1, alternate, alternate},
             {{6, 4, 256, 192}, {1}, row, 1, 1, alternate, alternate},
             {{3, 9, 13, 29, 31}, {0, 2}, row, 1, 1, alternate, alternate},
             {{12, 31, 29, 31}, {0, 1}, row, 1, 1, alternate, alternate},
             {{1, 401, 24, 25}, {1}, row, 1, 1, alternate, alternate},
             // Cached, though as large as what is streamed backward.
             {{16384, 128}, {1}, lane, 1, 2, passes, passes},
             {{64, 512, 8, 8}, {1}, lane, 64, 1, slabs, slabs},
             {{8, 256, 32, 32}, {1}, row, 1, 1, alternate, alternate, {true, true}, {false, true}},
             // Forward neither cached nor streamed.
             {{25001, 131}, {1}, lane, 1, 1, passes, passes, {false, false}, {false, true}},
             {{117, 530, 7, 7}, {1}, lane, 49, 1, slabs, slabs, {true, false}, {false, true}},
             // Streamed.
             {{131, 530, 7, 7}, {1}, lane, 49, 1, slabs, slabs, {false, false}, {true, true}},
             {{103, 130, 31, 31}, {1}, row, 1, 1, alternate, alternate, {false, false}, {true, true}},
             {{62, 37, 53, 55}, {1}, row, 1, 1, alternate, alternate, {}, {true, true}},
             {{87, 80, 30, 32}, {1}, row, 1, 1, alternate, alternate, {}, {true, true}},
             {{450, 320, 7, 7}, {1}, lane, 49, 1, slabs, slabs, {}, {true, true}},
             {{99201, 67}, {1}, lane, 1, 3, passes, passes, {}, {true, true}},
             {{2170003, 3}, {1}, lane, 1, 85, passes, passes, {}, {true, true}},
             {{3255, 2003}, {1}, lane, 1, 1, passes, passes, {}, {true, true}},
         }) {
        const Box box = box_of(way.shape, way.axes, DType::f32);
        const Chunks chunks(box);
        context = text(way.shape);
        CHECK_DETAIL(box.pattern == way.pattern, pattern_names[box.pattern]);
        CHECK_DETAIL(box.plane == way.plane, std::to_string(box.plane));
        CHECK_DETAIL(box.fold() == way.fold, std::to_string(box.fold()));
        for (const int tensors : {1, 2}) {
            const Plan plan = make_plan(box, chunks, tensors, true, 2, 0, zen);
            if (box.pattern == row || box.outers() <= 256)
                CHECK(make_plan(box, chunks, tensors, true, 2, 0, xeon).traversal == plan.traversal);
            CHECK_DETAIL(plan.traversal == (tensors == 1 ? way.forward : way.backward),
                         traversal_names[static_cast<int>(plan.traversal)]);
            CHECK((plan.reading == Reading::cached) == way.cached[tensors - 1]);
            CHECK(plan.stream == way.stream[tensors - 1]);
            CHECK(plan.from_end == (plan.traversal == passes && !plan.stream));
            CHECK(plan.ahead.reads == 0 && plan.ahead.writes == 0 && plan.ahead.page > 0);
            const Plan far = make_plan(box, chunks, tensors, true, 2, 0, xeon);
            CHECK((far.ahead.reads > 0) == (box.elements() * 4 * tensors >= 12 << 20));
            CHECK((far.ahead.writes > 0) == far.stream && far.ahead.page == 0);
        }
    }
}

// From how many MiB of float32 on outputs are written past the caches, by what a call reads and where few reads are in
// flight: of planes, and of columns, whose backward calls have caches for just 8 MiB.
void large_outputs() {
    constexpr int64_t sample = 256 << 10;
    const auto streams = [](Shape shape, int64_t bytes, int tensors, bool reduces, const Caches& own) {
        shape[0] = bytes / (shape[1] * shape[2] * 4);
        const Box box = box_of(shape, {shape[2] == 1024 ? 1 : 2}, DType::f32);
        context = text(shape);
        return make_plan(box, Chunks(box), tensors, reduces, 2, 0, own).stream;
    };
    struct Least {
        Caches own;
        int64_t inference, planes, columns;
    };
    for (const Least& least : {Least{zen, 17, 12, 16}, {silent, 17, 12, 16}, {zen5, 24, 16, 16}, {xeon, 24, 16, 16}}) {
        const auto from = [&](const Shape& shape, int tensors, bool reduces, int64_t bytes) {
            CHECK(streams(shape, bytes, tensors, reduces, least.own));
            CHECK(!streams(shape, bytes - sample, tensors, reduces, least.own));
        };
        const Shape planes = {1, 64, 1024}, columns = {1, 1024, 64};
        for (const Shape& shape : {planes, columns}) from(shape, 1, false, least.inference << 20);
        from(planes, 1, true, least.planes << 20);
        from(columns, 1, true, least.columns << 20);
        from(planes, 2, true, 8 << 20);
        from(columns, 2, true, (8 << 20) + sample);
    }
}

// Blocks of channels of float32, forward with two threads: as many as make 96 KB of each sample. Where the second-level
// cache is large, fewer if it has no room for them, but at least 12 KB; of large tensors 48 KB where only the first is.
void blocks_in_caches() {
    struct Block {
        Shape shape;
        int64_t second, channels, first = 32 << 10;
    };
    for (const Block& block :
         {Block{{32, 128, 28, 28}, 0, 16}, Block{{32, 128, 28, 28}, 1 << 20, 16}, Block{{32, 120, 28, 28}, 2 << 20, 4},
          Block{{32, 128, 28, 28}, 16 << 20, 16}, Block{{32, 512, 28, 28}, 1 << 20, 32},
          Block{{32, 512, 28, 28}, 2 << 20, 8}, Block{{256, 64, 28, 28}, 2 << 20, 4},
          Block{{32, 512, 28, 28}, 1 << 20, 16, 48 << 10}, Block{{32, 128, 28, 28}, 1 << 20, 16, 48 << 10},
          Block{{32, 512, 28, 28}, 2 << 20, 8, 48 << 10}, Block{{32, 128, 28, 28}, 2 << 20, 4, 48 << 10}}) {
        const Box box = box_of(block.shape, {1}, DType::f32);
        const Plan plan = make_plan(box, Chunks(box), 1, true, 2, 0, {block.first, block.second});
        context = text(block.shape);
        CHECK_DETAIL(plan.channel_block == block.channels, std::to_string(plan.channel_block));
    }
}

// Blocks that read little of each sample in one go are left for two passes, where the third level is quick and the
// tensor comes from memory.
void narrow_blocks() {
    const auto plan = [](const Shape& shape, int tensors, const Caches& own, bool v = false) {
        Box box = box_of(shape, {1}, DType::f32);
        if (v) box.operand[batchnorm::role_v] = box.operand[batchnorm::role_x];
        context = text(shape);
        return make_plan(box, Chunks(box), tensors, true, 2, 0, own);
    };
    const Shape narrow = {256, 64, 28, 28}, wide = {32, 512, 28, 28}, cached = {120, 30, 28, 28};
    for (const int tensors : {1, 2}) {
        CHECK(plan(narrow, tensors, zen5).traversal == Traversal::two_passes);
        CHECK(plan(narrow, tensors, zen5).channel_block == 32);
        CHECK(plan(narrow, tensors, zen5, true).traversal != Traversal::two_passes);
        for (const Caches& own : {zen, xeon}) CHECK(plan(narrow, tensors, own).traversal == Traversal::alternate);
        CHECK(plan(wide, tensors, zen5).traversal != Traversal::two_passes);
    }
    CHECK(plan(cached, 1, zen5).traversal == Traversal::alternate);
}

// Where the third level is quick, blocks of two tensors from memory are written after they were read, not beside the
// next one, if the second level holds them or the third has little of the tensors: and are, of few samples, as many as
// half of the second level holds.
void one_after_the_other() {
    const auto plan = [](const Shape& shape, int tensors, const Caches& own) {
        const Box box = box_of(shape, {1}, DType::f32);
        context = text(shape);
        return make_plan(box, Chunks(box), tensors, true, 2, 0, own);
    };
    for (const Shape& shape : {Shape{1, 2048, 56, 56}, {4, 512, 56, 56}, {32, 512, 28, 28}}) {
        CHECK(plan(shape, 1, zen5).traversal == Traversal::alternate);
        CHECK(plan(shape, 2, zen5).traversal == Traversal::slabs);
        for (const Caches& own : {zen, xeon, silent}) CHECK(plan(shape, 2, own).traversal == Traversal::alternate);
    }
    for (const Shape& shape : {Shape{2, 512, 56, 56}, {8, 768, 28, 28}, {32, 64, 56, 56}})
        CHECK(plan(shape, 2, zen5).traversal == Traversal::slabs);
    for (const Shape& shape : {Shape{8, 128, 32, 32}, {16, 96, 56, 56}, {32, 192, 28, 28}})
        CHECK(plan(shape, 2, zen5).traversal == Traversal::alternate);
    const auto block = [&](const Shape& shape) { return plan(shape, 2, zen5).channel_block; };
    CHECK(block({1, 2048, 56, 56}) == 20 && block({1, 8192, 28, 28}) == 82 && block({4, 512, 56, 56}) == 5);
    CHECK(block({32, 512, 28, 28}) == 16);  // which read 48 KB of each sample
}

// Where the third level is quick, a channel's one row is written as soon as it is reduced, if what two threads have of
// all operands is more than 3/4 of their second level, and L1 holds some rows.
void row_by_row() {
    const auto plan = [](const Shape& shape, int tensors, const Caches& own, int more = 0, bool masked = false,
                         DType dtype = DType::f32) {
        static std::uint8_t mask;
        Box box = box_of(shape, {1}, dtype);
        if (masked) box.mask = &mask;
        context = text(shape);
        return make_plan(box, Chunks(box), tensors, true, 2, more, own);
    };
    const Shape shape = {1, 401, 24, 25};
    CHECK(plan(shape, 2, zen5).traversal == Traversal::row_by_row);
    CHECK(plan(shape, 2, zen5).rows_at_once == 5 && plan({1, 64, 56, 56}, 2, zen5).rows_at_once == 1);
    CHECK(plan(shape, 2, zen5, 0, false, DType::f64).rows_at_once == 2);
    for (const Plan& turns :
         {plan(shape, 1, zen5), plan(shape, 2, zen), plan(shape, 2, xeon), plan(shape, 2, zen5, 1),
          plan(shape, 2, zen5, 0, true), plan(shape, 2, zen5, 0, false, DType::f16), plan({1, 128, 28, 28}, 2, zen5),
          plan({2, 401, 24, 25}, 2, zen5), plan({1, 64, 64, 64}, 2, zen5)}) {
        CHECK_DETAIL(turns.traversal == Traversal::alternate, traversal_names[static_cast<int>(turns.traversal)]);
        CHECK(turns.rows_at_once == 0);
    }
}

// What is only reduced is read in wider blocks, however many samples it has, unless threads then had none.
void blocks_to_reduce_alone() {
    const auto block = [](const Shape& shape, int threads, bool writes, const Caches& own = zen) {
        const Box box = box_of(shape, {1}, DType::f32);
        const Plan plan = make_plan(box, Chunks(box), 2, true, threads, 0, own);
        context = text(shape);
        return (writes ? plan : batchnorm::to_reduce_alone(plan, box, threads)).channel_block;
    };
    CHECK(block({256, 64, 28, 28}, 2, true) == 2 && block({256, 64, 28, 28}, 2, false) == 32);
    CHECK(block({256, 64, 28, 28}, 8, false) == 8 && block({256, 24, 56, 56}, 2, false) == 6);
    // In cache, lanes and two passes: as they were.
    for (const Shape& shape : {Shape{8, 64, 28, 28}, {25001, 131}})
        CHECK(block(shape, 2, true) == block(shape, 2, false));
    CHECK(block({256, 64, 28, 28}, 8, true, zen5) == 32 && block({256, 64, 28, 28}, 8, false, zen5) == 32);
}

// Blocks that are taken in turns: of two threads each has as many, and all of them are all channels.
void blocks_are_even() {
    for (const Shape& shape :
         {Shape{32, 128, 28, 28}, {16, 96, 35, 35}, {64, 192, 20, 20}, {8, 480, 14, 14}, {9, 37, 29, 31}})
        for (const DType dtype : {DType::f32, DType::f64, DType::f16})
            for (const Caches& own : {zen, xeon}) {
                const Box box = box_of(shape, {1}, dtype);
                const Plan plan = make_plan(box, Chunks(box), 1, true, 2, 0, own);
                context = text(shape);
                CHECK(plan.traversal == Traversal::alternate);
                const int64_t blocks = batchnorm::ceil_div(box.channels(), plan.channel_block);
                CHECK_DETAIL(blocks % 2 == 0, std::to_string(blocks));
                int64_t next = 0;
                for (int64_t i = 0; i < blocks; ++i) {
                    const batchnorm::Slab slab(box, plan.channel_block, i);
                    CHECK(slab.group == 0 && slab.channels.begin == next && slab.channels.size() <= plan.channel_block);
                    next = slab.channels.end;
                    if (2 * (i + 1) == blocks) CHECK(next == box.channels() / 2);
                }
                CHECK(next == box.channels());
            }
}

// Columns of many rows, of which a block still fits the second-level cache: where that is large, and the third level
// slow, whole rows are taken twice instead, of large tensors only from more of them on.
void many_rows() {
    const auto traversal = [](const Shape& shape, const Caches& own) {
        const Box box = box_of(shape, {1}, DType::f32);
        context = text(shape);
        CHECK(box.pattern == Pattern::lane && box.outers() == shape[0]);
        return make_plan(box, Chunks(box), 1, true, 2, 0, own).traversal;
    };
    for (const Shape& shape : {Shape{257, 3000}, {385, 20000}, {257, 128, 7, 7}}) {
        CHECK(traversal(shape, zen) == Traversal::slabs);
        CHECK(traversal(shape, silent) == Traversal::slabs);
        CHECK(traversal(shape, xeon) == Traversal::two_passes);
    }
    for (const Shape& shape : {Shape{256, 3000}, {384, 20000}, {256, 128, 7, 7}})
        CHECK(traversal(shape, xeon) == Traversal::slabs);
}

// Where the second-level cache is large, the second of two passes goes from the end; and so do blocks of which it has
// that alone, where the first is.
void from_the_end() {
    const auto from_end = [](const Shape& shape, int tensors, const Caches& own) {
        const Box box = box_of(shape, {1}, DType::f32);
        context = text(shape);
        return make_plan(box, Chunks(box), tensors, true, 2, 0, own).from_end;
    };
    for (const int tensors : {1, 2}) {
        CHECK(from_end({3255, 2003}, tensors, xeon));
        for (const Caches& own : {zen, zen5}) CHECK(!from_end({3255, 2003}, tensors, own));
        CHECK(from_end({3001, 131}, tensors, xeon) && from_end({3001, 131}, tensors, zen));
        CHECK(from_end({32, 64, 112, 112}, tensors, xeon) && !from_end({32, 64, 112, 112}, tensors, zen));
        for (const Shape& shape : {Shape{32, 64, 56, 56}, {32, 512, 28, 28}}) CHECK(!from_end(shape, tensors, xeon));
    }
    for (const Shape& shape : {Shape{32, 64, 112, 112}, {32, 64, 56, 56}}) CHECK(from_end(shape, 1, zen5));
    CHECK(from_end({32, 64, 28, 28}, 2, zen5));
}

// What large outputs are made of is fetched where the first-level cache is large, and what is reduced: of two tensors
// if the second is large as well. Elsewhere pages are looked up.
void reads_ahead() {
    const auto ahead = [](const Shape& shape, int tensors, const Caches& own) {
        const Box box = box_of(shape, {1}, DType::f32);
        context = text(shape);
        return make_plan(box, Chunks(box), tensors, true, 2, 0, own).ahead;
    };
    const Shape big = {32, 64, 56, 56}, small = {32, 64, 28, 28};
    for (const int tensors : {1, 2}) {
        for (const Caches& own : {zen, silent}) {
            const batchnorm::Ahead none = ahead(big, tensors, own);
            CHECK(none.reads == 0 && none.writes == 0 && none.page > 0);
        }
        CHECK(ahead(big, tensors, xeon).reads > 0 && (ahead(big, tensors, zen5).reads > 0) == (tensors == 1));
        for (const Caches& own : {zen5, xeon}) {
            CHECK(ahead(big, tensors, own).writes > 0 && ahead(big, tensors, own).page == 0);
            CHECK(ahead(small, tensors, own).writes == 0);
        }
    }
    CHECK(ahead(small, 1, xeon).reads == 0 && ahead(small, 1, zen5).reads == 0);

    // Two tensors that come through a mask from memory are fetched on either.
    static std::uint8_t mask;
    const Shape in_caches = {8, 200, 32, 32}, in_turns = {16, 96, 56, 56};
    for (const Shape& shape : {big, in_caches, in_turns}) {
        Box box = box_of(shape, {1}, DType::f32);
        box.mask = &mask;
        context = text(shape);
        CHECK(box.elements() * 4 * 2 >= 12 << 20);
        CHECK((make_plan(box, Chunks(box), 2, true, 2, 0, zen5).ahead.reads > 0) == (shape == big));
    }
}

// Columns end where lines do, unless they then were too wide or threads had uneven shares; with a mask where bytes do.
void even_columns() {
    const auto block = [](const Shape& shape, int threads, bool masked) {
        static std::uint8_t mask;
        Box box = box_of(shape, {1}, DType::f32);
        if (masked) box.mask = &mask;
        context = text(shape);
        return make_plan(box, Chunks(box), 2, true, threads, 0, zen).channel_block;
    };
    CHECK(block({32, 96, 7, 7}, 2, false) == 16);
    CHECK(block({32, 36, 7, 7}, 2, false) == 9 && block({32, 36, 7, 7}, 2, true) == 8);
    CHECK(block({16, 34, 9, 8}, 2, false) == 9 && block({16, 34, 9, 8}, 2, true) == 9);
    CHECK(block({32, 36, 7, 7}, 1, false) == 16);
    CHECK(block({256, 512, 7, 7}, 2, false) == 8 && block({256, 384, 13, 13}, 2, false) == 4);
    CHECK(block({256, 384, 13, 13}, 2, true) == 8);
}

// Columns of small planes are as wide as L1 allows, where the third level is quick. Even shares are rounded up to whole
// lines, if L1 has room and threads get about as many.
void wide_columns() {
    const auto block = [](const Shape& shape, int tensors, const Caches& own) {
        const Box box = box_of(shape, {1}, DType::f32);
        context = text(shape);
        return make_plan(box, Chunks(box), tensors, true, 2, 0, own).channel_block;
    };
    CHECK(block({64, 512, 3, 3}, 2, zen) == 80 && block({64, 512, 3, 3}, 2, zen5) == 128);
    CHECK(block({64, 1024, 3, 3}, 1, zen5) == 176);  // six blocks, where 160 would make seven
    CHECK(block({64, 3000}, 1, zen5) == 1504);
}

// Few rows of small planes are written in columns if each thread gets many; all others by rows for each thread.
void columns_to_write() {
    const auto parts = [](const Shape& shape, int threads) {
        const Box box = box_of(shape, {1}, DType::f32);
        context = text(shape);
        CHECK(box.pattern == Pattern::lane);
        return Chunks::to_write(box, threads).count();
    };
    CHECK(parts({32, 512, 7, 7}, 2) == 1 && parts({32, 512, 7, 7}, 4) == 4);
    CHECK(parts({32, 256, 7, 7}, 2) == 2 && parts({32, 25088}, 2) == 2);
    CHECK(parts({256, 512, 7, 7}, 2) == 2 && parts({256, 512, 7, 7}, 3) == 2);
}

// Outputs are fetched, unless threads have short shares of each row.
void outputs_ahead() {
    const auto ahead = [](const Shape& shape, int threads) {
        const Box box = box_of(shape, {1}, DType::f32);
        context = text(shape);
        return make_plan(box, Chunks(box), 1, true, threads, 0, zen).ahead.output;
    };
    CHECK(ahead({64, 8192}, 2) == 0 && ahead({32, 96, 7, 7}, 2) == 0);
    CHECK(ahead({64, 8193}, 2) > 0 && ahead({64, 8192}, 1) > 0);
    CHECK(ahead({64, 8193}, 3) == 0 && ahead({64, 8192}, 5) == 0);
    CHECK(ahead({3001, 131}, 2) > 0 && ahead({32, 64, 28, 28}, 2) > 0);  // no columns
}

// Where the third level is quick, what it has, and that without a mask.
void outputs_of_a_quick_level() {
    static std::uint8_t mask;
    const auto ahead = [](const Shape& shape, bool masked, const Caches& own) {
        Box box = box_of(shape, {1}, DType::f32);
        if (masked) box.mask = &mask;
        context = text(shape);
        return make_plan(box, Chunks(box), 1, false, 2, 0, own).ahead.output;
    };
    const Shape small = {32, 256, 14, 14}, more = {32, 512, 14, 14};
    CHECK(ahead(small, false, zen5) > 0 && ahead(small, true, zen5) == 0);
    CHECK(ahead(more, false, zen5) == 0 && ahead(more, true, zen5) == 0);
    for (const Caches& own : {zen, xeon, silent})
        for (const bool masked : {false, true}) CHECK(ahead(small, masked, own) > 0 && ahead(more, masked, own) > 0);
}

// Rows to come are fetched, unless a quick level has them and hardware follows them.
void rows_to_come() {
    const auto fetched = [](const Shape& shape, int axis, const Caches& own) {
        const Box box = box_of(shape, {axis}, DType::f32);
        return make_plan(box, Chunks(box), 1, false, 2, 0, own).ahead.rows;
    };
    const Shape small = {32, 64, 28, 28}, large_one = {32, 256, 56, 56}, lanes = {64, 512};
    CHECK(!fetched(small, 1, zen5) && fetched(large_one, 1, zen5) && fetched(lanes, 1, zen5));
    for (const Caches& own : {zen, xeon, silent})
        CHECK(fetched(small, 1, own) && fetched(large_one, 1, own) && fetched(lanes, 1, own));
}

// What rows of lanes are multiplied by is looked up for each where L1 delivers it beside them.
void looked_up_quickly() {
    for (const Caches& own : {zen, zen5, xeon, silent}) {
        const Box box = box_of({64, 512}, {1}, DType::f32);
        CHECK(make_plan(box, Chunks(box), 2, true, 2, 0, own).looks_up_quickly ==
              (own.first == zen5.first && own.second == zen5.second));
    }
}

// Rows of lanes are fetched ahead, unless the caches have them; a few rows ahead at most where that was measured.
void readings() {
    const auto reading = [](std::int64_t rows, int tensors, const Caches& own) {
        const Box box = box_of({rows, 256}, {1}, DType::f32);  // of a KB each
        context = text({rows, 256});
        return make_plan(box, Chunks(box), tensors, true, 2, 0, own).reading;
    };
    for (const Caches& own : {zen, zen5, xeon, silent, large}) {
        CHECK(reading(12 << 10, 1, own) == Reading::cached && reading(8 << 10, 2, own) == Reading::cached);
        const bool quick = own.first == zen5.first && own.second == zen5.second;
        const Reading some = quick ? Reading::paired : Reading::fetched;
        CHECK(reading((12 << 10) + 1, 1, own) == some && reading((8 << 10) + 1, 2, own) == some);
        CHECK(reading(16 << 10, 2, own) == some);
        CHECK(reading((16 << 10) + 1, 2, own) == (quick ? Reading::alone : Reading::fetched));
    }
}

// Channels that threads share badly go in two passes, where there are chunks to share.
void few_channels() {
    const auto plan = [](const Shape& shape, int threads) {
        const Box box = box_of(shape, {1}, DType::f32);
        context = text(shape);
        CHECK(box.pattern == Pattern::row);
        return make_plan(box, Chunks(box), 1, true, threads, 0, zen);
    };
    for (const auto& [shape, threads] : {std::pair<Shape, int>{{64, 3, 32, 32}, 2},
                                         {{1, 3, 512, 512}, 2},
                                         {{64, 9, 56, 56}, 4},
                                         {{64, 33, 56, 56}, 16}}) {
        CHECK(plan(shape, threads).traversal == Traversal::two_passes);
        CHECK(plan(shape, threads).channel_block == 1);
    }
    for (const auto& [shape, threads] : {std::pair<Shape, int>{{64, 3, 32, 32}, 1},
                                         {{64, 2, 32, 32}, 2},
                                         {{64, 3, 32, 32}, 3},
                                         {{8, 3, 32, 32}, 2}})  // the last one: single chunks
        CHECK(plan(shape, threads).traversal != Traversal::two_passes);
    for (const auto& [shape, threads] : {std::pair<Shape, int>{{64, 5, 32, 32}, 2}, {{64, 32, 56, 56}, 16}})
        CHECK(plan(shape, threads).traversal == Traversal::alternate);
}

// Large outputs go past the caches, unless these have what is overwritten: x, or dy.
void overwritten() {
    context = "overwritten";
    for (const Caches& own : {zen, xeon}) {
        static char memory[2];
        Box box = box_of({32, 256, 56, 56}, {1}, DType::f32, true);
        box.operand[batchnorm::role_dy].data = &memory[0];
        box.operand[batchnorm::role_out].data = &memory[1];
        const Chunks chunks(box);
        const Plan apart = make_plan(box, chunks, 2, true, 2, 0, own);
        CHECK(apart.stream);
        for (const batchnorm::Role input : {batchnorm::role_x, batchnorm::role_dy}) {
            box.operand[batchnorm::role_out] = box.operand[input];
            const Plan plan = make_plan(box, chunks, 2, true, 2, 0, own);
            CHECK(!plan.stream && plan.ahead.writes == apart.ahead.writes);
        }
        // Of two outputs both must.
        box.operand[batchnorm::role_residual] = box.operand[batchnorm::role_x];
        CHECK(!make_plan(box, chunks, 2, true, 2, 1, own).stream);
        box.operand[batchnorm::role_residual].data = &memory[1];
        CHECK(make_plan(box, chunks, 2, true, 2, 1, own).stream);
    }
}

// Backward of so many channels last: whole rows, if L1 has room for them and what is looked up.
void columns_in_l1() {
    const Box box = box_of({6272, 1024}, {1}, DType::f32, true);
    const Chunks chunks(box);
    context = "columns";
    CHECK(make_plan(box, chunks, 2, true, 2, 0, xeon).channel_block == 1024);
    for (const Caches& own : {zen, silent}) CHECK(make_plan(box, chunks, 2, true, 2, 0, own).channel_block == 512);
}

// Another thread comes in for 32,768 elements, or for 24,576 where a statistic has 256 of them; of planes for 16,384
// that are reduced.
void teams() {
    const auto threads = [](const Shape& shape, bool reduces = true) {
        context = text(shape);
        const Box box = box_of(shape, {1}, DType::f32);
        batchnorm::Options options;
        options.executor.run = [](void*, int, void (*)(void*, int), void*) {};
        options.executor.threads = 16;
        return batchnorm::make_team(options, box.elements(), batchnorm::elements_per_thread(box, reduces)).threads;
    };
    CHECK(threads({767, 64}) == 1 && threads({768, 64}) == 2);
    CHECK(threads({255, 256}) == 1 && threads({255, 258}) == 2);
    CHECK(threads({12288, 8}) == 4 && threads({96, 1024}) == 3);
    CHECK(threads({1 << 20, 16}) == 16);
    for (const Shape& shape : {Shape{2, 160, 10, 10}, {64, 40, 12}}) CHECK(threads(shape) == 1);
    for (const Shape& shape : {Shape{2, 164, 10, 10}, {64, 43, 12}}) CHECK(threads(shape) == 2);
    for (const Shape& shape : {Shape{2, 245, 10, 10}, {64, 63, 12}}) CHECK(threads(shape, false) == 1);
    for (const Shape& shape : {Shape{2, 246, 10, 10}, {64, 64, 12}}) CHECK(threads(shape, false) == 2);
}

// The largest planes that become lanes: 256 elements of many rows, and of fewer those that make it worth while.
void small_planes() {
    for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16})
        for (const auto& [rows, most] : {std::pair<int64_t, int64_t>{1, 8}, {3, 24}, {19, 152}, {20, 256}, {300, 256}})
            for (const int64_t plane : {most, most + 1}) {
                context = text({rows, 40, plane});
                CHECK((box_of({rows, 40, plane}, {1}, dtype).pattern == Pattern::lane) == (plane == most));
            }
}

// Those in inference: half as many of few rows, and smaller ones where the second-level cache is large, but not so
// large that x stays in it.
void written_planes() {
    const auto most = [](DType dtype, int64_t bytes, const Caches& own) {
        const batchnorm::PlaneLimits limits = batchnorm::written_planes(dtype, bytes, own);
        CHECK(limits.elements_to_row == (dtype == DType::f64 ? 2 : 4) && limits.many_rows > int64_t{1} << 40);
        return limits.elements;
    };
    context = "written planes";
    constexpr int64_t mb = 1 << 20;
    CHECK(most(DType::f32, 3 * mb, zen) == 100);
    CHECK(most(DType::f32, 3 * mb, xeon) == 15);
    CHECK(most(DType::f64, 3 * mb, xeon) == 7);
    CHECK(most(DType::f16, 3 * mb, xeon) == 100);
    CHECK(most(DType::f32, 2 * mb, xeon) == 100);
    for (const Caches& own : {zen, xeon}) CHECK(most(DType::f32, 24 * mb, own) == 63);
}

void check_plan(const Box& box, const Plan& plan) {
    CHECK(plan.channel_block >= 1 && plan.channel_block <= box.channels());
    if (plan.traversal == Traversal::alternate || plan.traversal == Traversal::row_by_row) {
        CHECK(plan.channel_block <= batchnorm::most_row_block && plan.rows_at_once <= plan.channel_block);
        CHECK(box.pattern == Pattern::row);
    }
    if (box.pattern == Pattern::row) return;
    // What a worker has memory for; and rows that are folded are whole.
    CHECK(plan.channel_block * box.plane * box.fold() <= batchnorm::most_lanes);
    CHECK(box.fold() == 1 || plan.channel_block == box.channels());
}

// Every number of lanes and every small plane, with every way to call.
void blocks_fit() {
    static std::uint8_t mask;
    for (const DType dtype : {DType::f32, DType::f64, DType::f16})
        for (const int64_t outers : {1, 7, 8, 15, 16, 255, 300, 2000, 200000})
            for (const int64_t plane : {1, 2, 3, 4, 49, 64, 127, 128, 169, 254, 255, 256, 257, 1024})
                for (int64_t channels = 1; channels <= 5000; channels += channels < 300 ? 1 : 97) {
                    if (quick() && channels % 7 != 1) continue;
                    const Box box = box_of({outers, channels, plane}, {1}, dtype, true);
                    const Chunks chunks(box);
                    Box masked = box;
                    masked.mask = &mask;
                    context = text({outers, channels, plane});
                    CHECK(box.outers() * box.inners() * box.plane == outers * plane);
                    CHECK(box.channels() == channels);
                    // Of few parts two threads get as many.
                    const int64_t parts = chunks.count();
                    CHECK(box.pattern == Pattern::row || parts == 1 || parts % 2 == 0 || parts >= 31);
                    for (const int tensors : {1, 2})
                        for (const int threads : {1, 2, 16, 64}) {
                            for (const Caches& own : {zen, zen5, xeon, silent, large, large_first})
                                for (const bool reduces : {true, false})
                                    check_plan(box, make_plan(box, chunks, tensors, reduces, threads, 0, own));
                            for (const bool reduces : {true, false}) {
                                const int64_t block =
                                    make_plan(masked, chunks, tensors, reduces, threads, 0, zen5).channel_block;
                                CHECK(box.pattern == Pattern::row || block == channels || block * plane % 8 == 0);
                            }
                        }
                }
}

// What is looked up for the first whole line of a streamed output of lanes starts a line, too, wherever that output
// starts; and else what is looked up for its first element. It reaches into nothing else.
void coefficients_lie_as_streamed_outputs_do() {
    alignas(64) static char output[64];
    for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) {
        for (const Shape& shape :
             {Shape{4000, 1024}, Shape{100, 512, 7, 7}, Shape{9000, 16, 7, 7}, Shape{32, 64, 56, 56}}) {
            Box box = box_of(shape, {1}, dtype, true);
            const Chunks chunks(box);
            const int64_t unit = batchnorm::item_size(dtype), size = batchnorm::Memory::coefficient_size(box);
            for (int64_t start = 0; start < 64; start += unit) {
                for (const bool stream : {false, true}) {
                    box.operand[batchnorm::role_out].data = output + start;
                    context = text(shape) + " " + std::to_string(start);
                    batchnorm::Arena measured;
                    batchnorm::Memory(measured, box, chunks, 2, 2, stream);
                    std::vector<char> bytes(measured.bytes());
                    batchnorm::Arena arena(bytes.data());
                    const batchnorm::Memory memory(arena, box, chunks, 2, 2, stream);
                    const int64_t first = stream && box.pattern == Pattern::lane ? (64 - start) % 64 / unit : 0;
                    const auto check = [&](const void* values, int64_t count, const void* next) {
                        const char* const from = static_cast<const char*>(values);
                        CHECK(reinterpret_cast<std::uintptr_t>(from + first * size) % 64 == 0);
                        CHECK(from + count * size <= next);
                    };
                    // What lies first in a worker's memory.
                    const auto worker = [&](int i) {
                        const batchnorm::WorkerMemory own = memory.worker(box, i);
                        return box.pattern == Pattern::lane ? static_cast<const void*>(own.lists) : own.values;
                    };
                    const auto& values = memory.coefficients;
                    for (int i = 0; i < batchnorm::coefficient_count; ++i)
                        check(values[i], box.groups() * batchnorm::Memory::coefficient_pitch(box),
                              i + 1 < batchnorm::coefficient_count ? values[i + 1] : worker(0));
                    const int64_t lanes = std::min(box.lanes() * box.fold(), batchnorm::most_lanes);
                    if (box.pattern == Pattern::lane && box.plane * box.fold() > 1)
                        check(memory.worker(box, 0).coefficients,
                              batchnorm::coefficient_count * (lanes + batchnorm::kernels::lane_padding), worker(1));
                }
            }
        }
    }
}

}  // namespace

int main() {
    ways();
    large_outputs();
    coefficients_lie_as_streamed_outputs_do();
    blocks_in_caches();
    narrow_blocks();
    one_after_the_other();
    row_by_row();
    blocks_to_reduce_alone();
    blocks_are_even();
    many_rows();
    from_the_end();
    reads_ahead();
    even_columns();
    wide_columns();
    columns_to_write();
    outputs_ahead();
    outputs_of_a_quick_level();
    rows_to_come();
    looked_up_quickly();
    readings();
    few_channels();
    overwritten();
    columns_in_l1();
    small_planes();
    written_planes();
    teams();
    blocks_fit();
    return report();
}
