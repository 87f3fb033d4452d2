// Selects the best instruction set that the processor and the system offer.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "products.hpp"

#ifdef GEMMULE_X86
#include <cpuid.h>
#endif

#if defined(GEMMULE_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(GEMMULE_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(GEMMULE_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gemmule {
namespace {

#ifdef GEMMULE_AVX_VNNI
// Not __builtin_cpu_supports, which knows it in newer compilers only.
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
#endif

#ifdef GEMMULE_X86
bool has_amx() {
#ifdef __linux__
  // The system must grant the tiles' eight kilobytes of state (arch_prctl, ARCH_REQ_XCOMP_PERM for
  // XTILEDATA).
  unsigned a = 7, b, c = 0, d;
  asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  const bool tiles = d >> 24 & 1, bytes = d >> 25 & 1;
  return tiles && bytes && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

#ifdef GEMMULE_ARM
#if defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(feature, &value, &bytes, nullptr, 0) == 0 && value != 0;
}
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__linux__)
// Bits of the kernel's list, which headers of an old system may not name yet.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif
#endif

const Kernels* offered(const char* name) {
  if (!std::strcmp(name, "portable")) return &kPortable;
#ifdef GEMMULE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  if (avx2 && !std::strcmp(name, "avx2")) return &kAvx2;
#ifdef GEMMULE_AVX_VNNI
  if (avx2 && !std::strcmp(name, "avx_vnni") && has_avx_vnni()) return &kAvxVnni;
  if (avx512 && !std::strcmp(name, "avx_vnni")) return &kAvxVnniEvex;
#endif
  if (avx512 && !std::strcmp(name, "avx512vnni")) return &kAvx512;
  if (avx512 && !std::strcmp(name, "amx") && has_amx()) return &kAmx;
#endif
#ifdef GEMMULE_ARM
  if (!std::strcmp(name, "dotprod") && has_dotprod()) return &kDotprod;
  if (!std::strcmp(name, "i8mm") && has_dotprod() && has_i8mm()) return &kI8mm;
#endif
  return nullptr;
}

const Kernels* best() {
  const char* asked = std::getenv("GEMMULE_ISA");
  if (asked)
    if (const Kernels* table = offered(asked)) return table;
  for (const char* name : {"amx", "avx512vnni", "avx_vnni", "avx2", "i8mm", "dotprod"})
    if (const Kernels* table = offered(name)) return table;
  return &kPortable;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

std::atomic<uint32_t> calls{0};

const Kernels& kernels() {
  const Kernels* k = chosen.load(std::memory_order_acquire);
  if (!k) chosen.store(k = best(), std::memory_order_release);
  return *k;
}

}  // namespace gemmule

extern "C" {

__attribute__((visibility("default"))) int32_t gm_interface(void) { return GM_INTERFACE; }

__attribute__((visibility("default"))) const char* gm_isa(void) { return gemmule::kernels().name; }

__attribute__((visibility("default"))) int32_t gm_set_isa(const char* name) {
  const gemmule::Kernels* table = gemmule::offered(name);
  if (table) gemmule::chosen.store(table, std::memory_order_release);
  return table ? 0 : -1;
}

}  // extern "C"
