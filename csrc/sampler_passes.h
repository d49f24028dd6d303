// The passes of sampling that read a whole row of logits, in blocks of 64, one variant for each instruction set.
//
// All variants give the same bits: lanes are spelled out, products are not contracted, exp is our own polynomial.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagoda::sampling {

constexpr size_t kBlock = 64;  // logits that share one maximum and one sum

inline size_t num_blocks(size_t n) { return (n + kBlock - 1) / kBlock; }

// What turns a logit of one row into a weight: 2^((x - max) * slope), slope = log2(e) / temperature.
struct Scale {
    float max;
    float slope;
};

// How many tokens, and what they weigh together.
struct Share {
    size_t count;
    double mass;
};

struct Passes {
    const char *name;

    // The maximum of each block, NaN where the block holds one. maxima has num_blocks(n) entries.
    void (*block_maxima)(const float *x, size_t n, float *maxima);

    // The sum of the weights of each block. Blocks too low to weigh anything are skipped by their maxima.
    void (*block_sums)(const float *x, size_t n, const float *maxima, Scale scale, double *sums);

    // weights[i] = exp((x[i] - max) / T): exactly 0 from 2^-127 down, coarse below 2^-126.
    void (*weights)(const float *x, size_t n, Scale scale, float *weights);

    // The share of the tokens whose logit is at least `lowest`.
    Share (*share_from)(const float *x, const float *weights, size_t n, float lowest);

    // How many of x are greater than `value`.
    size_t (*count_greater)(const float *x, size_t n, float value);
};

// The variants that this machine runs, the best one last.
const Passes *const *available_passes(size_t &count);

}  // namespace pagoda::sampling
