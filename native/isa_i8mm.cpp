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

const Kernels kI8mm = {
    .name = "i8mm",
    .gemv_max_rows = kGemvRows,
    .panel_bytes = 1,
    .tile = i8mm::tile,
    .prepare = i8mm::prepare,
    .panel = i8mm::panel,
    .quantize = i8mm::quantize,
    .norm = i8mm::norm,
    .gelu_times = i8mm::gelu_times,
    .add = i8mm::add,
    .rotate = i8mm::rotate,
    .store = i8mm::store,
    .attend = i8mm::attend,
    .cap = i8mm::cap,
    .argmax = i8mm::argmax,
    .sum_exp = i8mm::sum_exp,
    .read = i8mm::read,
    .release_tiles = nullptr,
};

}  // namespace gemmule
