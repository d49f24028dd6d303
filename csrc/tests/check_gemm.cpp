// Matrix products: every weight type with activations of 16 and of 8 bits, against the plain decoder's weights times the
// activations as quantized.
#include "check.h"

namespace pagoda::check {
namespace {

constexpr float kUntouched = 12345.0f;
constexpr double kUlp = 0x1p-24;

struct Shape {
    int64_t rows, columns;
};

struct Problem {
    Type type;
    int bits;  // of an activation's code
    int64_t rows, columns, tokens;
    int64_t padded;                   // columns, to a multiple of 32
    std::vector<float> decoded;       // [rows][columns]
    std::vector<double> activations;  // [tokens][padded], as the kernel sees them
    std::vector<float> x;             // [tokens][padded]
    std::vector<uint8_t> memory, scratch;
    Weight weight;
    GemmArgs args{};
};

uint8_t *aligned(std::vector<uint8_t> &memory, size_t bytes) {
    memory.resize(bytes + 64);
    return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
}

void put_half(uint8_t *to, float x) {
    const uint16_t h = float_to_half(x);
    std::memcpy(to, &h, 2);
}

// Gives a block a scale of a usual size, wherever its type keeps it.
void put_scale(Type type, uint8_t *block, Random &random) {
    if (info(type).scale_at >= 0) return put_half(block + info(type).scale_at, 0.01f * random.normal());
    if (type == Type::MXFP4) {
        block[0] = static_cast<uint8_t>(118 + random.below(8));
        return;
    }
    const uint16_t h = float_to_half(0.01f * random.normal());  // of IQ1_M, a nibble in each of four words
    for (int i = 0; i < 4; ++i) block[49 + 2 * i] = static_cast<uint8_t>((block[49 + 2 * i] & 15) | (h >> (4 * i) & 15) << 4);
}

// Rows of random codes, or (every other row of an extreme problem) of one byte alone.
std::vector<uint8_t> random_file(Type type, int64_t rows, int64_t columns, bool extreme, Random &random) {
    const int64_t stride = row_bytes(type, columns), size = info(type).bytes;
    std::vector<uint8_t> data(static_cast<size_t>(rows * stride));
    if (is_float(type)) {
        for (int64_t i = 0; i < rows * columns; ++i) {
            const float v = random.normal();
            const uint16_t h = type == Type::F16 ? float_to_half(v) : float_to_bfloat(v);
            std::memcpy(&data[static_cast<size_t>(i * size)], type == Type::F32 ? static_cast<const void *>(&v) : &h,
                        static_cast<size_t>(size));
        }
        return data;
    }
    constexpr uint8_t kExtremes[] = {0x00, 0x7f, 0x80, 0xff};
    const int min_at = info(type).min_at;
    for (int64_t r = 0; r < rows; ++r) {
        uint8_t *row = data.data() + r * stride;
        const uint8_t same = kExtremes[random.below(4)];
        for (int64_t i = 0; i < stride; ++i) row[i] = extreme && r % 2 ? same : static_cast<uint8_t>(random.engine());
        for (int64_t b = 0; b < stride / size; ++b) {
            put_scale(type, row + b * size, random);
            if (min_at >= 0) put_half(row + b * size + min_at, 0.05f * random.normal());
        }
    }
    return data;
}

// Tokens of plain, of spiked, of vanishing and of saturated activations.
void fill_activations(Problem &p, bool extreme, Random &random) {
    for (int64_t t = 0; t < p.tokens; ++t)
        for (int64_t c = 0; c < p.columns; ++c) {
            float v = random.normal();
            if (extreme) v = c / 32 % 3 == t % 3 || v > 0.0f ? 1.5f : -1.5f;
            if (t % 3 == 1 && random.below(100) == 0) v *= 40.0f;
            if (t % 5 == 4 && c < 64) v = 0.0f;
            if (t % 7 == 6) v *= 1e-20f;
            p.x[static_cast<size_t>(t * p.padded + c)] = v;
        }
}

void fill_from_file(Problem &p, bool extreme, Random &random) {
    const std::vector<uint8_t> file = random_file(p.type, p.rows, p.columns, extreme, random);
    p.weight.pack_panels(file.data(), 0, p.weight.panels);
    for (int64_t r = 0; r < p.rows; ++r)
        dequantize_row(p.type, file.data() + r * row_bytes(p.type, p.columns), p.columns,
                       &p.decoded[static_cast<size_t>(r * p.columns)]);
}

// A float of four bits of exponent and three of mantissa.
double e4m3(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double size = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
    return code & 128 ? -size : size;
}

// Random codes, scales and minima of groups of 64 columns (or of 16), and the columns in reverse.
void fill_grouped(Problem &p, bool extreme, Random &random) {
    const bool floats = p.type == Type::GroupedFp8, halves = p.type == Type::Fp4Halves;
    const bool bytes = floats || p.type == Type::Grouped8 || p.type == Type::Grouped8Min;
    p.weight = Weight(p.type, p.rows, p.columns, halves ? 0 : 1);
    std::vector<uint8_t> codes(static_cast<size_t>(p.rows * p.columns));
    for (size_t i = 0; i < codes.size(); ++i) {
        const bool last = extreme && i / static_cast<size_t>(p.columns) % 2;
        codes[i] = static_cast<uint8_t>(last ? (floats ? 126 : bytes ? 127 : 15) : random.below(bytes ? 256 : 16));
        if (floats && (codes[i] & 127) == 127) codes[i] = 0;  // no number
    }
    const std::vector<float> scales = random.normals(static_cast<size_t>(p.rows * p.weight.num_scales()));
    const std::vector<float> mins = random.normals(scales.size());
    std::vector<int32_t> order;
    for (int64_t c = p.columns; c-- > 0;) order.push_back(static_cast<int32_t>(c));
    constexpr int kLargest = Codebook::kLargest;
    for (int i = 0; i < 16; ++i) p.weight.codebook.set(i, i < 15 ? random.below(2 * kLargest + 1) - kLargest : kLargest);
    const float *lows = traits(p.type).has_mins ? mins.data() : nullptr;
    p.weight.pack_panels(GroupedSource{codes.data(), scales.data(), lows, order.data()}, 0, p.weight.panels);
    for (int64_t r = 0; r < p.rows; ++r)
        for (int64_t c = 0; c < p.columns; ++c) {
            const uint8_t code = codes[static_cast<size_t>(r * p.columns + p.columns - 1 - c)];
            const auto group = static_cast<size_t>(r * p.weight.num_scales() + c / (halves ? 16 : 64));
            float value = static_cast<float>(code);
            if (bytes) value = static_cast<float>(static_cast<int8_t>(code));
            if (floats) value = static_cast<float>(e4m3(code));
            if (halves) value = static_cast<float>(p.weight.table()[code]);
            if (p.type == Type::Grouped4) value -= 8.0f;
            if (p.type == Type::Codebook4) value = static_cast<float>(p.weight.codebook.at(code));
            p.decoded[static_cast<size_t>(r * p.columns + c)] = scales[group] * value + (lows ? mins[group] : 0.0f);
        }
}

// Activations as codes, and the values that these stand for.
void quantize_activations(const Kernels &k, Problem &p) {
    const size_t bytes = static_cast<size_t>(p.tokens * Quantized::bytes_per_token(p.padded, p.bits));
    p.args.act = Quantized::at(aligned(p.memory, bytes), p.tokens, p.padded, p.bits);
    for (int64_t t = 0; t < p.tokens; ++t) {
        const float *row = &p.x[static_cast<size_t>(t * p.padded)];
        (p.bits == 8 ? k.quantize8 : k.quantize)(row, p.padded, p.args.act, t);
        float scale = 0.0f;
        std::vector<int> factors;
        const std::vector<int> codes =
            p.bits == 8 ? quantized_bytes(row, p.padded, scale, factors) : quantized_codes(row, p.padded, scale);
        for (int64_t i = 0; i < p.padded; ++i) {
            const int factor = p.bits == 8 ? factors[static_cast<size_t>(i / 32)] : 1;
            p.activations[static_cast<size_t>(t * p.padded + i)] =
                static_cast<double>(codes[static_cast<size_t>(i)]) * factor * scale;
        }
    }
}

Problem make_problem(const Kernels &k, Type type, int bits, Shape shape, int64_t tokens, bool extreme) {
    Random random;
    const auto [rows, columns] = shape;
    Problem p{type, bits, rows, columns, tokens, round_up(columns, kActBlock), {}, {}, {}, {}, {}, Weight(type, rows, columns)};
    p.decoded.resize(static_cast<size_t>(rows * columns));
    if (is_grouped(type))
        fill_grouped(p, extreme, random);
    else
        fill_from_file(p, extreme, random);
    p.x.assign(static_cast<size_t>(tokens * p.padded), 0.0f);
    fill_activations(p, extreme, random);
    p.activations.assign(p.x.begin(), p.x.end());
    if (!is_float(type)) quantize_activations(k, p);
    p.args.x_stride = p.padded;
    p.args.scratch = aligned(p.scratch, kGemmScratch);
    return p;
}

// [tokens][stride]: the product of panels [panel_begin, panel_end) and tokens [begin, end), the rest untouched.
std::vector<float> run(const Kernels &k, Problem &p, int64_t begin, int64_t end, int64_t panel_begin = 0,
                       int64_t panel_end = -1) {
    GemmArgs g = p.args;
    g.weight = &p.weight;
    g.panel_begin = panel_begin;
    g.panel_end = panel_end < 0 ? p.weight.panels : panel_end;
    g.token_begin = begin;
    g.token_end = end;
    g.x = p.x.data();
    g.out_stride = p.weight.panels * kPanelRows + 3;
    if (g.scale == 0.0f) g.scale = 1.0f;
    std::vector<float> out(static_cast<size_t>(p.tokens * g.out_stride), kUntouched);
    g.out = out.data();
    (p.bits == 8 ? k.gemm8 : k.gemm)[static_cast<int>(p.type)](g);
    return out;
}

// Row r times token t in double, and a bound of the sum's magnitude for its tolerance.
double product(const Problem &p, int64_t r, int64_t t, double &bound) {
    double sum = 0.0, largest = 0.0, total = 0.0;
    bound = 0.0;
    if (r >= p.rows) return 0.0;
    for (int64_t c = 0; c < p.columns; ++c) {
        const double w = p.decoded[static_cast<size_t>(r * p.columns + c)];
        const double x = p.activations[static_cast<size_t>(t * p.padded + c)];
        sum += w * x;
        bound += std::fabs(w * x);
        total += std::fabs(x);
        largest = std::fmax(largest, std::fabs(w));
    }
    if (p.type == Type::TQ1_0 || p.type == Type::TQ2_0) largest = std::fmax(largest, 0.05);  // a row of zeros has codes of 1
    if (!is_float(p.type)) bound += largest * total;  // codes and mins may be larger than what they sum to
    return sum;
}

void check_values(const Kernels &k, Problem &p, Report &report) {
    const std::vector<float> out = run(k, p, 0, p.tokens);
    const int64_t stride = p.weight.panels * kPanelRows + 3;
    const double roundings = static_cast<double>((is_float(p.type) ? p.padded : 2 * p.padded / 32) + 16);
    for (int64_t t = 0; t < p.tokens; ++t)
        for (int64_t r = 0; r < stride; ++r) {
            const float got = out[static_cast<size_t>(t * stride + r)];
            double bound = 0.0;
            const double want = r < stride - 3 ? product(p, r, t, bound) : static_cast<double>(kUntouched);
            report.close(got, want, roundings * kUlp * bound, info(p.type).name);
        }
}

// A token's results are the same bits alone and in any company; others' outputs stay untouched.
void check_invariance(const Kernels &k, Problem &p, Report &report) {
    std::vector<std::vector<float>> alone;
    for (int64_t t = 0; t < p.tokens; ++t) alone.push_back(run(k, p, t, t + 1));
    const size_t stride = alone[0].size() / static_cast<size_t>(p.tokens);
    for (int64_t count = 2; count <= p.tokens; count += count < 13 ? 1 : 10)
        for (const int64_t begin : {int64_t{0}, p.tokens - count}) {
            const std::vector<float> got = run(k, p, begin, begin + count);
            for (int64_t t = 0; t < p.tokens; ++t) {
                const bool in = begin <= t && t < begin + count;
                const std::vector<float> &want = alone[static_cast<size_t>(in ? t : (t + 1) % p.tokens)];
                const bool same = std::memcmp(&got[static_cast<size_t>(t) * stride],
                                              &want[static_cast<size_t>(t) * stride], stride * 4) == 0;
                report.expect(same, "%s: token %d differs among tokens [%d, %d)", info(p.type).name, static_cast<int>(t),
                              static_cast<int>(begin), static_cast<int>(begin + count));
            }
        }
}

// out = old + (product * scale + bias), in the panels asked for alone.
void check_epilogue(const Kernels &k, Problem &p, Report &report) {
    const std::vector<float> plain = run(k, p, 0, p.tokens);
    const size_t width = static_cast<size_t>(p.weight.panels * kPanelRows), stride = width + 3;
    Random random;
    const std::vector<float> bias = random.normals(width);
    p.args.bias = bias.data();
    p.args.scale = 0.75f;
    p.args.accumulate = true;
    const int64_t last = p.weight.panels - 1;
    const std::vector<float> got = run(k, p, 0, p.tokens, last, last + 1);
    for (size_t i = 0; i < got.size(); ++i) {
        const size_t r = i % stride;
        const bool asked = r < width && r >= static_cast<size_t>(last * kPanelRows);
        const float want = asked ? kUntouched + (plain[i] * 0.75f + bias[r]) : kUntouched;
        report.expect(got[i] == want, "%s: epilogue %.9g, not %.9g", info(p.type).name, static_cast<double>(got[i]),
                      static_cast<double>(want));
    }
}

void check_problem(const Kernels &k, Type type, int bits, Shape shape, int64_t tokens, bool extreme, Report &report) {
    Problem p = make_problem(k, type, bits, shape, tokens, extreme);
    check_values(k, p, report);
    check_invariance(k, p, report);
    check_epilogue(k, p, report);
}

}  // namespace

int check_gemm(const Kernels &k) {
    Report report("gemm");
    for (int i = 0; i < static_cast<int>(Type::Count); ++i) {
        const Type type = static_cast<Type>(i);
        const bool is_super = info(type).elements == 256;
        for (const int bits : {16, 8}) {
            if (bits == 8 && !k.gemm8[i]) continue;
            check_problem(k, type, bits, {40, 256}, 33, false, report);
            check_problem(k, type, bits, {16, 256}, 9, true, report);
            check_problem(k, type, bits, {17, is_super ? 2304 : 1056}, 23, false, report);  // several stretches of a panel
            check_problem(k, type, bits, {3, is_float(type) ? 41 : is_super ? 768 : 96}, 5, true, report);
        }
    }
    return report.finish();
}

}  // namespace pagoda::check
