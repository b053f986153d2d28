// Vec for plain C++: one element at a time. Elements are copied, not dereferenced: data need not be aligned.
#pragma once

namespace {

template <class T>
struct Vec {
    static constexpr int width = 1;
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

inline void finish_streams() noexcept {}

template <class T>
Vec<double> widen(const T* p) {
    return {static_cast<double>(Vec<T>::load(p).r)};
}
template <class T>
Vec<double> widen(const T* p, int) {
    return widen(p);
}

}  // namespace
