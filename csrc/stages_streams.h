// Stages of Gemma 3n's own: several streams side by side, and gates of which the largest stay; as those of `stages.h`, which
// includes this.
#pragma once

#include "workspace.h"

namespace pagoda {

struct Cost;

// out = max(x - (mean + deviations * standard deviation), 0), of each row.
struct GaussianTopkStage {
    static constexpr const char *kKind = "gaussian_topk";
    int x, out;
    float deviations;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("out", out);
        field("deviations", deviations);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;
};

// Stream i of out is the sum over j of coefficients[i * streams + j] * stream j of x, in that order.
struct MixStreamsStage {
    static constexpr const char *kKind = "mix_streams";
    int x, coefficients, out, streams;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("coefficients", coefficients);
        field("out", out);
        field("streams", streams);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;
};

}  // namespace pagoda
