// Scratch memory for one call, laid out by taking pieces off it. Laid out over no memory, it measures.
#pragma once

#include <batchnorm/core.hpp>

#include <cstdlib>

namespace batchnorm {

class Arena {
  public:
    static constexpr std::size_t alignment = 64;

    Arena() noexcept = default;
    explicit Arena(void* memory) noexcept {
        const auto address = reinterpret_cast<std::uintptr_t>(memory);
        base_ = reinterpret_cast<char*>((address + alignment - 1) / alignment * alignment);
    }

    template <class T>
    T* take(std::int64_t n) noexcept {
        T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
        used_ += (static_cast<std::size_t>(n) * sizeof(T) + alignment - 1) / alignment * alignment;
        return piece;
    }

    // Bytes that hold what was taken, wherever they start.
    std::size_t bytes() const noexcept { return used_ + alignment - 1; }

  private:
    char* base_ = nullptr;
    std::size_t used_ = 0;
};

// The caller's workspace, or memory of our own where there is none.
class Scratch {
  public:
    Scratch(const Workspace& workspace, std::size_t bytes) noexcept
        : own_(workspace.data ? nullptr : std::malloc(bytes)), data_(workspace.data ? workspace.data : own_) {}
    ~Scratch() { std::free(own_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* data() const noexcept { return data_; }

  private:
    void* own_;
    void* data_;
};

}  // namespace batchnorm
