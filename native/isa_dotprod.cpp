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

const Kernels kDotprod = {
    .name = "dotprod",
    .gemv_max_rows = kGemvRows,
    .panel_bytes = 1,
    .tile = dotprod::tile,
    .prepare = dotprod::prepare,
    .panel = dotprod::panel,
    .quantize = dotprod::quantize,
    .norm = dotprod::norm,
    .gelu_times = dotprod::gelu_times,
    .add = dotprod::add,
    .rotate = dotprod::rotate,
    .store = dotprod::store,
    .attend = dotprod::attend,
    .cap = dotprod::cap,
    .argmax = dotprod::argmax,
    .sum_exp = dotprod::sum_exp,
    .read = dotprod::read,
    .release_tiles = nullptr,
};

}  // namespace gemmule
