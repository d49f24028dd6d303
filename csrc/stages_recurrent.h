// Stages of ops with a state, and of what stands around them; as those of `stages.h`, which includes this.
#pragma once

#include <string>
#include <vector>

#include "kernels_recurrent.h"
#include "workspace.h"

namespace pagoda {

struct Cost;

// out = causal convolution of each column of x by itself, through SiLU where it says so; the state is the last rows of x.
struct ShortConvStage {
    static constexpr const char *kKind = "short_conv";
    int x, out, taps;
    bool silu;
    std::vector<float> weight;  // [columns][taps]; once admitted, [taps][columns]

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("out", out);
        field("taps", taps);
        field("silu", silu);
        field("weight", weight);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const;
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;

  private:
    int64_t columns_ = 0, state_at_ = 0;
};

// The gated delta rule of each value head: see `Ops.delta_rule`. Of a head's state [k_dim][v_dim], kDeltaColumns columns
// lie together.
struct DeltaRuleStage {
    static constexpr const char *kKind = "delta_rule";
    int qkv, alpha, beta, out;
    std::vector<float> decay, dt_bias;  // [v_heads]
    int k_heads, v_heads, k_dim, v_dim;
    bool tiled = false;

    template <class F>
    void fields(F &field) {
        field("qkv", qkv);
        field("alpha", alpha);
        field("beta", beta);
        field("out", out);
        field("decay", decay);
        field("dt_bias", dt_bias);
        field("k_heads", k_heads);
        field("v_heads", v_heads);
        field("k_dim", k_dim);
        field("v_dim", v_dim);
        field("tiled", tiled);
    }
    void admit(Workspace &w);
    int64_t items(const Workspace &w, const Step &step) const;
    void run(Workspace &w, const Step &step, int64_t item, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;

  private:
    struct Head;
    int64_t parts(const Workspace &w, const Step &step) const;  // that a head's columns are shared out in
    void prepare(const Workspace &w, const Head &head, int64_t token, int64_t count) const;
    void compute(const Workspace &w, const Head &head, int64_t token, int64_t from, int64_t count) const;
    int64_t state_at_ = 0;
};

// out = each row of x times the activation of the row's one number.
struct ScaleRowsStage {
    static constexpr const char *kKind = "scale_rows";
    int x, gate, out;
    std::optional<Activation> activation;

    template <class F>
    void fields(F &field) {
        field("x", x);
        field("gate", gate);
        field("out", out);
        field("activation", activation);
    }
    void admit(Workspace &) {}
    int64_t items(const Workspace &, const Step &step) const { return step.tokens; }
    void run(Workspace &w, const Step &step, int64_t token, uint8_t *scratch) const;
    Cost describe(const Workspace &w, const Step &step) const;
};

}  // namespace pagoda
