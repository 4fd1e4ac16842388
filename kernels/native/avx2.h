// What both files of AVX2 code share.

#pragma once

#include <cstddef>

#include "products.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE AVX2 inline __attribute__((always_inline))
#define EACH(index, count) _Pragma("GCC unroll 16") for (int index = 0; index < (count); ++index)

constexpr size_t CHUNK = 64;  // codes that one load of 4-bit weights gives

INLINE __m256i load(const void* place) { return _mm256_loadu_si256(static_cast<const __m256i*>(place)); }

#endif
