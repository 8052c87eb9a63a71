// RoIAlign for AVX-512 (F, VL, BW, DQ).
#if defined(__x86_64__)
#define CARAFE_ISA avx512
#define CARAFE_VECTOR_BYTES 64
#include "roi_align_cpu_pool.h"
#endif
