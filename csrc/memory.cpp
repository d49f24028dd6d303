#include <sys/mman.h>

#include <mutex>
#include <new>

#include "common.h"

namespace pagoda {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kChunk = 128 * kHugePage;  // the last page of each is taken whole, however little of it is used

uint8_t *map(size_t bytes) {
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    return static_cast<uint8_t *>(p);
}

}  // namespace

LazyMemory::LazyMemory(size_t bytes) {
    bytes_ = static_cast<size_t>(round_up(static_cast<int64_t>(bytes ? bytes : 1), 4096));
    if (bytes_ < 2 * kHugePage) {
        data_ = map(bytes_);
        return;
    }
    uint8_t *p = map(bytes_ + kHugePage);  // of which the part that is aligned is kept
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(p) % kHugePage) % kHugePage;
    if (before > 0) munmap(p, before);
    if (before < kHugePage) munmap(p + before + bytes_, kHugePage - before);
    data_ = p + before;
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes_, MADV_HUGEPAGE);  // fewer TLB misses while streaming; best effort
#endif
}

Piece::Piece(size_t bytes) : bytes_(static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 64))) {
    static std::mutex mutex;
    static std::weak_ptr<LazyMemory> open_chunk;
    static size_t used = 0;
    const std::lock_guard lock(mutex);
    chunk_ = open_chunk.lock();
    if (!chunk_ || used + bytes_ > chunk_->bytes()) {
        chunk_ = std::make_shared<LazyMemory>(bytes_ > kChunk / 4 ? bytes_ : kChunk);
        if (bytes_ > kChunk / 4) {  // alone in its chunk; the open one stays open
            data_ = chunk_->data();
            return;
        }
        open_chunk = chunk_;
        used = 0;
    }
    data_ = chunk_->data() + used;
    used += bytes_;
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
