// A tensor of more than 2^31 elements for the tests of addresses, without the memory that it would take.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "../../kernels/clip.h"

namespace sifa {

// A tensor whose rows are 2^30 elements apart, of which only the pages that are touched exist.
template <typename T>
class FarApart {
 public:
  // `near` is dense, `width * channels` elements a row.
  FarApart(const std::vector<T>& near, int64_t row) : rows_(static_cast<int64_t>(near.size()) / row) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    address_ = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (address_ == MAP_FAILED) return;
    for (int64_t i = 0; i < rows_; ++i) {
      std::memcpy(static_cast<T*>(address_) + i * kRow, near.data() + i * row, row * sizeof(T));
    }
  }
  ~FarApart() {
    if (exists()) munmap(address_, bytes());
  }
  FarApart(const FarApart&) = delete;
  FarApart& operator=(const FarApart&) = delete;

  bool exists() const { return address_ != MAP_FAILED; }
  const T* data() const { return static_cast<const T*>(address_); }
  static PixelStrides strides(int64_t pixel, int64_t frames, int64_t height) {
    return {frames * height * kRow, height * kRow, kRow, pixel};
  }

 private:
  static constexpr int64_t kRow = int64_t(1) << 30;
  size_t bytes() const { return rows_ * kRow * sizeof(T); }
  int64_t rows_;
  void* address_;
};

}  // namespace sifa
