// DRY: which tokens would go on repeating an earlier passage, and what that costs them. Of p-e-w, text-generation-webui's
// pull request 5677; the cut at breakers and the limit of the exponent as in llama.cpp.
#include <algorithm>
#include <cmath>
#include <map>

#include "sampler_state.h"

namespace pagoda::sampling {

namespace {

constexpr double kLogFloatMax = 88.7228391;

// For each place the length of the longest common beginning of `s` and what follows from there (the Z function): how
// long a passage ending there is equal to the end of the text, as `s` is the text backwards.
std::vector<size_t> common_lengths(const std::vector<int32_t> &s) {
    std::vector<size_t> lengths(s.size(), 0);
    size_t begin = 0, end = 0;  // the rightmost stretch that equals a beginning
    for (size_t i = 1; i < s.size(); ++i) {
        size_t n = i < end ? std::min(end - i, lengths[i - begin]) : 0;
        while (i + n < s.size() && s[n] == s[i + n]) ++n;
        if (i + n > end) {
            begin = i;
            end = i + n;
        }
        lengths[i] = n;
    }
    return lengths;
}

}  // namespace

// The last tokens, the latest first.
std::vector<int32_t> State::recent() const {
    const size_t all = prompt_.size() + outputs_.size();
    const int64_t last_n = rules_.dry.last_n;
    const size_t count = last_n < 0 ? all : std::min(all, static_cast<size_t>(last_n));
    std::vector<int32_t> tokens(outputs_.rbegin(), outputs_.rend());
    tokens.insert(tokens.end(), prompt_.rbegin(), prompt_.rend());
    tokens.resize(count);
    return tokens;
}

// How many tokens stand after the last breaker.
size_t State::unbroken(const std::vector<int32_t> &recent) const {
    for (size_t i = 0; i < recent.size(); ++i) {
        size_t longest = 0;
        for (const auto &breaker : rules_.dry.breakers) {
            const size_t n = breaker.size();  // recent[i] is its first token, recent[i + 1 - n] its last
            if (n <= i + 1 && n > longest && std::equal(breaker.begin(), breaker.end(), recent.rend() - i - 1))
                longest = n;
        }
        if (longest) return i + 1 - longest;
    }
    return recent.size();
}

void State::penalise_repetition(float *logits) const {
    const Dry &dry = rules_.dry;
    const std::vector<int32_t> tokens = recent();
    const size_t limit = unbroken(tokens), allowed = static_cast<size_t>(dry.allowed_length);
    if (limit < allowed) return;
    const std::vector<size_t> lengths = common_lengths(tokens);
    std::map<int32_t, size_t> longest;  // by token: the longest passage that it would prolong
    for (size_t i = 1; i < tokens.size(); ++i)
        if (const size_t n = std::min(lengths[i], limit); n >= allowed && n > 0) {
            size_t &best = longest[tokens[i - 1]];
            best = std::max(best, n);
        }
    for (const auto &breaker : dry.breakers)
        if (breaker.size() == 1) longest.erase(breaker[0]);
    const double base = static_cast<double>(dry.base);
    const double max_exponent = base > 1.000001 ? std::floor(kLogFloatMax / std::log(base)) : 0.0;
    for (const auto &[token, n] : longest) {
        const double exponent = std::min(static_cast<double>(n - allowed), max_exponent);
        logits[token] -= static_cast<float>(static_cast<double>(dry.multiplier) * std::pow(base, exponent));
    }
}

}  // namespace pagoda::sampling
