// AVX-VNNI's kernels in the encoding that processors with AVX-512 have.
#define GEMMULE_EVEX
#include "isa_avx_vnni.cpp"
