/* The most multiply-adds a second that one core of this machine can do, in 8 bits and in float32, as JSON.

   Chains of multiply-adds on registers, more chains than an addition takes cycles, so that neither memory nor waiting is
   measured. In 8 bits by the processor's own instruction for that, where it has one; else by what the compiler makes of
   sums of products of short rows (-O3 -march=native). */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

#if defined(__AVX512VNNI__)
#include <immintrin.h>
typedef __m512i Bytes;
#define DOT(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)
#elif defined(__AVXVNNI__)
#include <immintrin.h>
typedef __m256i Bytes;
#define DOT(sum, a, b) _mm256_dpbusd_avx_epi32(sum, a, b)
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
typedef int8x16_t Bytes;
#define DOT(sum, a, b) vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(sum), a, b))
#endif

enum { CHAINS = 12, STEPS = 1000, ROUNDS = 4000, TRIES = 5, LENGTH = 1024, SIDE = 4 };

typedef float Floats __attribute__((vector_size(WIDTH)));

static volatile float seen;
unsigned char first[(CHAINS + 2) * 64]; /* not static: the compiler must not know that all chains are the same */

static double in_float32(void) { /* multiply-adds done */
    Floats sums[CHAINS], by;
    memcpy(sums, first, sizeof sums);
    memcpy(&by, first + sizeof sums, sizeof by);
    for (int step = 0; step < STEPS; step++) {
        for (int chain = 0; chain < CHAINS; chain++) sums[chain] = sums[chain] * by + by;
    }
    for (int chain = 0; chain < CHAINS; chain++) seen = sums[chain][0];
    return (double)STEPS * CHAINS * (sizeof(Floats) / sizeof(float));
}

#ifdef DOT
static double in_8_bits(void) {
    Bytes sums[CHAINS], one, other;
    memcpy(sums, first, sizeof sums);
    memcpy(&one, first + sizeof sums, sizeof one);
    memcpy(&other, first + sizeof sums + sizeof one, sizeof other);
    for (int step = 0; step < STEPS; step++) {
        for (int chain = 0; chain < CHAINS; chain++) sums[chain] = DOT(sums[chain], one, other);
    }
    int8_t last;
    for (int chain = 0; chain < CHAINS; chain++) {
        memcpy(&last, &sums[chain], 1);
        seen = last;
    }
    return (double)STEPS * CHAINS * sizeof(Bytes);
}
#else
static int8_t left[SIDE][LENGTH], right[SIDE][LENGTH];

static double in_8_bits(void) {
    memset(left, (int)seen + 1, sizeof left);
    memset(right, (int)seen + 3, sizeof right);
    for (int one = 0; one < SIDE; one++) {
        for (int other = 0; other < SIDE; other++) {
            int32_t sum = 0;
            for (int k = 0; k < LENGTH; k++) sum += left[one][k] * right[other][k];
            seen = (float)(sum & 1);
        }
    }
    return (double)SIDE * SIDE * LENGTH;
}
#endif

static double best(double (*work)(void)) {
    double most = 0;
    for (int attempt = 0; attempt < TRIES; attempt++) {
        double done = 0;
        clock_t began = clock();
        for (int round = 0; round < ROUNDS; round++) done += work();
        double rate = done * CLOCKS_PER_SEC / (double)(clock() - began);
        most = rate > most ? rate : most;
    }
    return most;
}

int main(void) {
    printf("{\"int8\": %.4g, \"float32\": %.4g}\n", best(in_8_bits), best(in_float32));
    return 0;
}
