// Merging the chunks' partial results, in order.
#include "stages.hpp"

namespace batchnorm {

// Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances".
void Stages::merge_moments(int64_t g, Range channels) const noexcept {
    double *const means = memory.mean + g * box.channels(), *const m2s = memory.spread + g * box.channels();
    for (int64_t c = channels.begin; c < channels.end; ++c) {
        means[c] = memory.slot(0, g, 0)[c];
        m2s[c] = memory.slot(1, g, 0)[c];
    }
    double n = static_cast<double>(chunks.values(0));
    for (int64_t k = 1; k < chunks.count(); ++k) {
        const double *const mean_k = memory.slot(0, g, k), *const m2_k = memory.slot(1, g, k);
        const double n_k = static_cast<double>(chunks.values(k));
        const double share = n_k / (n + n_k), weight = n * share;
        for (int64_t c = channels.begin; c < channels.end; ++c) {
            const double delta = mean_k[c] - means[c];
            means[c] += delta * share;
            m2s[c] += m2_k[c] + delta * delta * weight;
        }
        n += n_k;
    }
}

// The same where each statistic has a weight of its own behind it, which may be 0.
void Stages::merge_weighted_moments(int64_t g, Range channels) const noexcept {
    const int64_t first = g * box.channels();
    double *const means = memory.mean + first, *const m2s = memory.spread + first,
                  *const weights = memory.count + first;
    for (int64_t c = channels.begin; c < channels.end; ++c) means[c] = m2s[c] = weights[c] = 0;
    for (int64_t k = 0; k < chunks.count(); ++k) {
        const double *const mean_k = memory.slot(0, g, k), *const m2_k = memory.slot(1, g, k);
        const double* const weight_k = memory.slot(2, g, k);
        for (int64_t c = channels.begin; c < channels.end; ++c) {
            if (weight_k[c] == 0) continue;
            if (weights[c] == 0) {
                means[c] = mean_k[c];
                m2s[c] = m2_k[c];
            } else {
                const double delta = mean_k[c] - means[c], both = weights[c] + weight_k[c];
                // From the heavier mean: the way from the other one is nearly all of delta, which may be much larger.
                means[c] = weight_k[c] > weights[c] ? mean_k[c] - delta * (weights[c] / both)
                                                    : means[c] + delta * (weight_k[c] / both);
                m2s[c] += m2_k[c] + delta * delta * (weights[c] * (weight_k[c] / both));
            }
            weights[c] += weight_k[c];
        }
    }
}

namespace {

// Adds up the slots of one sum.
void add_slots(const Stages& stages, int which, int64_t g, Range channels, double* totals) noexcept {
    double* const to = totals + g * stages.box.channels();
    for (int64_t c = channels.begin; c < channels.end; ++c) to[c] = 0;
    for (int64_t k = 0; k < stages.chunks.count(); ++k) {
        const double* const part = stages.memory.slot(which, g, k);
        for (int64_t c = channels.begin; c < channels.end; ++c) to[c] += part[c];
    }
}

}  // namespace

void Stages::merge_gradients(int64_t g, Range channels) const noexcept {
    add_slots(*this, 0, g, channels, memory.sum_dy);
    add_slots(*this, 1, g, channels, memory.sum_dy_xmu);
}

void Stages::merge_v(int64_t g, Range channels) const noexcept {
    add_slots(*this, 0, g, channels, memory.v_mean);
    add_slots(*this, 1, g, channels, memory.sum_v_xmu);
    const int64_t first = g * box.channels();
    for (int64_t s = first + channels.begin; s < first + channels.end; ++s)
        memory.v_mean[s] /= static_cast<double>(box.values());
}

void Stages::merge_dy_v(int64_t g, Range channels) const noexcept { add_slots(*this, 1, g, channels, memory.sum_dy_v); }

}  // namespace batchnorm
