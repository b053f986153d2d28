// What is done once for each statistic, by a warp: its chunks' slots are merged, and its coefficients found.
#pragma once

#include "../coefficients.hpp"
#include "reduce.cuh"

namespace batchnorm::cuda {

// A statistic that a warp finishes: all of its threads know what the first one finds.
struct Statistic {
    const Work& work;
    const int64_t g, c;

    __device__ double load(const Values& values, double otherwise = 0) const {
        return load_value(values, work.box, g, c, otherwise);
    }
    __device__ void store(const Values& values, double value) const { store_value(values, work.box, g, c, value); }

    __device__ Moment merged_moment() const {
        return merge_by_warp<Moment>(work.chunks.count(), [&](int64_t k) {
            const double n = work.weighted ? work.slot(2, g, k)[c] : static_cast<double>(work.chunks.values(k));
            return Moment{n, work.slot(0, g, k)[c], work.slot(1, g, k)[c]};
        });
    }
    __device__ Sums merged_sums() const {
        return merge_by_warp<Sums>(work.chunks.count(),
                                   [&](int64_t k) { return Sums{work.slot(0, g, k)[c], work.slot(1, g, k)[c]}; });
    }

    template <class T>
    __device__ void set(int which, T value) const {
        static_cast<T*>(work.coefficients[which])[g * work.box.channels() + c] = value;
    }
    template <class T>
    __device__ void set(const NormalizeCoefficients<T>& own) const {
        set(0, own.hi);
        set(1, own.scale);
        set(2, own.shift);
    }
    template <class T>
    __device__ void set(const InputGradCoefficients<T>& own) const {
        set(0, own.hi);
        set(1, own.r);
        set(2, own.dy_hi);
        set(3, own.a);
        set(4, own.b);
        set(5, own.c);
    }
};

// mean, variance and count of forward: found, or given.
template <class A>
__device__ void finish_forward(const Statistic& statistic) {
    const Work& work = statistic.work;
    double mean, var, count = static_cast<double>(work.box.values());
    if (work.op == Op::batch_norm || work.op == Op::moments) {
        const Moment moment = statistic.merged_moment();
        mean = moment.mean;
        var = moment.m2;
        if (work.weighted) count = moment.n;
    } else {
        mean = statistic.load(work.mean);
        var = statistic.load(work.op == Op::normalize ? work.m2 : work.var);
        if (work.op == Op::normalize) count = statistic.load(work.count, 1);
    }
    if (threadIdx.x % warp_threads != 0) return;
    statistic.store(work.to_m2, var);
    if (work.op != Op::batch_norm_inference && count > 0) var /= count;
    const double inv_std = 1 / sqrt(var + work.eps);
    statistic.store(work.to_mean, mean);
    statistic.store(work.to_var, var);
    statistic.store(work.to_inv_std, inv_std);
    statistic.store(work.to_count, count);
    if (work.op == Op::moments) return;
    const double gamma = statistic.load(work.gamma, 1), beta = statistic.load(work.beta);
    statistic.set(NormalizeCoefficients<A>::of(mean, inv_std, gamma, beta));
}

template <class A>
__device__ void finish_backward(const Statistic& statistic) {
    const Work& work = statistic.work;
    const double mean = mean_of(work, statistic.g, statistic.c);
    Sums sums;
    if (work.op == Op::input_grad) {
        sums = {statistic.load(work.sum_dy), statistic.load(work.sum_dy_xmu)};
    } else {
        sums = statistic.merged_sums();
        const double lo = mean - centre_of(work.box.dtype, mean);
        if (lo != 0) sums.of_product = fma(-lo, sums.of_dy, sums.of_product);
    }
    if (threadIdx.x % warp_threads != 0) return;
    const bool counts = work.weighted || work.op == Op::input_grad;
    const double count = counts ? statistic.load(work.count, 1) : static_cast<double>(work.box.values());
    statistic.store(work.to_sum_dy, sums.of_dy);
    statistic.store(work.to_sum_dy_xmu, sums.of_product);
    statistic.store(work.to_count, count);
    if (work.op == Op::grad_sums) return;

    const bool constant = work.op == Op::batch_norm_inference_backward;
    const double gamma = statistic.load(work.gamma, 1);
    const double inv_std = constant ? 1 / sqrt(statistic.load(work.var) + work.eps) : statistic.load(work.inv_std);
    // What x less its mean is multiplied by to give xhat: an output has beta for a mean, and gamma for a spread.
    const double r = work.op == Op::batch_norm_backward_from_output ? 1 / gamma : inv_std;
    if (constant)
        statistic.set(InputGradCoefficients<A>(0, 0, 0, gamma * inv_std, 0, 0));
    else
        statistic.set(InputGradCoefficients<A>::of(mean, r, gamma * inv_std, sums.of_dy, sums.of_product, count));
    const double dgamma = sums.of_product * r;
    if (work.groups > 0) {
        const int64_t place = place_of(work.box, statistic.g, statistic.c);
        work.dgamma[place] = dgamma;
        work.dbeta[place] = sums.of_dy;
    } else {
        statistic.store(work.to_dgamma, dgamma);
        statistic.store(work.to_dbeta, sums.of_dy);
    }
}

template <class A>
__device__ __noinline__ void finish(const Work& work, int64_t g, int64_t c) {
    const bool forward = work.op == Op::batch_norm || work.op == Op::moments || work.op == Op::normalize ||
                         work.op == Op::batch_norm_inference;
    forward ? finish_forward<A>({work, g, c}) : finish_backward<A>({work, g, c});
}

}  // namespace batchnorm::cuda
