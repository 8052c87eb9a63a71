// RoIAlign for every processor of the architecture.
#define CARAFE_ISA baseline
#define CARAFE_VECTOR_BYTES 16
#include "roi_align_cpu_pool.h"
