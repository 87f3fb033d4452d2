// ARM's NEON with dot products of bytes (Armv8.2 and later: Neoverse N1, Apple A12 and M1).
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace gemmule {
namespace dotprod {

#include "simd.hpp"
#include "rows_impl.hpp"
#include "neon_impl.hpp"

}  // namespace dotprod

constinit const Kernels kDotprod = dotprod::with_rows({
    .name = "dotprod",
    .gemv_max_rows = kGemvRows,
    .panel_bytes = 1,
    .tile = dotprod::tile,
    .prepare = dotprod::prepare,
    .panel = dotprod::panel,
});

}  // namespace gemmule
