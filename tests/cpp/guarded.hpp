// Memory between two pages that nothing may touch, and arrays of any strides in it.
#pragma once

#include "tensor.hpp"

#include <cstdlib>
#include <memory>

#if defined(__linux__)
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

// Without such pages: bytes on both sides that hold a pattern, so that what is written there is seen, not what is read.
class Guarded {
  public:
    // As an element it is NaN in every type: a gap that is read shows in the results.
    static constexpr unsigned char nan = 0xff;

    // size bytes, right before the page behind them or, at_start, right behind the one before.
    Guarded(std::size_t size, bool at_start, unsigned char pattern = nan) {
#if defined(__linux__)
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        inside_ = (size + page - 1) / page * page;
        mapped_ = inside_ + 2 * page;
        void* const all = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED) std::abort();
        begin_ = static_cast<unsigned char*>(all) + page;
        if (inside_ > 0 && mprotect(begin_, inside_, PROT_READ | PROT_WRITE) != 0) std::abort();
        data_ = at_start ? begin_ : begin_ + inside_ - size;
#else
        inside_ = size + 256;
        begin_ = new unsigned char[inside_];
        data_ = begin_ + (at_start ? 64 : 191);
#endif
        if (inside_ > 0) std::memset(begin_, pattern, inside_);
    }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() {
#if defined(__linux__)
        munmap(begin_ - (mapped_ - inside_) / 2, mapped_);
#else
        delete[] begin_;
#endif
    }

    unsigned char* data() { return data_; }
    const unsigned char* data() const { return data_; }

    void remember() { before_.assign(begin_, begin_ + inside_); }
    // Since remember(), but for elements of item bytes at these places.
    bool unchanged(const unsigned char* origin, const std::vector<int64_t>& places, std::size_t item) const {
        std::vector<unsigned char> expected = before_;
        for (const int64_t place : places)
            std::copy_n(origin + place, item, expected.begin() + (origin + place - begin_));
        return std::equal(expected.begin(), expected.end(), begin_);
    }

  private:
    std::size_t inside_ = 0, mapped_ = 0;
    unsigned char *begin_ = nullptr, *data_ = nullptr;  // of what may be touched, and of the size bytes
    std::vector<unsigned char> before_;
};

// Axes in any order, with gaps and steps, forwards and backwards, at any address; where it repeats, of stride 0 as
// well.
class Array {
  public:
    Array(Random& random, DType dtype, const Shape& shape, bool repeats = false)
        : dtype_(dtype), shape_(shape), stride_(random_strides(random, dtype, shape, repeats)) {
        places_ = element_places(shape_, stride_);
        const auto item = static_cast<std::size_t>(batchnorm::item_size(dtype));
        int64_t low = 0;
        std::size_t size = 0;
        if (!places_.empty()) {
            const auto [first, last] = std::minmax_element(places_.begin(), places_.end());
            low = *first;
            size = static_cast<std::size_t>(*last - low) + item;
        }
        const bool at_start = random.integer(0, 1) == 0;
        const int64_t shift = random.integer(0, 7) ? 0 : random.integer(1, 9);  // off the page, to another alignment
        memory_ = std::make_unique<Guarded>(size + static_cast<std::size_t>(shift), at_start);
        origin_ = memory_->data() + (at_start ? shift : 0) - low;
    }

    DType dtype() const { return dtype_; }
    const Shape& shape() const { return shape_; }
    std::size_t size() const { return places_.size(); }
    bool repeats() const { return is_repeated_; }
    double get(std::size_t i) const { return load_element(dtype_, origin_ + places_[i]); }
    void set(std::size_t i, double value) { save_element(dtype_, origin_ + places_[i], value); }
    Values values() const {
        Values all(size());
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = get(i);
        return all;
    }

    void remember() { memory_->remember(); }
    bool unchanged() const { return memory_->unchanged(origin_, {}, 0); }
    bool unchanged_beside_elements() const {
        return memory_->unchanged(origin_, places_, static_cast<std::size_t>(batchnorm::item_size(dtype_)));
    }

    batchnorm::View view() const { return describe<const void>(origin_, dtype_, shape_, stride_); }
    batchnorm::MutView mut() { return describe<void>(origin_, dtype_, shape_, stride_); }

    std::string text() const {
        std::string all = name_of(dtype_);
        for (const int64_t stride : stride_) all += ' ' + std::to_string(stride);
        return all;
    }

  private:
    static const char* name_of(DType dtype) {
        constexpr const char* names[] = {"f32", "f64", "f16", "bf16"};
        return names[static_cast<int>(dtype)];
    }

    Shape random_strides(Random& random, DType dtype, const Shape& shape, bool repeats) {
        const auto one_in = [&](int64_t n) { return random.integer(1, n) == 1; };
        std::vector<std::size_t> order(shape.size());  // from slowest to fastest
        std::iota(order.begin(), order.end(), std::size_t{0});
        if (shape.size() > 2 && one_in(3)) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
        if (one_in(5))
            for (std::size_t i = order.size(); i > 1; --i)
                std::swap(order[i - 1], order[static_cast<std::size_t>(random.integer(0, static_cast<int>(i) - 1))]);

        const bool dense = one_in(2);
        const int64_t item = batchnorm::item_size(dtype);
        int64_t step = item + (!dense && one_in(6) ? random.integer(1, 9) : 0);  // a field of a packed record
        Shape strides(shape.size());
        for (std::size_t i = order.size(); i-- > 0;) {
            int64_t& stride = strides[order[i]];
            const int64_t size = shape[order[i]];
            if (!dense && one_in(5)) step *= random.integer(2, 3);
            stride = dense || !one_in(6) ? step : -step;
            if (size <= 1 && one_in(2)) stride = random.integer(-1000000007, 1000000007);  // nothing steps along it
            if (repeats && one_in(6)) {
                is_repeated_ = true;
                stride = 0;
                continue;
            }
            step = step * std::max<int64_t>(size, 1) + (!dense && one_in(4) ? random.integer(1, 3) * item : 0);
        }
        return strides;
    }

    DType dtype_;
    Shape shape_;
    bool is_repeated_ = false;
    Shape stride_;
    std::vector<int64_t> places_;
    std::unique_ptr<Guarded> memory_;
    unsigned char* origin_ = nullptr;
};

// What is said where memory is touched that must not be, or malloc finds its own overwritten.
inline const char* volatile fault_message = "";
#if defined(__linux__)
inline void tell_faults() {
    struct sigaction tell = {};
    tell.sa_handler = [](int) {  // only what may be called in a signal handler; then the usual end
        const char* const text = fault_message;
        if (write(STDOUT_FILENO, text, std::strlen(text)) < 0) _exit(1);
    };
    tell.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGSEGV, &tell, nullptr);
    sigaction(SIGABRT, &tell, nullptr);
}
#else
inline void tell_faults() {}
#endif
