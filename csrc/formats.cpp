#include "formats.h"

#include <stdexcept>
#include <string>

#include "block_types.h"

namespace pagoda {

namespace {

template <class B>
void unpack(const uint8_t *row, int64_t index, Block32 &out) {
    constexpr int per = B::kInfo.elements / 32;
    B::unpack(row + index / per * B::kInfo.bytes, static_cast<int>(index % per), out);
}

template <class B>
void decode(const Block32 &b, float *out) {
    constexpr int kColumns = 32 / B::Scales::kHalves;
    for (int i = 0; i < 32; ++i) {
        out[i] = B::Scales::scale(b, i / kColumns) * static_cast<float>(B::Codes::value(b.q[i], B::kTable));
        if constexpr (B::Scales::kMin) out[i] += B::Scales::min(b, i / kColumns);
    }
}

template <class B>
constexpr TypeTraits block_traits() {
    using Scales = typename B::Scales;
    TypeTraits t{B::kInfo, {64 * B::Codes::kBits, Scales::kBytes, Scales::kSuperBytes}, Scales::kMin, Scales::kHalves,
                 B::Codes::kBits, B::kTable, nullptr, nullptr};
    if constexpr (B::kInfo.bytes > 0) {
        t.unpack = unpack<B>;
        t.decode = decode<B>;
    }
    return t;
}

constexpr TypeTraits float_traits(const char *name, int bytes) {
    return {{name, 1, bytes, -1, -1}, {bytes * kActBlock * kPanelRows, 0, 0}, false, 1, 8 * bytes, nullptr, nullptr, nullptr};
}

constexpr TypeTraits kTraits[] = {
    float_traits("F32", 4), float_traits("F16", 2), float_traits("BF16", 2),
#define PAGODA_TYPE(name) block_traits<blocks::name>(),
    PAGODA_BLOCK_TYPES(PAGODA_TYPE) PAGODA_DECODED_TYPES(PAGODA_TYPE)
#undef PAGODA_TYPE
};

}  // namespace

const TypeTraits &traits(Type t) { return kTraits[static_cast<int>(t)]; }

Type type_from_name(const char *name) {
    for (int i = 0; i < static_cast<int>(Type::Count); ++i)
        if (std::strcmp(kTraits[i].info.name, name) == 0) return static_cast<Type>(i);
    throw std::invalid_argument("no such tensor type: " + std::string(name));
}

Type file_type_from_name(const char *name) {
    const Type type = type_from_name(name);
    if (is_grouped(type)) throw std::invalid_argument("no file holds tensors of type " + std::string(name));
    return type;
}

void dequantize_row(Type type, const uint8_t *row, int64_t columns, float *out) {
    if (type == Type::F32) {
        std::memcpy(out, row, static_cast<size_t>(columns) * 4);
        return;
    }
    if (type == Type::F16 || type == Type::BF16) {
        for (int64_t i = 0; i < columns; ++i) {
            const uint16_t h = load_u16(row + 2 * i);
            out[i] = type == Type::F16 ? half_to_float(h) : bfloat_to_float(h);
        }
        return;
    }
    const TypeTraits &t = traits(type);
    Block32 block{};
    for (int64_t b = 0; b < columns / 32; ++b) {
        t.unpack(row, b, block);
        t.decode(block, out + 32 * b);
    }
}

}  // namespace pagoda
