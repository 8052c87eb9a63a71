// RoIAlign for AVX2, FMA and F16C.
#if defined(__x86_64__)
#define CARAFE_ISA avx2
#define CARAFE_VECTOR_BYTES 32
#include "roi_align_cpu_pool.h"
#endif
