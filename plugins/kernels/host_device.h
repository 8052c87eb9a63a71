// Marks functions that a CPU twin and a CUDA kernel share.
#pragma once

#if defined(__CUDACC__)
#define CARAFE_HD __host__ __device__
#else
#define CARAFE_HD
#endif
