// CARAFE for AVX2, FMA and F16C.
#if defined(__x86_64__)
#define CARAFE_ISA avx2
#define CARAFE_VECTOR_BYTES 32
#include "carafe_cpu_rows.h"
#endif
