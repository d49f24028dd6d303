// What sampling knows of one sequence: its parameters, what it has produced, and the adjustments that follow.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pagoda::sampling {

// 53 random bits in [0, 1) from Philox4x32-10: key seed, counter (position, choice, stream, 0).
double uniform(uint64_t seed, uint32_t choice, uint32_t position, uint32_t stream);

struct Params {
    float temperature = 1.0f;  // 0: greedy
    int64_t top_k = 0;         // 0: all
    double top_p = 1.0;
    double min_p = 0.0;
    float repetition_penalty = 1.0f;
    float presence_penalty = 0.0f;
    float frequency_penalty = 0.0f;
    int64_t min_tokens = 0;
    std::optional<int64_t> num_logprobs;

    bool truncates() const { return top_k > 0 || top_p < 1.0 || min_p > 0.0; }
    bool penalises() const {
        return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
    }
};

// Token lists that adjust logits. All ids are below vocab_size.
struct Rules {
    std::optional<std::vector<int32_t>> allowed_ids;
    std::vector<int32_t> stop_ids;  // held back until min_tokens
    std::vector<std::pair<int32_t, float>> bias;
    std::vector<std::vector<int32_t>> bad_words;  // none empty
};

class State {
  public:
    // Throws std::invalid_argument for a token id out of range.
    State(int64_t vocab_size, Params params, Rules rules, const std::vector<int32_t> &prompt_ids, uint64_t seed,
          uint32_t choice);

    void accept(int64_t token);
    void rewind(int64_t num_outputs);

    int64_t vocab_size() const { return vocab_size_; }
    int64_t num_outputs() const { return static_cast<int64_t>(outputs_.size()); }
    const Params &params() const { return params_; }

    // The random number of the next token.
    double draw() const;

    // Whether the next token's logits differ from the model's.
    bool adjusts(const uint32_t *mask) const;

    // out[V] = the model's logits with bans (-inf), bias and penalties. mask: packed allowed bits, or null.
    void adjust(const float *logits, const uint32_t *mask, float *out) const;

  private:
    struct Seen {
        int32_t token;
        bool in_prompt;
        int32_t num_outputs;
    };

    int32_t checked(int64_t token) const;
    Seen &seen(int32_t token);
    bool completes(const std::vector<int32_t> &word) const;
    void ban(float *logits) const;
    void penalise(float *logits) const;

    int64_t vocab_size_;
    Params params_;
    Rules rules_;
    uint64_t seed_;
    uint32_t choice_;
    std::vector<int32_t> outputs_;
    std::vector<Seen> seen_;  // kept up only where the parameters penalise
    std::unordered_map<int32_t, size_t> seen_index_;
};

}  // namespace pagoda::sampling
