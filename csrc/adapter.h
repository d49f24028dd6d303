// A LoRA adapter beside the weights of a program: at some of its linears, `out = row_scale * out + B (A x) + bias` for the
// tokens that ask for it.
#pragma once

#include <memory>
#include <vector>

#include "common.h"
#include "kernels_lora.h"

namespace pagoda {

// A linear of a program, as adapters see it.
struct LoraSite {
    int64_t rows, columns;
    int64_t before = 0;  // where StepAdapters::before has what its product is added to
};

// What an adapter does to one site, as it is given: a [rank, columns], b [rows, rank], bias and row_scale [rows] or null.
struct LoraFactors {
    size_t site;
    int64_t rank;
    const float *a, *b, *bias, *row_scale;
};

class Adapter {
  public:
    // What the adapter adds to one linear. Scales are part of B.
    struct Delta {
        int64_t rank = 0;
        int64_t columns = 0;         // of A, with padding
        const uint8_t *a = nullptr;  // see LoraArgs; zero beyond the site's columns
        const uint8_t *b = nullptr;  // and beyond its rows
        std::vector<float> a_scales, b_scales;  // of bytes: [rank], [panels * 16]
        std::vector<float> bias, row_scale;     // [panels * 16], or empty

        bool empty() const { return rank == 0 && bias.empty() && row_scale.empty(); }
    };

    // `owner` is the workspace that has the sites.
    Adapter(const void *owner, const std::vector<LoraSite> &sites, const std::vector<LoraFactors> &factors, LoraType type);
    Adapter(const Adapter &) = delete;

    const void *owner;
    const LoraType type;
    std::vector<Delta> deltas;  // a site each
    int64_t rank = 0;           // the largest
    bool scales_rows = false;   // at any site
    int64_t bytes() const { return static_cast<int64_t>(memory_.bytes()); }

  private:
    LazyMemory memory_;
};

// The adapters of a step, and its tokens in order of them.
struct StepAdapters {
    struct Group {
        const Adapter *adapter;
        int64_t begin, end;  // in `tokens`
    };
    std::vector<Group> groups;
    std::vector<int32_t> tokens;  // of each group, ascending
    std::vector<uint8_t> asks;    // [T] whether the token has an adapter; empty: none has
    int64_t rank = 0;             // the largest of any
    bool scales_rows = false;     // any does
    std::vector<float> hidden;    // [T][linears that read one value][rank]: A x
    int64_t hidden_stride = 0;
    std::vector<float> before;    // [T][before_stride]: what products add to, where rows of the products are scaled
    int64_t before_stride = 0;

    bool empty() const { return groups.empty(); }
    bool wants(int64_t token) const { return !asks.empty() && asks[static_cast<size_t>(token)]; }
};

}  // namespace pagoda
