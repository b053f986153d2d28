// The writers: y of x, and dx of dy and x, a pack at a time.
#pragma once

#include "reduce.cuh"

namespace batchnorm::cuda {

// Coefficients of a thread's packs: one for the channel that they lie in, or one for each of their lanes. Of those
// there are too many for registers if they are floats (of doubles a thread has twice the registers): the block shares
// them.
template <class A, Pattern pattern, bool packed, int count>
class Coefficients {
  public:
    __device__ Coefficients(const Work& work, const Piece& piece, const Walk<pattern, packed>& walk) {
        const int64_t first = piece.g * work.box.channels();
        const auto load = [&](int which, int64_t channel) {
            return static_cast<const A*>(work.coefficients[which])[first + channel];
        };
        if constexpr (shared) {
            const int lanes = static_cast<int>(work.tile.packs) * pack_size;
            A* const of_block = reinterpret_cast<A*>(shared_memory());
            __syncthreads();  // what was there before has been read
            for (int i = static_cast<int>(threadIdx.x); i < lanes; i += block_threads) {
                const int64_t lane = piece.unit * work.tile.lanes + i, last = work.box.lanes() - 1;
                const int64_t channel = (lane < last ? lane : last) / work.box.plane;
#pragma unroll
                for (int which = 0; which < count; ++which) of_block[which * lanes + i] = load(which, channel);
            }
            __syncthreads();
            of_block_ = of_block + walk.column() * pack_size;
            lanes_ = lanes;
        } else {
#pragma unroll
            for (int i = 0; i < in_a_row; ++i)
#pragma unroll
                for (int which = 0; which < count; ++which) own_[which][i] = load(which, walk.channel_of(i));
        }
    }

    __device__ A at(int which, int i) const {
        if constexpr (shared)
            return of_block_[which * lanes_ + i];
        else
            return own_[which][pattern == Pattern::row ? 0 : i];
    }

  private:
    static constexpr bool shared = pattern == Pattern::lane && sizeof(A) == 4;
    static constexpr int in_a_row = pattern == Pattern::row ? 1 : pack_size;
    A own_[shared ? 1 : count][shared ? 1 : in_a_row];
    const A* of_block_;
    int lanes_;
};

// Packs that a thread has under way at once, of so many operands: 64 bytes.
template <class T, int operands>
inline constexpr int apply_packs = sizeof(Pack<T>) * operands >= 64 ? 1 : 64 / (sizeof(Pack<T>) * operands);

template <class T, class PlaceOf>
__device__ Pack<T> load_or_take(const Stash<T>& stash, int step, const PlaceOf& place) {
    return stash && place.count > 0 ? stash.take(step) : load_pack<T>(place);
}

// y = activation((x - hi) * scale + shift + residual)
template <class T, Pattern pattern, bool packed>
__device__ void normalize(const Work& work, const Piece& piece, const Stash<T>& stash) {
    using A = Arithmetic<T>;
    constexpr int batch = apply_packs<T, 1>;
    const Walk<pattern, packed> walk(work, piece);
    const Coefficients<A, pattern, packed, 3> own(work, piece, walk);
    const Rows x_rows = walk.rows(role_x), residuals = walk.rows(role_residual), out = walk.rows(role_out);
    const A slope = static_cast<A>(work.epilogue.slope);

    const auto write = [&](const auto& at, const Pack<T>& x) {
        A v[pack_size];
#pragma unroll
        for (int i = 0; i < pack_size; ++i) v[i] = fused(x[i] - own.at(0, i), own.at(1, i), own.at(2, i));
        if (residuals.exist()) {
            const Pack<T> residual = load_pack<T>(walk.template place<T>(residuals, at));
#pragma unroll
            for (int i = 0; i < pack_size; ++i) v[i] += residual[i];
        }
        if (work.epilogue.activates) {
            unsigned through = 0;
#pragma unroll
            for (int i = 0; i < pack_size; ++i) {
                if (!(v[i] <= 0))
                    through |= i < at.count ? 1u << i : 0u;
                else
                    v[i] = slope == 0 ? A(0) : v[i] * slope;
            }
            if (work.box.mask) *walk.mask(at) = static_cast<unsigned char>(through);
        }
        Pack<T> y;
#pragma unroll
        for (int i = 0; i < pack_size; ++i) y.set(i, v[i]);
        store_pack<T>(walk.template place<T>(out, at), y);
    };

    for (int step = 0; step < walk.steps(); step += batch) {
        Pack<T> x[batch];
#pragma unroll
        for (int j = 0; j < batch; ++j)
            x[j] = load_or_take<T>(stash, step + j, walk.template place<T>(x_rows, walk.at(step + j)));
#pragma unroll
        for (int j = 0; j < batch; ++j)
            if (const auto at = walk.at(step + j); at.count > 0) write(at, x[j]);
    }
}

// dx = a * (dy - w * dy_hi) + w * (b * xhat + c), with xhat = (x - hi) * r
template <class T, Pattern pattern, bool packed>
__device__ void input_grad(const Work& work, const Piece& piece, const Stash<T>& stash_dy, const Stash<T>& stash_x) {
    using A = Arithmetic<T>;
    constexpr int batch = apply_packs<T, 2>;
    const Walk<pattern, packed> walk(work, piece);
    const Coefficients<A, pattern, packed, coefficient_count> own(work, piece, walk);
    const Rows dy_rows = walk.rows(role_dy), x_rows = walk.rows(role_x), outputs = walk.rows(role_y);
    const Rows weights = walk.rows(role_weights), out = walk.rows(role_out), dresiduals = walk.rows(role_residual);
    const bool constant = work.op == Op::batch_norm_inference_backward;  // then dx knows no x

    const auto write = [&](const auto& at, const Pack<T>& dy_pack, const Pack<T>& x_pack) {
        const Gradient<T, pattern, packed> pack(work, walk, outputs, at, dy_pack, x_pack);
        if (dresiduals.exist()) {
            Pack<T> dresidual;
#pragma unroll
            for (int i = 0; i < pack_size; ++i) dresidual.set(i, pack.dy[i]);
            store_pack<T>(walk.template place<T>(dresiduals, at), dresidual);
        }
        A rest[pack_size], dy_hi[pack_size];
#pragma unroll
        for (int i = 0; i < pack_size; ++i) {
            const A xhat = (pack.x[i] - own.at(0, i)) * own.at(1, i);
            rest[i] = constant ? own.at(5, i) : fused(own.at(4, i), xhat, own.at(5, i));
            dy_hi[i] = own.at(2, i);
        }
        if (!packed && weights.exist()) {
            const Pack<A> w = load_pack<A>(walk.template place<A>(weights, at));
#pragma unroll
            for (int i = 0; i < pack_size; ++i) {
                // An element of weight 0 is left out, whatever x is there.
                rest[i] = w[i] != 0 ? w[i] * rest[i] : A(0);
                dy_hi[i] = w[i] * dy_hi[i];
            }
        }
        Pack<T> dx;
#pragma unroll
        for (int i = 0; i < pack_size; ++i) dx.set(i, fused(own.at(3, i), pack.dy[i] - dy_hi[i], rest[i]));
        store_pack<T>(walk.template place<T>(out, at), dx);
    };

    for (int step = 0; step < walk.steps(); step += batch) {
        Pack<T> dy[batch], x[batch];
#pragma unroll
        for (int j = 0; j < batch; ++j) {
            const auto at = walk.at(step + j);
            dy[j] = load_or_take<T>(stash_dy, step + j, walk.template place<T>(dy_rows, at));
            x[j] = load_or_take<T>(stash_x, step + j, walk.template place<T>(x_rows, at));
        }
#pragma unroll
        for (int j = 0; j < batch; ++j)
            if (const auto at = walk.at(step + j); at.count > 0) write(at, dy[j], x[j]);
    }
}

}  // namespace batchnorm::cuda
