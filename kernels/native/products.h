// Rounded activations times stored integers: the inner products behind MatMulNBits, and their operands.

#pragma once

#include <cstddef>
#include <cstdint>

constexpr size_t MOST_BLOCK = 256;

// One (out, in) weight as kernels/matmul_nbits.py stores it.
struct Weight {
    const uint8_t* codes;   // (out, blocks, block * bits / 8)
    const float* scales;    // (out, blocks)
    const uint8_t* zeros;   // (out, ceil(blocks * bits / 8)), or null where every zero point is the middle
    const float* bias;      // (out,), or null
    size_t rows, columns, block, blocks;
    int bits;

    size_t code_stride() const { return blocks * block * bits / 8; }
    size_t zero_stride() const { return (blocks * bits + 7) / 8; }
};

// Rows of activations, rounded to 8 bits a block: value = code * scale.
struct Rounded {
    int8_t* codes;  // (rows, code_stride); for 4-bit weights every 64 lie as 32 even ones, then 32 odd ones
    float* scales;  // (rows, scale_stride)
    float* sums;    // (rows, scale_stride): scale times the sum of a block's codes
    size_t code_stride, scale_stride;
};

// How many numbers a row takes in `Rounded`.
size_t rounded_codes(const Weight& weight);
size_t rounded_scales(const Weight& weight);

// Round one row of `weight.columns` numbers into row `row` of `out`.
void round_row(const float* x, const Weight& weight, const Rounded& out, size_t row);

// out[m, n] for rows m of `x` below `count` and n in [first, last). `out` is (count, weight.rows).
// An output depends on its own row and weight alone: not on count, first, last or what thread computes it.
void multiply(const Rounded& x, size_t count, const Weight& weight, size_t first, size_t last, float* out);

// Whether this processor has the instructions for it. With VNNI's, ONNX Runtime's own operator is quick as
// well, and ours was never measured beside it.
constexpr int NO = 0, YES = 1, BETTER_ELSEWHERE = 2;
int supported();
