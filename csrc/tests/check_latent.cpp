// Vectors that are keys and values as stored, and attention over them.
#include <algorithm>
#include <numeric>

#include "../kernels_latent.h"
#include "check.h"

namespace pagoda::check {
namespace {

constexpr KVType kKinds[] = {KVType::F32, KVType::F16, KVType::BF16, KVType::Int16, KVType::Int8};

struct Setting {
    int position, tokens, group, head_dim, values_from;
    int window = 0;
};

constexpr Setting kSettings[] = {
    {0, 1, 1, 64, 32},      {0, 8, 3, 64, 16},     {15, 1, 4, 96, 32},     {255, 1, 7, 64, 32},         {256, 3, 8, 80, 48},
    {511, 2, 12, 64, 0},    {600, 1, 20, 576, 64}, {300, 6, 3, 64, 32, 45}, {770, 24, 1, 320, 64, 300}, {40, 4, 5, 64, 24},
};

// One sequence's vectors, in blocks that lie in no order, and what is asked of them.
struct Latents {
    Latents(const LatentKernels &k, const Setting &setting, KVType kind)
        : s(setting), type(kind), size(kind == KVType::F32 ? 4 : kind == KVType::Int8 ? 1 : 2),
          scales_at(static_cast<int64_t>(s.head_dim) * kBlockTokens * size), stride(round_up(scales_at + 64, 64)),
          table(static_cast<size_t>(ceil_div(s.position + s.tokens, kBlockTokens))),
          memory(table.size() * static_cast<size_t>(stride)), scratch(kAttendScratch + 64) {
        Random random;
        std::iota(table.begin(), table.end(), 0);
        std::shuffle(table.begin(), table.end(), std::mt19937(7));
        for (int t = 0; t < s.position + s.tokens; ++t) {
            given.push_back(random.normals(static_cast<size_t>(s.head_dim)));
            k.store(given.back().data(), s.head_dim, t % kBlockTokens, type, block(t), scales(t));
        }
        for (size_t b = 0; s.window > 0 && b < table.size(); ++b)
            if (static_cast<int>(b + 1) * kBlockTokens - 1 <= s.position - s.window) table[b] = -1;
        q = random.normals(static_cast<size_t>(s.tokens * s.group * s.head_dim));
        out_dim = s.head_dim - s.values_from;
    }
    uint8_t *block(int token) { return memory.data() + table[static_cast<size_t>(token / kBlockTokens)] * stride; }
    float *scales(int token) { return reinterpret_cast<float *>(block(token) + scales_at); }

    double element(int token, int d) {
        const int slot = token % kBlockTokens;
        const uint8_t *at = block(token) + static_cast<int64_t>(slot * s.head_dim + d) * size;
        switch (type) {
            case KVType::F32: return bits_to_float(load_u32(at));
            case KVType::F16: return half_to_float(load_u16(at));
            case KVType::BF16: return bfloat_to_float(load_u16(at));
            case KVType::Int8: return static_cast<int8_t>(*at) * static_cast<double>(scales(token)[slot]);
            case KVType::Int16: break;
        }
        const uint8_t *code = block(token) + 2 * ((slot / 2 * s.head_dim + d) * 2 + slot % 2);
        return static_cast<int16_t>(load_u16(code)) * static_cast<double>(scales(token)[slot]);
    }

    LatentArgs args(int token, int tokens, int head, int heads, std::vector<float> &out) {
        LatentArgs a{};
        const int at = token * s.group + head;
        a.q = q.data() + at * s.head_dim;
        a.q_stride = s.group * s.head_dim;
        a.out = out.data() + at * out_dim;
        a.out_stride = s.group * out_dim;
        a.tokens = tokens;
        a.position = s.position + token;
        a.group = heads;
        a.head_dim = s.head_dim;
        a.values_from = s.values_from;
        a.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
        a.window = s.window;
        a.keys = a.position + tokens;
        a.causal = true;
        a.kv = memory.data();
        a.table = table.data();
        a.block_stride = stride;
        a.k_scale_offset = a.v_scale_offset = scales_at;
        a.type = type;
        a.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64);
        return a;
    }

    Setting s;
    KVType type;
    int size, out_dim = 0;
    int64_t scales_at, stride;
    std::vector<int32_t> table;
    std::vector<uint8_t> memory, scratch;
    std::vector<std::vector<float>> given;
    std::vector<float> q;
};

void check_values(Latents &l, const std::vector<float> &out, Report &report) {
    for (int row = 0; row < l.s.tokens * l.s.group; ++row) {
        const int last = l.s.position + row / l.s.group, first = l.s.window ? std::max(0, last - l.s.window + 1) : 0;
        std::vector<double> weights;
        for (int key = first; key <= last; ++key) {
            double score = 0.0;
            for (int d = 0; d < l.s.head_dim; ++d)
                score += static_cast<double>(l.q[static_cast<size_t>(row * l.s.head_dim + d)]) * l.element(key, d);
            weights.push_back(score / std::sqrt(static_cast<double>(l.s.head_dim)));
        }
        const double top = *std::max_element(weights.begin(), weights.end());
        for (double &x : weights) x = std::exp(x - top);
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (int d = 0; d < l.out_dim; ++d) {
            double want = 0.0, bound = 0.0;
            for (int key = first; key <= last; ++key) {
                const double part = weights[static_cast<size_t>(key - first)] / sum * l.element(key, l.s.values_from + d);
                want += part;
                bound += std::fabs(part);
            }
            report.close(out[static_cast<size_t>(row * l.out_dim + d)], want, (l.type == KVType::Int16 ? 3e-3 : 1e-5) * bound,
                         "values");
        }
    }
}

void check_stored(Latents &l, Report &report) {
    for (int t = l.s.position; t < l.s.position + l.s.tokens; ++t) {
        const std::vector<float> &x = l.given[static_cast<size_t>(t)];
        double largest = 0.0, length = 0.0;
        for (const float v : x) {
            largest = std::max(largest, std::fabs(static_cast<double>(v)));
            length += static_cast<double>(v) * v;
        }
        const double step = l.type == KVType::Int8    ? largest / 127
                            : l.type == KVType::Int16 ? std::max(largest / 16383.0, std::sqrt(length) / 46300.0)
                                                      : 0.0;
        const double share = l.type == KVType::F16 ? 0x1p-11 : l.type == KVType::BF16 ? 0x1p-8 : 0.0;
        for (int d = 0; d < l.s.head_dim; ++d) {
            const double v = x[static_cast<size_t>(d)];
            report.close(l.element(t, d), v, 0.5001 * step + share * std::fabs(v) + 1e-7, "stored");
        }
    }
}

void check_setting(const LatentKernels &k, const Setting &s, KVType type, Report &report) {
    Latents l(k, s, type);
    check_stored(l, report);
    std::vector<float> together(static_cast<size_t>(s.tokens * s.group * l.out_dim)), alone(together), by_chunks(together);
    LatentArgs all = l.args(0, s.tokens, 0, s.group, together);
    k.attend(all);
    check_values(l, together, report);
    for (int t = 0; t < s.tokens; ++t)
        for (int h = 0; h < s.group; ++h) k.attend(l.args(t, 1, h, 1, alone));
    report.expect(together == alone, "rows differ alone at %d", s.position);
    LatentArgs part = l.args(0, s.tokens, 0, s.group, by_chunks);
    const auto each = static_cast<size_t>(attend_part_floats(s.tokens * s.group, s.head_dim));
    std::vector<float> parts(each * static_cast<size_t>(part.last_chunk() + 1), NAN);
    for (part.chunk = part.last_chunk(); part.chunk >= part.first_chunk(); --part.chunk) {
        part.part = parts.data() + each * static_cast<size_t>(part.chunk);
        k.attend(part);
    }
    k.merge_attended(part, parts.data());
    report.expect(together == by_chunks, "chunks apart differ at %d", s.position);
}

// Sums of products as large as codes let them become: a query that points where the keys do, values that are all alike.
void check_largest(const LatentKernels &k, bool one, Report &report) {
    Latents l(k, {511, 1, 1, 576, 64}, KVType::Int16);
    std::vector<float> key(576, one ? 1e-3f : 3.0f), out(512);
    if (one) key[70] = 3.0f;
    for (int t = 0; t < 512; ++t) k.store(key.data(), 576, t % kBlockTokens, l.type, l.block(t), l.scales(t));
    l.q = key;
    k.attend(l.args(0, 1, 0, 1, out));
    for (int d = 0; d < 512; ++d) report.close(out[static_cast<size_t>(d)], key[static_cast<size_t>(64 + d)], 3e-3, "largest");
}

// What cannot be stored becomes something finite.
void check_finite(const LatentKernels &k, KVType type, Report &report) {
    Latents l(k, {3, 1, 1, 16, 0}, type);
    std::vector<float> x(16, 1.0f);
    x[0] = INFINITY;
    x[1] = -INFINITY;
    x[2] = NAN;
    k.store(x.data(), 16, 3, type, l.block(3), l.scales(3));
    for (int d = 0; d < 16; ++d) report.expect(std::isfinite(l.element(3, d)), "%d was stored as infinite", d);
}

}  // namespace

int check_latent(const LatentKernels &k) {
    Report report("latent");
    for (const KVType type : kKinds) {
        for (const Setting &s : kSettings) check_setting(k, s, type, report);
        check_finite(k, type, report);
    }
    for (const bool one : {false, true}) check_largest(k, one, report);
    return report.finish();
}

}  // namespace pagoda::check
