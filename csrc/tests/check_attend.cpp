// Keys and values as stored, and attention over them.
#include <algorithm>
#include <numeric>

#include "check.h"

namespace pagoda::check {
namespace {

constexpr const char *kNames[] = {"f32", "f16", "bf16", "int16", "int8"};
constexpr KVType kKinds[] = {KVType::F32, KVType::F16, KVType::BF16, KVType::Int16, KVType::Int8};

constexpr double kLongestKey = 46300.0, kLargestValueCode = 16383.0;  // of codes of 16 bits

int element_bytes(KVType type) { return type == KVType::F32 ? 4 : type == KVType::Int8 ? 1 : 2; }

double element(const uint8_t *base, int64_t i, KVType type) {
    switch (type) {
        case KVType::F32: return bits_to_float(load_u32(base + 4 * i));
        case KVType::F16: return half_to_float(load_u16(base + 2 * i));
        case KVType::BF16: return bfloat_to_float(load_u16(base + 2 * i));
        case KVType::Int16: return static_cast<int16_t>(load_u16(base + 2 * i));
        default: return static_cast<int8_t>(base[i]);
    }
}

// Keys and values of one sequence and one head, in blocks that lie in no order.
struct Cache {
    Cache(KVType kind, int dim, int num_tokens)
        : type(kind), head_dim(dim), tokens(num_tokens), padded(round_up(dim, 16)),
          v_at(round_up(static_cast<int64_t>(dim) * kBlockTokens * element_bytes(kind), 64)),
          scales_at(v_at + round_up(padded * kBlockTokens * element_bytes(kind), 64)), stride(scales_at + 128),
          table(static_cast<size_t>(ceil_div(num_tokens, kBlockTokens))),
          memory(table.size() * static_cast<size_t>(stride) + 64, 0x42) {
        std::iota(table.begin(), table.end(), 0);
        std::shuffle(table.begin(), table.end(), std::mt19937(7));
    }
    uint8_t *start() { return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64); }
    uint8_t *block(int token) { return start() + table[static_cast<size_t>(token / kBlockTokens)] * stride; }
    float scale(int token, int which) {
        if (type != KVType::Int8 && type != KVType::Int16) return 1.0f;
        return reinterpret_cast<const float *>(block(token) + scales_at + 64 * which)[token % kBlockTokens];
    }
    double key(int token, int d) {
        const int slot = token % kBlockTokens;
        const int at = type == KVType::Int16 ? (d / 2 * kBlockTokens + slot) * 2 + d % 2 : d * kBlockTokens + slot;
        return element(block(token), at, type) * scale(token, 0);
    }
    double value(int token, int d) {
        const int slot = token % kBlockTokens;
        const int64_t at = type == KVType::Int16 ? (slot / 2 * padded + d) * 2 + slot % 2 : slot * padded + d;
        return element(block(token) + v_at, at, type) * scale(token, 1);
    }
    void store(const Kernels &k, int token, const float *key, const float *value) {
        uint8_t *b = block(token);
        float *scales = reinterpret_cast<float *>(b + scales_at);
        k.store_kv(key, value, head_dim, token % kBlockTokens, type, b, b + v_at, scales, scales + kBlockTokens);
    }

    KVType type;
    int head_dim, tokens;
    int64_t padded, v_at, scales_at, stride;
    std::vector<int32_t> table;
    std::vector<uint8_t> memory;
};

double allowed(KVType type, double x, double largest) {
    switch (type) {
        case KVType::F32: return 0.0;
        case KVType::F16: return 0x1p-11 * std::fabs(x) + 0x1p-25;
        case KVType::BF16: return 0x1p-8 * std::fabs(x);
        case KVType::Int16: return 0.5001 / kLargestValueCode * largest + 1e-30;
        default: return 0.5001 / 127 * largest + 1e-30;
    }
}

void check_stored(const Kernels &k, KVType type, int head_dim, Report &report) {
    Random random;
    Cache cache(type, head_dim, 32);
    const std::vector<uint8_t> untouched = cache.memory;
    const std::vector<float> key = random.normals(static_cast<size_t>(head_dim));
    const std::vector<float> value = random.normals(static_cast<size_t>(head_dim));
    const int token = random.below(32);
    double largest[2] = {0.0, 0.0};
    for (size_t d = 0; d < key.size(); ++d) {
        largest[0] = std::fmax(largest[0], std::fabs(static_cast<double>(key[d])));
        largest[1] = std::fmax(largest[1], std::fabs(static_cast<double>(value[d])));
    }
    if (type == KVType::Int16) {  // a key's scale goes by its length, where that is more than its largest number allows
        const double length = std::sqrt(std::inner_product(key.begin(), key.end(), key.begin(), 0.0));
        largest[0] = std::fmax(largest[0], length * kLargestValueCode / kLongestKey);
    }
    cache.store(k, token, key.data(), value.data());
    const char *name = kNames[static_cast<int>(type)];
    for (int d = 0; d < head_dim; ++d) {
        const size_t i = static_cast<size_t>(d);
        report.close(cache.key(token, d), key[i], allowed(type, key[i], largest[0]), name);
        report.close(cache.value(token, d), value[i], allowed(type, value[i], largest[1]), name);
    }
    size_t changed = 0;
    for (size_t i = 0; i < untouched.size(); ++i) changed += untouched[i] != cache.memory[i];
    const size_t may = static_cast<size_t>(2 * head_dim * element_bytes(type) + (type == KVType::Int8 || type == KVType::Int16 ? 8 : 0));
    report.expect(changed <= may, "%s: wrote beyond its slot", name);
}

// What cannot be stored becomes something finite.
void check_finite(const Kernels &k, KVType type, Report &report) {
    Cache cache(type, 16, 16);
    std::vector<float> x(16, 1.0f);
    x[0] = INFINITY;
    x[1] = -INFINITY;
    x[2] = 3.3e38f;
    x[3] = NAN;
    cache.store(k, 3, x.data(), x.data());
    for (int d = 0; d < 16; ++d)
        report.expect(std::isfinite(cache.key(3, d)) && std::isfinite(cache.value(3, d)), "%s: %g was stored as infinite",
                      kNames[static_cast<int>(type)], static_cast<double>(x[static_cast<size_t>(d)]));
}

int check_store(const Kernels &k) {
    Report report("store_kv");
    for (const KVType type : kKinds) {
        for (const int head_dim : {16, 64, 72, 128}) check_stored(k, type, head_dim, report);
        check_finite(k, type, report);
    }
    return report.finish();
}

struct Setting {
    int position, tokens, group, head_dim;
    int window;
    float softcap;
    bool all = false;  // each token sees all keys
    float sink = NAN;  // the first head's, the others' each one less
};

constexpr Setting kSettings[] = {
    {0, 1, 1, 64, 0, 0.0f},     {0, 8, 3, 64, 0, 0.0f},      {14, 4, 1, 16, 0, 0.0f},   {15, 1, 4, 80, 0, 50.0f},
    {16, 24, 1, 72, 0, 0.0f},   {254, 4, 5, 64, 0, 0.0f},    {255, 1, 7, 64, 0, 0.0f},  {256, 3, 8, 128, 0, 0.0f},
    {511, 2, 12, 64, 0, 30.0f}, {600, 6, 3, 64, 0, 0.0f},    {40, 6, 2, 64, 1, 0.0f},   {40, 6, 3, 64, 17, 0.0f},
    {300, 6, 3, 64, 44, 0.0f},  {300, 6, 3, 64, 45, 20.0f},  {300, 6, 3, 64, 46, 0.0f}, {770, 8, 3, 32, 256, 0.0f},
    {770, 8, 3, 32, 300, 0.0f}, {509, 6, 1, 256, 252, 0.0f}, {3, 1, 1, 512, 0, 0.0f},   {20, 4, 2, 64, 1000, 0.0f},
    {20, 6, 4, 64, 0, 0.0f, false, 1.5f}, {300, 6, 3, 64, 45, 0.0f, false, 90.0f}, {300, 6, 3, 64, 0, 0.0f, false, -90.0f},
    {0, 1, 1, 32, 0, 0.0f, true}, {0, 17, 1, 32, 0, 0.0f, true}, {250, 24, 1, 64, 0, 0.0f, true},
};

struct Attention {
    Setting s;
    Cache cache;
    std::vector<float> q;  // [tokens][group][head_dim]
    std::vector<uint8_t> scratch;
    AttendArgs args{};
    std::vector<float> sinks;
};

// Blocks that the window has left behind are given back.
void free_old_blocks(Attention &a) {
    if (a.s.window == 0) return;
    for (size_t b = 0; b < a.cache.table.size(); ++b)
        if (static_cast<int>(b + 1) * kBlockTokens - 1 <= a.s.position - a.s.window) a.cache.table[b] = -1;
}

Attention make_attention(const Kernels &k, const Setting &s, KVType type) {
    Random random;
    Attention a{s, Cache(type, s.head_dim, s.position + s.tokens), {}, std::vector<uint8_t>(kAttendScratch + 64), {}, {}};
    for (int h = 0; h < s.group && !std::isnan(s.sink); ++h) a.sinks.push_back(s.sink - static_cast<float>(h));
    const size_t dim = static_cast<size_t>(s.head_dim);
    for (int t = 0; t < a.cache.tokens; ++t) a.cache.store(k, t, random.normals(dim).data(), random.normals(dim).data());
    free_old_blocks(a);
    a.q = random.normals(static_cast<size_t>(s.tokens * s.group) * dim);
    for (float &x : a.q) x *= 2.0f;
    a.args.q_stride = a.args.out_stride = s.group * s.head_dim;
    a.args.head_dim = s.head_dim;
    a.args.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    a.args.softcap = s.softcap;
    a.args.window = s.window;
    a.args.block_stride = a.cache.stride;
    a.args.v_offset = a.cache.v_at;
    a.args.k_scale_offset = a.cache.scales_at;
    a.args.v_scale_offset = a.cache.scales_at + 64;
    a.args.type = type;
    return a;
}

// The rows of tokens [token, token + tokens) and heads [head, head + heads), written to their place in `out`.
void run(const Kernels &k, Attention &a, int token, int tokens, int head, int heads, std::vector<float> &out) {
    AttendArgs args = a.args;
    const size_t at = static_cast<size_t>((token * a.s.group + head) * a.s.head_dim);
    args.q = a.q.data() + at;
    args.out = out.data() + at;
    args.position = a.s.position + token;
    args.tokens = tokens;
    args.keys = a.s.all ? a.cache.tokens : args.position + tokens;
    args.causal = !a.s.all;
    args.group = heads;
    args.sinks = a.sinks.empty() ? nullptr : a.sinks.data() + head;
    args.kv = a.cache.start();
    args.table = a.cache.table.data();
    args.scratch = a.scratch.data() + (64 - reinterpret_cast<uintptr_t>(a.scratch.data()) % 64);
    k.attend(args);
}

// The same rows, each chunk of keys by a call of its own, then merged.
void run_by_chunks(const Kernels &k, Attention &a, std::vector<float> &out) {
    AttendArgs args = a.args;
    args.q = a.q.data();
    args.out = out.data();
    args.position = a.s.position;
    args.tokens = a.s.tokens;
    args.keys = a.cache.tokens;
    args.causal = !a.s.all;
    args.group = a.s.group;
    args.sinks = a.sinks.empty() ? nullptr : a.sinks.data();
    args.kv = a.cache.start();
    args.table = a.cache.table.data();
    args.scratch = a.scratch.data() + (64 - reinterpret_cast<uintptr_t>(a.scratch.data()) % 64);
    const auto each = static_cast<size_t>(attend_part_floats(a.s.tokens * a.s.group, a.s.head_dim));
    std::vector<float> parts(each * static_cast<size_t>(args.last_chunk() + 1), NAN);
    for (args.chunk = args.last_chunk(); args.chunk >= args.first_chunk(); --args.chunk) {
        args.part = parts.data() + each * static_cast<size_t>(args.chunk);
        k.attend(args);
    }
    k.merge_attended(args, parts.data());
}

// Softmax numerators of one row over the keys that it sees, [first, position]; `position` is the last key.
std::vector<double> row_weights(Attention &a, int row, int first, int position) {
    std::vector<double> scores;
    for (int key = first; key <= position; ++key) {
        double s = 0.0;
        for (int d = 0; d < a.s.head_dim; ++d)
            s += static_cast<double>(a.q[static_cast<size_t>(row * a.s.head_dim + d)]) * a.cache.key(key, d);
        s *= a.args.scale;
        scores.push_back(a.s.softcap > 0.0f ? a.s.softcap * std::tanh(s / a.s.softcap) : s);
    }
    const bool sinks = !a.sinks.empty();
    if (sinks) scores.push_back(a.sinks[static_cast<size_t>(row % a.s.group)]);
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (double &s : scores) sum += s = std::exp(s - top);
    for (double &s : scores) s /= sum;
    if (sinks) scores.pop_back();
    return scores;
}

void check_values(Attention &a, const std::vector<float> &out, Report &report) {
    for (int row = 0; row < a.s.tokens * a.s.group; ++row) {
        const int position = a.s.all ? a.cache.tokens - 1 : a.s.position + row / a.s.group;
        const int first = a.s.window > 0 ? std::max(0, position - a.s.window + 1) : 0;
        const std::vector<double> weights = row_weights(a, row, first, position);
        for (int d = 0; d < a.s.head_dim; ++d) {
            double want = 0.0, bound = 0.0;
            for (int key = first; key <= position; ++key) {
                const double part = weights[static_cast<size_t>(key - first)] * a.cache.value(key, d);
                want += part;
                bound += std::fabs(part);
            }
            const double share = a.cache.type == KVType::Int16 ? 3e-3 : 1e-5;  // queries and weights are codes, too
            report.close(out[static_cast<size_t>(row * a.s.head_dim + d)], want, share * bound,
                         kNames[static_cast<int>(a.cache.type)]);
        }
    }
}

void check_setting(const Kernels &k, const Setting &s, KVType type, Report &report) {
    Attention a = make_attention(k, s, type);
    std::vector<float> together(a.q.size()), alone(a.q.size()), by_token(a.q.size());
    run(k, a, 0, s.tokens, 0, s.group, together);
    for (int t = 0; t < s.tokens; ++t) {
        run(k, a, t, 1, 0, s.group, by_token);
        for (int h = 0; h < s.group; ++h) run(k, a, t, 1, h, 1, alone);
    }
    std::vector<float> by_chunks(a.q.size());
    run_by_chunks(k, a, by_chunks);
    check_values(a, together, report);
    const char *name = kNames[static_cast<int>(type)];
    report.expect(together == alone, "%s at %d: rows differ alone", name, s.position);
    report.expect(together == by_chunks, "%s at %d: chunks apart differ", name, s.position);
    report.expect(together == by_token, "%s at %d: tokens differ alone", name, s.position);
}

// Sums of products as large as codes let them become: queries that point where the keys do, values that are all alike.
void check_largest(const Kernels &k, int head_dim, bool one, Report &report) {
    Attention a = make_attention(k, {511, 1, 1, head_dim, 0, 0.0f}, KVType::Int16);
    std::vector<float> key(static_cast<size_t>(head_dim), one ? 0.0f : 3.0f);
    key[5] = 3.0f;
    const std::vector<float> value(key.size(), -7.0f);
    for (int t = 0; t < a.cache.tokens; ++t) a.cache.store(k, t, key.data(), value.data());
    a.q = key;
    std::vector<float> out(key.size());
    run(k, a, 0, 1, 0, 1, out);
    for (const float x : out) report.close(x, -7.0, 1e-3, "the largest sums");
    a.cache.store(k, 300, std::vector<float>(key.size(), -3.0f).data(), std::vector<float>(key.size(), 1e6f).data());
    run(k, a, 0, 1, 0, 1, out);  // the least score there can be: a key that is not looked at, whatever its value
    if (!one) for (const float x : out) report.close(x, -7.0, 1e-3, "the least score");
}

}  // namespace

int check_attend(const Kernels &k) {
    const int failed = check_store(k);
    Report report("attend");
    for (const KVType type : kKinds)
        for (const Setting &s : kSettings) check_setting(k, s, type, report);
    for (const int head_dim : {32, 64, 128, 512})
        for (const bool one : {false, true}) check_largest(k, head_dim, one, report);
    return failed + report.finish();
}

}  // namespace pagoda::check
