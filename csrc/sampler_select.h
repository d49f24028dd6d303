// From a row of logits to a token without sorting the vocabulary: cuts by count and by mass on few candidates.
//
// Tokens rank by logit, equals by id, lower first; every cut keeps a beginning of that order. Sums are in double and
// run by id, so a row and its parameters decide the outcome alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sampler_passes.h"
#include "sampler_state.h"

namespace pagoda::sampling {

// Tokens that may still be chosen, by ascending id. The vectors only grow; `size` says what is filled.
struct Candidates {
    size_t size = 0;
    float lowest = 0.0f;  // no candidate's logit is lower
    std::vector<int32_t> ids;
    std::vector<float> logits;
    std::vector<float> weights;  // relative to the likeliest token's
};

// One row as the passes see it, with its block maxima taken.
struct Row {
    const float *x;
    size_t n;
    const float *maxima;
    float max;
};

constexpr double kLog2E = 1.4426950408889634;

inline Scale scale_of(const Row &row, float temperature) {
    return {row.max, static_cast<float>(kLog2E / static_cast<double>(temperature))};
}

struct Scratch {
    Candidates candidates;
    std::vector<double> sums;
    std::vector<float> floats;
    std::vector<double> doubles;
    std::vector<uint32_t> order;
};

class Selector {
  public:
    Selector(const Passes &passes, Scratch &scratch) : passes_(passes), scratch_(scratch) {}

    // The likeliest token.
    static int32_t argmax(const Row &row);

    // One token drawn as the state's parameters say. Tells the state how surprising it is, where that matters.
    int32_t draw(const Row &row, const State &state);

    // All tokens that `draw` can return, with their weights.
    const Candidates &support(const Row &row, const State &state);

    // The k likeliest tokens, by ascending id, without weights.
    const Candidates &top_k(const Row &row, size_t k);

    // The sum of the weights of the whole row; scratch.sums has that of each block.
    double total(const Row &row, Scale scale);

  private:
    struct Span {
        float low, high;
        Share above;  // of the tokens from `high` up
    };

    void truncate(const Row &row, const Params &params, Scale scale);
    void reshape(const Row &row, const State &state);
    void cut_by_mirostat(const Row &row, const State &state);
    float sigma_threshold(const Row &row, double num_sigmas) const;
    void keep_typical(double mass_wanted, Scale scale);
    void exclude_top(double threshold);
    void weigh_at_last(const Params &params);
    double entropy(double total_mass, Scale scale) const;
    size_t mirostat_k(double mu, int64_t vocab_size, Scale scale);
    double surprise(int32_t token) const;
    void gather(const Row &row, float threshold);
    void gather_mass(const Row &row, double mass_wanted, double total_mass, Scale scale);
    float bound_top_k(const Row &row, size_t k) const;
    void weigh(Scale scale);
    double mass() const;
    Span span_of_cut(double mass_wanted, Scale scale) const;
    void keep_top_p(double mass_wanted, Scale scale);
    void keep_weights_from(double min_weight);
    void keep_from(float logit, size_t num_equals);
    int32_t draw_from_row(const Row &row, Scale scale, double u);
    int32_t draw_from_candidates(double u) const;

    const Passes &passes_;
    Scratch &scratch_;
};

}  // namespace pagoda::sampling
