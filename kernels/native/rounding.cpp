// Rounding activations to 8 bits a block, in the order that the products read them.

#include "avx2.h"

#include <algorithm>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)

namespace {

constexpr float LEAST = 1e-30f;  // a block below counts as zeros: 127 / it would overflow

// 32 numbers as codes of 8 bits, in their order.
INLINE __m256i rounded(const float* x, __m256 inverse) {
    __m256i part[4];
    for (int i = 0; i < 4; ++i)
        part[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * 8), inverse));
    const __m256i low = _mm256_packs_epi32(part[0], part[1]), high = _mm256_packs_epi32(part[2], part[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
}

INLINE int add_codes(__m256i codes) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
}

// Store 32 codes of columns [first, first + 32) where `Rounded` wants them.
INLINE void place(__m256i codes, int8_t* row, size_t first, bool apart) {
    if (!apart) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + first), codes);
    const __m256i evens = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
                                           0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    codes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(codes, evens), 0xD8);
    int8_t* chunk = row + first / CHUNK * CHUNK + first % CHUNK / 2;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(chunk), _mm256_castsi256_si128(codes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(chunk + 32), _mm256_extracti128_si256(codes, 1));
}

// The largest size among `count` numbers, a multiple of 8; not a number where one of them is none.
AVX2 float largest(const float* x, size_t count) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), strange = _mm256_setzero_ps();
    for (size_t i = 0; i < count; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v));
        strange = _mm256_or_ps(strange, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    if (_mm256_movemask_ps(strange)) return std::numeric_limits<float>::quiet_NaN();
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// One block; an infinite or undefined number makes the block undefined, as a product in floats would.
AVX2 void round_block(
    const float* x, const Weight& weight, int8_t* row, size_t block, float* scale, float* sum
) {
    const float most = largest(x, weight.block);
    const bool finite = most <= std::numeric_limits<float>::max(), zero = most < LEAST;
    const __m256 inverse = _mm256_set1_ps(finite && !zero ? 127.0f / most : 0.0f);
    int total = 0;
    for (size_t i = 0; i < weight.block; i += 32) {
        const __m256i codes = finite ? rounded(x + i, inverse) : _mm256_setzero_si256();
        total += add_codes(codes);
        place(codes, row, block * weight.block + i, weight.bits == 4);
    }
    *scale = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : most / 127.0f;
    *sum = *scale * static_cast<float>(total);
}

}  // namespace

size_t rounded_codes(const Weight& weight) {
    return (weight.blocks * weight.block + CHUNK - 1) / CHUNK * CHUNK;
}

size_t rounded_scales(const Weight& weight) { return (weight.blocks + 7) / 8 * 8; }

void round_row(const float* x, const Weight& weight, const Rounded& out, size_t row) {
    int8_t* codes = out.codes + row * out.code_stride;
    float *scales = out.scales + row * out.scale_stride, *sums = out.sums + row * out.scale_stride;
    const size_t whole = weight.columns / weight.block;
    std::fill(codes + out.code_stride - CHUNK, codes + out.code_stride, static_cast<int8_t>(0));
    for (size_t b = 0; b < whole; ++b)
        round_block(x + b * weight.block, weight, codes, b, scales + b, sums + b);
    if (whole < weight.blocks) {
        float ragged[MOST_BLOCK] = {};
        std::copy(x + whole * weight.block, x + weight.columns, ragged);
        round_block(ragged, weight, codes, whole, scales + whole, sums + whole);
    }
    std::fill(scales + weight.blocks, scales + out.scale_stride, 0.0f);
    std::fill(sums + weight.blocks, sums + out.scale_stride, 0.0f);
}

#else

size_t rounded_codes(const Weight&) { return 0; }
size_t rounded_scales(const Weight&) { return 0; }
void round_row(const float*, const Weight&, const Rounded&, size_t) {}

#endif
