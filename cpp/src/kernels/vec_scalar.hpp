// Vec for plain C++: one element at a time. Elements are copied, not dereferenced: data need not be aligned.
#pragma once

#include "half.hpp"

namespace {

template <class T>
struct Vec {
    static constexpr int width = 1, chains = 4;
    using Mask = bool;
    T r;

    static Vec load(const T* p) {
        Vec v;
        __builtin_memcpy(&v.r, p, sizeof(T));
        return v;
    }
    static Vec load(const T* p, int) { return load(p); }
    void store(T* p) const { __builtin_memcpy(p, &r, sizeof(T)); }
    void store(T* p, int) const { store(p); }
    void stream(T* p) const { store(p); }
    static Vec all(T value) { return {value}; }
    static Mask mask_of(unsigned bits) { return (bits & 1) != 0; }
    Vec first(int) const { return *this; }
    bool finite() const { return __builtin_isfinite(r); }
};

template <class T>
Vec<T> operator+(Vec<T> a, Vec<T> b) {
    return {a.r + b.r};
}
template <class T>
Vec<T> operator-(Vec<T> a, Vec<T> b) {
    return {a.r - b.r};
}
template <class T>
Vec<T> operator*(Vec<T> a, Vec<T> b) {
    return {a.r * b.r};
}
template <class T>
Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    return {a.r * b.r + c.r};
}
template <class T>
Vec<T> difference(Vec<T> a, Vec<T> b) {
    return a - b;
}
template <class T>
bool above_zero(Vec<T> v) {
    return !(v.r <= 0);
}
template <class T>
bool not_zero(Vec<T> v) {
    return v.r != 0;
}
template <class T>
Vec<T> select(bool mask, Vec<T> a, Vec<T> b) {
    return mask ? a : b;
}
inline unsigned bits_of(bool mask) { return mask; }

// All stores go through the caches.
constexpr bool has_streams = false;
inline void finish_streams() noexcept {}

template <class T>
Vec<double> widen(const T* p) {
    return {static_cast<double>(Vec<T>::load(p).r)};
}
template <class T>
Vec<double> widen(const T* p, int) {
    return widen(p);
}

// As many doubles as a Vec<float> has lanes.
struct Widened {
    double r;

    static Widened load(const double* p) { return {*p}; }
    void store(double* p) const { *p = r; }
    void add(Vec<float> v) { r += static_cast<double>(v.r); }
};

// Elements of 16 bits, as floats, and back.
inline Vec<float> load(const Half* p) { return {to_float(Vec<Half>::load(p).r)}; }
inline Vec<float> load(const BFloat16* p) { return {to_float(Vec<BFloat16>::load(p).r)}; }
inline void store(Vec<float> v, Half* p) { Vec<Half>{from_float<Half>(v.r)}.store(p); }
inline void store(Vec<float> v, BFloat16* p) { Vec<BFloat16>{from_float<BFloat16>(v.r)}.store(p); }
inline void stream(Vec<float> v, Half* p) { store(v, p); }
inline void stream(Vec<float> v, BFloat16* p) { store(v, p); }

}  // namespace
