// Attention of query rows over the keys and values they see, for the query heads that share a key head.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// One key head's kept rows and the query heads that read them.
struct Heads {
    const float* keys;    // (capacity, width)
    const float* values;  // (capacity, width)
    size_t count, width;  // query heads; width is a multiple of 32
    float scale;
};

// One query row: what it asks, what it sees, and where its outcome goes.
struct Row {
    const float* query;         // (query heads, width)
    float* out;                 // likewise
    std::vector<int32_t> seen;  // places of the keys that it sees, rising
    std::vector<float> bias;    // of each of them
    std::vector<float> scores;  // (query heads, seen, padded to whole eights)

    size_t stride() const { return (seen.size() + 7) / 8 * 8; }
};

// Fill `out` of every row. It depends on the row's query, and on the keys, values and biases that it sees, in
// their order: not on where they lie, what lies between, or other rows.
void attend(const Heads& heads, Row* rows, size_t count);
