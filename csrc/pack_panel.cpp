#include "pack_panel.h"

#include <utility>

#include "block_types.h"

namespace pagoda {

namespace {

constexpr uint8_t kNoRow[256] = {};  // a block of a row that is missing; codes without scales are zeros

template <class B>
constexpr int kParts = B::kInfo.elements / kActBlock;
template <class B>
constexpr int64_t kPartBytes = 64 * B::Codes::kBits;  // of a panel's codes, for 32 columns

// Four rows of 32 columns in vectors, to where those rows lie in the first vector of a panel's block.
template <int Vectors>
PAGODA_INLINE void store_codes(const FourRows *from, uint8_t *to) {
    for (int v = 0; v < Vectors; ++v) std::memcpy(to + 64 * v, from + v, 16);
}

template <class B, int Part>
PAGODA_INLINE void pack_part(const FourRows *words, uint8_t *to) {
    FourRows codes[B::Codes::kBits];
    B::template arrange<Part>(words, codes);
    store_codes<B::Codes::kBits>(codes, to + Part * kPartBytes<B>);
}

template <class B, int... Part>
PAGODA_INLINE void pack_parts(const FourRows *words, uint8_t *to, std::integer_sequence<int, Part...>) {
    (pack_part<B, Part>(words, to), ...);
}

// The codes of a block of each of four rows: words of the file are turned into vectors of rows first, and arranged then.
template <class B>
PAGODA_INLINE void pack_codes(const uint8_t *const (&row)[4], uint8_t *to) {
    if constexpr (requires { B::kWords; }) {
        FourRows words[B::kWords];
        transpose<B::kWords>(row, B::kWordsAt, words);
        pack_parts<B>(words, to, std::make_integer_sequence<int, kParts<B>>{});
    } else {
        for (int part = 0; part < kParts<B>; ++part, to += kPartBytes<B>) {
            Block32 block[4] = {};
            for (int r = 0; r < 4; ++r) B::unpack(row[r], part, block[r]);
            FourRows quads[8], codes[B::Codes::kBits];
            transpose<8>({block[0].q, block[1].q, block[2].q, block[3].q}, 0, quads);
            arrange_codes<B::Codes::kBits>(quads, codes);
            store_codes<B::Codes::kBits>(codes, to);
        }
    }
}

template <class B>
PAGODA_INLINE void pack_scales(const uint8_t *block, int r, const PanelMemory &to) {
    using Scales = typename B::Scales;
    if constexpr (requires { Scales::pack_header(block, r, to.super); }) {
        Scales::pack_header(block, r, to.super);
    } else {
        for (int part = 0; part < kParts<B>; ++part) {
            Block32 b{};
            if constexpr (requires { B::kWords; }) B::header(block, part, b);
            else B::unpack(block, part, b);
            Scales::pack(b, r, to.scales + part * Scales::kBytes, to.super);
        }
    }
}

template <class B>
void pack_panel(const uint8_t *data, int64_t stride, int rows, int64_t columns, const PanelMemory &to) {
    static_assert(B::kInfo.bytes <= static_cast<int>(sizeof kNoRow));
    PanelMemory at = to;
    for (int64_t block = 0; block < columns / B::kInfo.elements; ++block, data += B::kInfo.bytes) {
        for (int r = 0; r < rows; r += 4) {
            const auto row = [&](int i) { return r + i < rows ? data + (r + i) * stride : kNoRow; };
            pack_codes<B>({row(0), row(1), row(2), row(3)}, at.codes + 4 * r);
        }
        for (int r = 0; r < rows; ++r) pack_scales<B>(data + r * stride, r, at);
        at.codes += kParts<B> * kPartBytes<B>;
        at.scales += kParts<B> * B::Scales::kBytes;
        at.super += B::Scales::kSuperBytes;
    }
}

// Of a type of floats: for each column the rows side by side. A few columns at a time stay in the first-level cache.
template <class Bits>
void pack_floats(const uint8_t *data, int64_t stride, int rows, int64_t columns, const PanelMemory &to) {
    constexpr int64_t kTogether = 64, kSize = sizeof(Bits);
    for (int64_t begin = 0; begin < columns; begin += kTogether)
        for (int r = 0; r < rows; ++r)
            for (int64_t c = begin; c < columns && c < begin + kTogether; ++c)
                std::memcpy(to.codes + (c * kPanelRows + r) * kSize, data + r * stride + c * kSize, kSize);
}

}  // namespace

PackPanel panel_packer(Type type) {
    switch (type) {
        case Type::F32: return pack_floats<uint32_t>;
        case Type::F16:
        case Type::BF16: return pack_floats<uint16_t>;
#define PAGODA_TYPE(name) case Type::name: return pack_panel<blocks::name>;
        PAGODA_FILE_BLOCK_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
        default: return nullptr;
    }
}

}  // namespace pagoda
