// ARM's NEON with products of matrices of bytes (Armv8.6: Neoverse V1 and V2, Apple M2).
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace gemmule {
namespace i8mm {

#include "simd.hpp"
#include "rows_impl.hpp"
#include "neon_impl.hpp"

}  // namespace i8mm

constinit const Kernels kI8mm = i8mm::with_rows({
    .name = "i8mm",
    .gemv_max_rows = kGemvRows,
    .panel_bytes = 1,
    .tile = i8mm::tile,
    .prepare = i8mm::prepare,
    .panel = i8mm::panel,
});

}  // namespace gemmule
