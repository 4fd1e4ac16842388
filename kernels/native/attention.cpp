// Attention for AVX2, exact in the sense that matters here: the same bits however rows are grouped.
//
// What      Scores of four keys and two query heads at a time; the largest; exponentials; values summed key
//           after key, two heads at a time; both in tiles of keys that stay near while several rows use them.
//           Sums over keys run in the keys' order, sums over the width in an order of its own, so nothing
//           depends on where in the cache a key lies or how many rows are computed. A key that is hidden is
//           left out, as its weight would be zero.
// Elsewhere which keys a row sees: attention_operator.cpp; the definition:
//           kernels/grouped_query_attention.py.
// Source    docs/native.md

#include "attention.h"

#include "avx2.h"

#include <algorithm>
#include <limits>

#if defined(__x86_64__) && defined(__GNUC__)

namespace {

constexpr size_t LANES = 8;
constexpr size_t TILE = 32;     // keys that stay in the first-level cache
constexpr size_t COLUMNS = 32;  // of the width at a time

// The lanes of four vectors, each added up in the same order.
INLINE __m128 add_lanes4(const __m256* v) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

// e to the x for x <= 0, within 2 units in the last place; 0 below -87, where float32 ends.
INLINE __m256 exponential(__m256 x) {
    const __m256 least = _mm256_set1_ps(-87.0f);
    const __m256 gone = _mm256_cmp_ps(x, least, _CMP_LT_OQ);
    x = _mm256_max_ps(least, x);  // in this order what is no number stays none
    const __m256 whole = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)), 8);
    __m256 rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693359375f), x);
    rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(-2.12194440e-4f), rest);
    __m256 sum = _mm256_set1_ps(1.9875691500e-4f);
    for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f})
        sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(term));
    sum = _mm256_fmadd_ps(sum, _mm256_mul_ps(rest, rest), _mm256_add_ps(rest, _mm256_set1_ps(1.0f)));
    const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    const __m256 found = _mm256_mul_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
    return _mm256_andnot_ps(gone, found);
}

// Scores of H query heads with the keys at places [first, last) of those that are seen.
template <int H>
AVX2 void score(const Heads& heads, Row& row, size_t head, size_t first, size_t last) {
    const size_t width = heads.width, stride = row.stride();
    const float* query = row.query + head * width;
    float* scores = row.scores.data() + head * stride;
    for (size_t j = first; j < last; j += 4) {
        const float* keys[4];
        EACH(k, 4) keys[k] = heads.keys + row.seen[std::min(j + k, last - 1)] * width;
        __m256 sums[H][4];
        EACH(h, H) EACH(k, 4) sums[h][k] = _mm256_setzero_ps();
        for (size_t d = 0; d < width; d += LANES) {
            __m256 key[4];
            EACH(k, 4) key[k] = _mm256_loadu_ps(keys[k] + d);
            EACH(h, H) {
                const __m256 own = _mm256_loadu_ps(query + h * width + d);
                EACH(k, 4) sums[h][k] = _mm256_fmadd_ps(own, key[k], sums[h][k]);
            }
        }
        const __m128 bias = _mm_loadu_ps(row.bias.data() + j), scale = _mm_set1_ps(heads.scale);
        EACH(h, H) _mm_storeu_ps(scores + h * stride + j, _mm_fmadd_ps(add_lanes4(sums[h]), scale, bias));
    }
}

// Scores to exponentials of their distance from the largest, and their sum; behind `seen` they become 0.
AVX2 float weigh(float* scores, size_t seen, size_t stride) {
    std::fill(scores + seen, scores + stride, -std::numeric_limits<float>::infinity());
    __m256 most = _mm256_loadu_ps(scores), sum = _mm256_setzero_ps();
    for (size_t j = LANES; j < stride; j += LANES) most = _mm256_max_ps(_mm256_loadu_ps(scores + j), most);
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    const __m256 largest = _mm256_broadcastss_ps(_mm_max_ss(half, _mm_movehdup_ps(half)));
    for (size_t j = 0; j < stride; j += LANES) {
        const __m256 weight = exponential(_mm256_sub_ps(_mm256_loadu_ps(scores + j), largest));
        _mm256_storeu_ps(scores + j, weight);
        sum = _mm256_add_ps(sum, weight);
    }
    const __m256 sums[4] = {sum, sum, sum, sum};
    return _mm_cvtss_f32(add_lanes4(sums));
}

// Add up the values of the keys at places [first, last), weighted, for H query heads.
template <int H>
AVX2 void gather(const Heads& heads, Row& row, size_t head, size_t first, size_t last) {
    const size_t width = heads.width, stride = row.stride();
    const float* weights = row.scores.data() + head * stride;
    float* out = row.out + head * width;
    for (size_t c = 0; c < width; c += COLUMNS) {
        __m256 sums[H][4];
        EACH(h, H) EACH(i, 4) sums[h][i] = _mm256_loadu_ps(out + h * width + c + i * LANES);
        for (size_t j = first; j < last; ++j) {
            const float* value = heads.values + row.seen[j] * width + c;
            __m256 held[4];
            EACH(i, 4) held[i] = _mm256_loadu_ps(value + i * LANES);
            EACH(h, H) {
                const __m256 weight = _mm256_broadcast_ss(weights + h * stride + j);
                EACH(i, 4) sums[h][i] = _mm256_fmadd_ps(weight, held[i], sums[h][i]);
            }
        }
        EACH(h, H) EACH(i, 4) _mm256_storeu_ps(out + h * width + c + i * LANES, sums[h][i]);
    }
}

// `one` or `two` for the heads of a row, on every tile of keys in turn: rows share what is near.
template <typename Two, typename One>
void by_tiles(const Heads& heads, Row* rows, size_t count, Two two, One one) {
    size_t longest = 0;
    for (size_t r = 0; r < count; ++r) longest = std::max(longest, rows[r].seen.size());
    for (size_t first = 0; first < longest; first += TILE) {
        for (size_t r = 0; r < count; ++r) {
            const size_t last = std::min(first + TILE, rows[r].seen.size());
            if (first >= last) continue;
            size_t head = 0;
            for (; head + 2 <= heads.count; head += 2) two(heads, rows[r], head, first, last);
            if (head < heads.count) one(heads, rows[r], head, first, last);
        }
    }
}

}  // namespace

void attend(const Heads& heads, Row* rows, size_t count) {
    for (size_t r = 0; r < count; ++r) {
        rows[r].bias.resize(rows[r].stride());
        rows[r].scores.resize(heads.count * rows[r].stride());
        std::fill_n(rows[r].out, heads.count * heads.width, 0.0f);
    }
    by_tiles(heads, rows, count, score<2>, score<1>);
    std::vector<float> totals(count * heads.count);
    for (size_t i = 0; i < totals.size(); ++i) {
        Row& row = rows[i / heads.count];
        const size_t stride = row.stride();
        if (stride) totals[i] = weigh(row.scores.data() + i % heads.count * stride, row.seen.size(), stride);
    }
    by_tiles(heads, rows, count, gather<2>, gather<1>);
    for (size_t i = 0; i < totals.size(); ++i) {
        float* out = rows[i / heads.count].out + i % heads.count * heads.width;
        if (rows[i / heads.count].stride())
            for (size_t d = 0; d < heads.width; ++d) out[d] /= totals[i];
    }
}

#else

void attend(const Heads&, Row*, size_t) {}

#endif
