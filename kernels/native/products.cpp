// The inner products for AVX2: 4-bit codes stay packed in memory and are spread in registers.
//
// What      A byte holds two neighbours, so a load of 32 bytes gives 32 even and 32 odd codes by one mask and
//           one shift; activations are stored in that order. `maddubs` multiplies unsigned codes with signed
//           activations and adds pairs in 16 bits: at most 2 * 15 * 127 each, so that the eight of a block of
//           256 fit (30,480 < 32,768) and a block costs one widening, one conversion and one multiply-add.
//           Zero points are taken off at the end: scale * zero point * (sum of activations), block by block.
//           8-bit codes are made signed, and |w| * sign(w) x keeps the same instruction within 16 bits
//           (2 * 128 * 127 = 32,512).
// Contract  Integers are exact. Floats are added in an order that only `columns` and `block` decide, so one
//           row gives the same bits alone and among many.
// Elsewhere rounding the activations: rounding.cpp.
// Source    docs/native.md

#include "avx2.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>

#include <algorithm>
#include <cstring>

namespace {

constexpr size_t NEAR = 20480;  // bytes of activations that stay in the first-level cache
constexpr size_t AHEAD = 1536;  // bytes that weights are fetched before their use
constexpr size_t FEW = 8;       // rows of activations
constexpr size_t GROUP = 64;    // rows of weights that stay in the second-level cache

INLINE __m256 twice(float low, float high) { return _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low)); }

// Sums of pairs in 16 bits as 8 numbers.
INLINE __m256 widened(__m256i pairs) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// 64 codes of 4 bits, one a byte.
struct Spread {
    __m256i even, odd;

    INLINE static Spread of(__m256i packed) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(packed, mask), _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask)};
    }

    INLINE __m256i pairs(const int8_t* x) const {
        return _mm256_add_epi16(_mm256_maddubs_epi16(even, load(x)), _mm256_maddubs_epi16(odd, load(x + 32)));
    }
};

// The row of a weight and the rows of activations that meet in one step, and the blocks [first, last) of it.
struct Meeting {
    const Weight& weight;
    const Rounded& x;
    size_t n, m, first, last;

    INLINE const uint8_t* codes() const { return weight.codes + n * weight.code_stride(); }
    INLINE const float* scales() const { return weight.scales + n * weight.blocks; }
    INLINE const int8_t* row(int r) const { return x.codes + (m + r) * x.code_stride; }
    INLINE float scale(int r, size_t block) const { return x.scales[(m + r) * x.scale_stride + block]; }
};

// Blocks of LOADS * 64 columns of 4 bits.
template <int LOADS>
struct FourBits {
    template <int R>
    INLINE static void add(const Meeting& at, __m256* total) {
        const uint8_t* codes = at.codes();
        const float* scales = at.scales();
        for (size_t b = at.first; b < at.last; ++b) {
            Spread w[LOADS];
            EACH(i, LOADS) {
                const uint8_t* place = codes + (b * LOADS + i) * 32;
                _mm_prefetch(reinterpret_cast<const char*>(place + AHEAD), _MM_HINT_T0);
                w[i] = Spread::of(load(place));
            }
            const __m256 scale = _mm256_set1_ps(scales[b]);
            EACH(r, R) {
                const int8_t* row = at.row(r) + b * LOADS * CHUNK;
                __m256i sums = w[0].pairs(row);
                EACH(i, LOADS - 1) sums = _mm256_add_epi16(sums, w[i + 1].pairs(row + (i + 1) * CHUNK));
                const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(at.scale(r, b)));
                total[r] = _mm256_fmadd_ps(widened(sums), both, total[r]);
            }
        }
    }
};

// Blocks of 32 columns of 4 bits: one load holds two of them, the last one perhaps one.
struct FourBitsOf32 {
    template <int R>
    INLINE static void add(const Meeting& at, __m256* total) {
        const uint8_t* codes = at.codes();
        const float* scales = at.scales();
        size_t b = at.first;
        for (; b + 1 < at.last; b += 2)
            step<R>(at, b, load(codes + b * 16), twice(scales[b], scales[b + 1]), total);
        if (b < at.last) {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + b * 16));
            step<R>(at, b, _mm256_zextsi128_si256(half), twice(scales[b], 0.0f), total);
        }
    }

    template <int R>
    INLINE static void step(const Meeting& at, size_t b, __m256i packed, __m256 scale, __m256* total) {
        const Spread w = Spread::of(packed);
        EACH(r, R) {  // scales of activations are padded, so there is one after the last
            const __m256 both = _mm256_mul_ps(scale, twice(at.scale(r, b), at.scale(r, b + 1)));
            total[r] = _mm256_fmadd_ps(widened(w.pairs(at.row(r) + b * 32)), both, total[r]);
        }
    }
};

// Blocks of LOADS * 32 columns of 8 bits.
template <int LOADS>
struct EightBits {
    template <int R>
    INLINE static void add(const Meeting& at, __m256* total) {
        const uint8_t* codes = at.codes();
        const float* scales = at.scales();
        const __m256i middle = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
        for (size_t b = at.first; b < at.last; ++b) {
            __m256i sums[R];
            EACH(r, R) sums[r] = _mm256_setzero_si256();
            EACH(i, LOADS) {
                const size_t place = (b * LOADS + i) * 32;
                const __m256i w = _mm256_xor_si256(load(codes + place), middle), size = _mm256_abs_epi8(w);
                EACH(r, R) {
                    const __m256i turned = _mm256_sign_epi8(load(at.row(r) + place), w);
                    const __m256i wide = _mm256_madd_epi16(_mm256_maddubs_epi16(size, turned), ones);
                    sums[r] = _mm256_add_epi32(sums[r], wide);
                }
            }
            const __m256 scale = _mm256_set1_ps(scales[b]);
            EACH(r, R) {
                const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(at.scale(r, b)));
                total[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[r]), both, total[r]);
            }
        }
    }
};

// Zero points of `held` blocks from b on, less the code that stands for 0 above, as whole numbers.
INLINE __m256i zero_points(const Weight& weight, const uint8_t* zeros, size_t b, size_t held) {
    uint64_t bytes = 0;
    const size_t count = (held * weight.bits + 7) / 8;
    zeros += b * weight.bits / 8;
    if (held == 8 && weight.bits == 8)
        std::memcpy(&bytes, zeros, 8);
    else if (held == 8)
        std::memcpy(&bytes, zeros, 4);
    else  // not memcpy: a call of unknown length costs as much as the block
        for (size_t i = 0; i < count; ++i) bytes |= static_cast<uint64_t>(zeros[i]) << (8 * i);
    if (weight.bits == 8) {
        const __m128i eight = _mm_cvtsi64_si128(static_cast<long long>(bytes));
        return _mm256_sub_epi32(_mm256_cvtepu8_epi32(eight), _mm256_set1_epi32(128));
    }
    const __m256i places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(bytes)), places);
    return _mm256_and_si256(codes, _mm256_set1_epi32(15));
}

// Take scale * zero point * (sum of activations) of every block off the totals.
template <int R>
INLINE void take_off(const Meeting& at, __m256* total) {
    const Weight& weight = at.weight;
    if (weight.bits == 8 && !weight.zeros) return;
    const uint8_t* zeros = weight.zeros ? weight.zeros + at.n * weight.zero_stride() : nullptr;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (size_t b = 0; b < weight.blocks; b += 8) {
        const size_t held = std::min<size_t>(weight.blocks - b, 8);
        const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(held)), lanes);
        const __m256i codes = zeros ? zero_points(weight, zeros, b, held) : _mm256_set1_epi32(8);
        const __m256 scale = _mm256_maskload_ps(at.scales() + b, inside);
        const __m256 shift = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(codes));
        EACH(r, R) {
            const __m256 sums = _mm256_loadu_ps(at.x.sums + (at.m + r) * at.x.scale_stride + b);
            total[r] = _mm256_fnmadd_ps(shift, sums, total[r]);
        }
    }
}

INLINE float add_lanes(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// R rows against one row of the weight; what is summed so far waits in `totals` while other blocks are near.
template <class Layout, int R>
AVX2 void meet(const Meeting& at, __m256* totals, float* out) {
    __m256 total[R];
    EACH(r, R) total[r] = at.first ? totals[r] : _mm256_setzero_ps();
    Layout::template add<R>(at, total);
    if (at.last < at.weight.blocks) {
        EACH(r, R) totals[r] = total[r];
        return;
    }
    take_off<R>(at, total);
    const float bias = at.weight.bias ? at.weight.bias[at.n] : 0.0f;
    EACH(r, R) out[(at.m + r) * at.weight.rows + at.n] = add_lanes(total[r]) + bias;
}

// R rows against rows [first, last) of the weight, `piece` blocks of the columns at a time.
template <class Layout, int R>
AVX2 void tile(
    const Rounded& x, const Weight& weight, size_t first, size_t last, size_t m, size_t piece, float* out
) {
    __m256 totals[GROUP * R];
    for (size_t b = 0; b < weight.blocks; b += piece) {
        const size_t stop = std::min(b + piece, weight.blocks);
        for (size_t n = first; n < last; ++n)
            meet<Layout, R>({weight, x, n, m, b, stop}, totals + (n - first) * R, out);
    }
}

template <class Layout>
void tiles(const Rounded& x, size_t count, const Weight& weight, size_t first, size_t last, float* out) {
    // Few rows read the weights from memory once or twice: in the order they lie there.
    const size_t near = std::max<size_t>(NEAR / 4 / weight.block / 2 * 2, 2);
    const size_t piece = count <= FEW ? weight.blocks : near;
    for (size_t n = first; n < last; n += GROUP) {
        const size_t stop = std::min(n + GROUP, last);
        size_t m = 0;
        for (; m + 4 <= count; m += 4) tile<Layout, 4>(x, weight, n, stop, m, piece, out);
        switch (count - m) {
            case 3: tile<Layout, 3>(x, weight, n, stop, m, piece, out); break;
            case 2: tile<Layout, 2>(x, weight, n, stop, m, piece, out); break;
            case 1: tile<Layout, 1>(x, weight, n, stop, m, piece, out); break;
        }
    }
}

}  // namespace

int supported() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return NO;
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool wide = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);    // AVX512_VNNI
    const bool narrow = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);  // AVX_VNNI
    return wide || narrow ? BETTER_ELSEWHERE : YES;
}

void multiply(const Rounded& x, size_t count, const Weight& weight, size_t first, size_t last, float* out) {
    const bool four = weight.bits == 4;
    auto* chosen = four ? tiles<FourBits<4>> : tiles<EightBits<8>>;
    switch (weight.block) {
        case 32: chosen = four ? tiles<FourBitsOf32> : tiles<EightBits<1>>; break;
        case 64: chosen = four ? tiles<FourBits<1>> : tiles<EightBits<2>>; break;
        case 128: chosen = four ? tiles<FourBits<2>> : tiles<EightBits<4>>; break;
    }
    chosen(x, count, weight, first, last, out);
}

#else  // another processor or compiler: ONNX Runtime's own operator is used

int supported() { return NO; }
void multiply(const Rounded&, size_t, const Weight&, size_t, size_t, float*) {}

#endif
