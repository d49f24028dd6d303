#include <sys/mman.h>

#include <new>

#include "common.h"

namespace pagoda {

LazyMemory::LazyMemory(size_t bytes) {
    constexpr size_t huge = size_t{2} << 20;
    bytes_ = static_cast<size_t>(round_up(static_cast<int64_t>(bytes ? bytes : 1), 4096));
    void *p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t *>(p);
#ifdef MADV_HUGEPAGE
    if (bytes_ >= 4 * huge) madvise(data_, bytes_, MADV_HUGEPAGE);  // fewer TLB misses while streaming; best effort
#endif
}

LazyMemory::~LazyMemory() {
    if (data_) munmap(data_, bytes_);
}

LazyMemory &LazyMemory::operator=(LazyMemory &&other) noexcept {
    if (this != &other) {
        if (data_) munmap(data_, bytes_);
        data_ = other.data_;
        bytes_ = other.bytes_;
        other.data_ = nullptr;
        other.bytes_ = 0;
    }
    return *this;
}

}  // namespace pagoda
