#include "attention_operator.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"

namespace {

constexpr size_t QUERY = 0, KEY = 1, VALUE = 2, PAST_KEY = 3, PAST_VALUE = 4, LAST = 5, TOTAL = 6, BIAS = 10;
constexpr float HIDDEN = -1e29f;  // a bias below leaves a weight of exactly 0
constexpr size_t SHARE = 4;       // query rows of a thread's turn

// Past rows, unless they are there already, and behind them the new ones; kept by key head.
void keep(
    const float* past, const float* fresh, float* present, const std::vector<int64_t>& shape, size_t start,
    size_t count
) {
    const size_t key_heads = shape[1], capacity = shape[2], width = shape[3];
    for (size_t h = 0; h < key_heads; ++h) {
        float* rows = present + h * capacity * width;
        if (past != present) std::memcpy(rows, past + h * capacity * width, start * width * sizeof(float));
        for (size_t i = 0; i < count; ++i) {
            const float* row = fresh + (i * key_heads + h) * width;
            std::copy(row, row + width, rows + (start + i) * width);
        }
    }
}

struct Job {
    const float *query, *keys, *values, *bias;
    float* out;
    size_t heads, key_heads, capacity, width, count, start;

    // Which keys query row i sees, and their biases.
    void look(size_t i, Row& row) const {
        const float* added = bias ? bias + i * (start + count) : nullptr;
        for (size_t j = 0; j < start + i + 1; ++j) {
            if (added && added[j] < HIDDEN) continue;
            row.seen.push_back(static_cast<int32_t>(j));
            row.bias.push_back(added ? added[j] : 0.0f);
        }
    }

    static void attend(void* data, size_t share) {
        const Job& job = *static_cast<Job*>(data);
        const size_t h = share % job.key_heads, first = share / job.key_heads * SHARE;
        const size_t group = job.heads / job.key_heads, rows = job.capacity * job.width;
        const float scale = 1.0f / std::sqrt(static_cast<float>(job.width));
        const Heads heads{job.keys + h * rows, job.values + h * rows, group, job.width, scale};
        const size_t taken = std::min(SHARE, job.count - first);
        Row asked[SHARE];
        for (size_t r = 0; r < taken; ++r) {
            const size_t place = ((first + r) * job.heads + h * group) * job.width;
            asked[r].query = job.query + place;
            asked[r].out = job.out + place;
            job.look(first + r, asked[r]);
        }
        ::attend(heads, asked, taken);
    }
};

}  // namespace

int Attention::input_type(size_t index) {
    const bool whole = index == LAST || index == TOTAL;
    return whole ? ort::INT32 : index == BIAS - 1 ? ort::INT64 : ort::FLOAT;
}

Attention::Attention(const ort::Api& api, const ort::KernelInfo* info)
    : heads_(attribute(api, info, "num_heads")), key_heads_(attribute(api, info, "kv_num_heads")) {
    if (!heads_ || !key_heads_ || heads_ % key_heads_)
        throw refusal(api, "GroupQueryAttention: heads do not divide");
}

void Attention::compute(const ort::Api& api, ort::Context* context) const {
    const Tensor<const float> query = input<float>(api, context, QUERY);
    const Tensor<const float> key = input<float>(api, context, KEY);
    const Tensor<const float> value = input<float>(api, context, VALUE);
    const Tensor<const float> past_keys = input<float>(api, context, PAST_KEY);
    const Tensor<const float> past_values = input<float>(api, context, PAST_VALUE);
    const Tensor<const int32_t> last = input<int32_t>(api, context, LAST);
    const Tensor<const float> bias = input<float>(api, context, BIAS);
    const std::vector<int64_t>& kept = past_keys.shape;
    const bool shaped = query.shape.size() == 3 && query.shape[0] == 1 && kept.size() == 4 && kept[0] == 1;
    const bool alike = shaped && kept[1] == static_cast<int64_t>(key_heads_) && past_values.shape == kept;
    if (!alike || last.count() != 1)
        throw refusal(api, "GroupQueryAttention: one sequence and a cache of its key heads are needed");
    const size_t count = query.shape[1], capacity = kept[2], width = kept[3];
    const size_t total = static_cast<size_t>(*last.data) + 1;
    const bool fits = width % 32 == 0 && total >= count && total <= capacity;
    const size_t fresh = count * key_heads_ * width;
    const bool asked = query.count() == count * heads_ * width;
    const bool given = key.count() == fresh && value.count() == fresh;
    if (!fits || !asked || !given || (bias.data && bias.count() != count * total))
        throw refusal(api, "GroupQueryAttention: sizes that do not fit each other");
    const Tensor<float> out = output<float>(api, context, 0, query.shape);
    const Tensor<float> keys = output<float>(api, context, 1, kept);
    const Tensor<float> values = output<float>(api, context, 2, kept);
    const size_t start = total - count;
    keep(past_keys.data, key.data, keys.data, kept, start, count);
    keep(past_values.data, value.data, values.data, kept, start, count);
    Job job{query.data, keys.data, values.data, bias.data, out.data,
            heads_,     key_heads_, capacity,   width,     count,    start};
    must(api.parallel_for(context, Job::attend, key_heads_ * ((count + SHARE - 1) / SHARE), &job));
}
