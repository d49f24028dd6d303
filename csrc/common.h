// Basics that every part of the basement uses: half floats, aligned memory, rounding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#define PAGODA_INLINE inline __attribute__((always_inline))
#define PAGODA_NOINLINE __attribute__((noinline))

namespace pagoda {

constexpr int kBlockTokens = 16;  // tokens in one KV block
constexpr int kPanelRows = 16;    // output rows interleaved in one weight panel
constexpr int kActBlock = 32;     // columns that a kernel multiplies at a time

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

PAGODA_INLINE float bits_to_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

PAGODA_INLINE uint32_t float_to_bits(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}

// IEEE 754 binary16, subnormals, infinities and NaN included.
PAGODA_INLINE float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u) return bits_to_float(sign | ((rest << 13) + 0x38000000u));
    return bits_to_float(sign | float_to_bits(static_cast<float>(rest) * 0x1p-24f));
}

// Rounds to nearest even; overflow becomes infinity.
PAGODA_INLINE uint16_t float_to_half(float f) {
    const uint32_t bits = float_to_bits(f);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return sign | 0x7e00u;
    if (rest >= 0x477ff000u) return sign | 0x7c00u;
    if (rest < 0x38800000u) {  // subnormal half: let the FPU round
        const float scaled = bits_to_float(rest) + 0.5f;
        return sign | static_cast<uint16_t>(float_to_bits(scaled) - 0x3f000000u);
    }
    const uint32_t rounded = rest + 0xfffu + ((rest >> 13) & 1u);
    return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

PAGODA_INLINE float bfloat_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

PAGODA_INLINE uint16_t float_to_bfloat(float f) {
    const uint32_t bits = float_to_bits(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16) | 0x40u;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

PAGODA_INLINE uint16_t load_u16(const uint8_t *p) {
    uint16_t v;
    std::memcpy(&v, p, 2);
    return v;
}

PAGODA_INLINE uint32_t load_u32(const uint8_t *p) {
    uint32_t v;
    std::memcpy(&v, p, 4);
    return v;
}

// 2^(e - 128), e a byte: 0 and 1 give subnormal numbers.
PAGODA_INLINE float power_of_two(uint8_t e) {
    const uint32_t x = e;
    return bits_to_float((x < 2 ? x + 1 : 4 * x - 4) << 21);
}

// Zeroed, page-aligned memory that costs nothing until it is touched.
class LazyMemory {
  public:
    LazyMemory() = default;
    explicit LazyMemory(size_t bytes);
    ~LazyMemory();
    LazyMemory(LazyMemory &&other) noexcept : data_(other.data_), bytes_(other.bytes_) {
        other.data_ = nullptr;
        other.bytes_ = 0;
    }
    LazyMemory &operator=(LazyMemory &&other) noexcept;
    LazyMemory(const LazyMemory &) = delete;
    LazyMemory &operator=(const LazyMemory &) = delete;

    uint8_t *data() const { return data_; }
    size_t bytes() const { return bytes_; }
    template <class T>
    T *as() const {
        return reinterpret_cast<T *>(data_);
    }

  private:
    uint8_t *data_ = nullptr;
    size_t bytes_ = 0;
};

// A piece of a large chunk of memory that many share, so that huge pages hold even small weights: a page that is looked
// up anew every 4 KiB halves the rate at which they stream. The chunk goes when its last piece does. Zero at first.
class Piece {
  public:
    Piece() = default;
    explicit Piece(size_t bytes);

    uint8_t *data() const { return data_; }
    size_t bytes() const { return bytes_; }

  private:
    std::shared_ptr<LazyMemory> chunk_;
    uint8_t *data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace pagoda
