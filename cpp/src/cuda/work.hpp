// The contract between the library and its CUDA part, which is a library of its own and loaded on first use.
//
// The library checks arguments, makes the box, cuts it and lays out the workspace; the CUDA part plans and launches.
#pragma once

#include "../box.hpp"
#include "../chunks.hpp"
#include "../epilogue.hpp"

namespace batchnorm::cuda {

using Stream = void*;

// One value for each statistic, or one for all; absent without data. Its strides, in bytes, are those of the kept axes
// (box.kept_shape).
struct Values {
    char* data = nullptr;
    DType dtype = DType::f64;
    bool one_for_all = false;
    int64_t stride[max_rank] = {};
};

inline constexpr int sum_count = 3;
inline constexpr int coefficient_count = 6;

// A part of a problem: all that the kernels know, which take it as their parameter.
struct Work {
    Op op;
    bool weighted, writes;
    Epilogue epilogue;
    double eps;
    Box box;
    Chunks chunks;

    Values gamma, beta, mean, inv_std, var, m2, count, sum_dy, sum_dy_xmu;
    Values to_mean, to_inv_std, to_var, to_m2, to_count, to_sum_dy, to_sum_dy_xmu, to_dgamma, to_dbeta;

    // Groups, which dgamma and dbeta are added up over; 0: there are none.
    int64_t groups;
    bool first, last;  // of the problem's parts

    // Workspace. What chunks leave, [group][chunk][channel]; what writers look up, [group][channel], of the type of
    // the arithmetic; dgamma and dbeta of each statistic, in the kept axes' order, and their totals over the groups.
    double* slots[sum_count];
    void* coefficients[coefficient_count];
    double *dgamma, *dbeta, *dgamma_total, *dbeta_total;

    constexpr double* slot(int which, int64_t g, int64_t k) const noexcept {
        return slots[which] + (g * chunks.count() + k) * box.channels();
    }
};

// Neighbouring lanes that one block of threads takes together: whole channels, and whole packs of 8 elements unless
// they are the last.
inline constexpr int pack_size = 8;
struct Tiling {
    int64_t channels, lanes, packs;  // of a tile

    constexpr explicit Tiling(const Box& box) noexcept : channels(pack_size), lanes(0), packs(0) {
        for (int64_t plane = box.plane; plane % 2 == 0 && channels > 1; plane /= 2) channels /= 2;
        const int64_t packs_of_these = channels * box.plane / pack_size;
        if (packs_of_these < most_packs) channels *= most_packs / packs_of_these;
        if (channels > box.channels()) channels = box.channels();
        lanes = channels * box.plane;
        packs = (lanes + pack_size - 1) / pack_size;
    }

    constexpr int64_t count(const Box& box) const noexcept { return (box.channels() + channels - 1) / channels; }

  private:
    static constexpr int64_t most_packs = 8;
};

// The CUDA part's functions. Where one returns a text it is what CUDA reports, or null if all went well.
struct Table {
    std::size_t work_size;  // sizeof(Work): that both were built from the same sources
    const char* (*unavailable_because)() noexcept;
    int (*device_count)() noexcept;
    const char* (*device_name)(int device) noexcept;
    const char* (*get_device)(int& device) noexcept;
    const char* (*set_device)(int device) noexcept;
    const char* (*synchronize)(Stream stream) noexcept;
    const char* (*run)(const Work& work, Stream stream) noexcept;
    // A value everywhere in an array of this shape.
    const char* (*fill)(const Values& to, const int64_t (&shape)[max_rank], int rank, double value,
                        Stream stream) noexcept;
};

inline constexpr const char* library_name = "libbatchnorm_cuda.so";
inline constexpr const char* table_symbol = "batchnorm_cuda_table";

// The loaded CUDA part; null, and why, if there is none.
const Table* load(const char*& why_not) noexcept;

}  // namespace batchnorm::cuda
