// The layout of the structs in gemmule.h by name, for callers that mirror them.
#include <cstddef>
#include <cstring>

#include "gemmule.h"

namespace {

struct Entry {
  const char* name;
  int64_t value;
};

#define GM_SIZE(type) {#type, static_cast<int64_t>(sizeof(type))}
#define GM_OFFSET(type, field) {#type "." #field, static_cast<int64_t>(offsetof(type, field))}
#define GM_VALUE(constant) {#constant, constant}

constexpr Entry kEntries[] = {
    GM_SIZE(gm_matrix),
    GM_OFFSET(gm_matrix, data),
    GM_OFFSET(gm_matrix, scales),
    GM_OFFSET(gm_matrix, format),
    GM_OFFSET(gm_matrix, rows),
    GM_OFFSET(gm_matrix, columns),
    GM_OFFSET(gm_matrix, reserved),

    GM_SIZE(gm_layer),
    GM_OFFSET(gm_layer, q),
    GM_OFFSET(gm_layer, k),
    GM_OFFSET(gm_layer, v),
    GM_OFFSET(gm_layer, o),
    GM_OFFSET(gm_layer, gate),
    GM_OFFSET(gm_layer, up),
    GM_OFFSET(gm_layer, down),
    GM_OFFSET(gm_layer, norms),
    GM_OFFSET(gm_layer, window),
    GM_OFFSET(gm_layer, slot),

    GM_SIZE(gm_model),
    GM_OFFSET(gm_model, layers),
    GM_OFFSET(gm_model, hidden),
    GM_OFFSET(gm_model, ffn),
    GM_OFFSET(gm_model, heads),
    GM_OFFSET(gm_model, kv_heads),
    GM_OFFSET(gm_model, head_dim),
    GM_OFFSET(gm_model, vocab),
    GM_OFFSET(gm_model, cache),
    GM_OFFSET(gm_model, eps),
    GM_OFFSET(gm_model, attention_scale),
    GM_OFFSET(gm_model, attention_cap),
    GM_OFFSET(gm_model, final_cap),
    GM_OFFSET(gm_model, embed_scale),
    GM_OFFSET(gm_model, reserved),
    GM_OFFSET(gm_model, embed),
    GM_OFFSET(gm_model, norm),
    GM_OFFSET(gm_model, inv_freq),
    GM_OFFSET(gm_model, layer),

    GM_SIZE(gm_step),
    GM_OFFSET(gm_step, tokens),
    GM_OFFSET(gm_step, spans),
    GM_OFFSET(gm_step, outputs),
    GM_OFFSET(gm_step, reserved),
    GM_OFFSET(gm_step, token),
    GM_OFFSET(gm_step, span_first),
    GM_OFFSET(gm_step, span_start),
    GM_OFFSET(gm_step, span_pages),
    GM_OFFSET(gm_step, global_pages),
    GM_OFFSET(gm_step, local_pages),
    GM_OFFSET(gm_step, pool),
    GM_OFFSET(gm_step, page_bytes),
    GM_OFFSET(gm_step, output_token),
    GM_OFFSET(gm_step, output_top),
    GM_OFFSET(gm_step, output_target),
    GM_OFFSET(gm_step, output_z),
    GM_OFFSET(gm_step, output_row),
    GM_OFFSET(gm_step, output_mask),
    GM_OFFSET(gm_step, top_stride),
    GM_OFFSET(gm_step, reserved2),
    GM_OFFSET(gm_step, top_ids),
    GM_OFFSET(gm_step, top_logits),
    GM_OFFSET(gm_step, target_logit),
    GM_OFFSET(gm_step, log_z),
    GM_OFFSET(gm_step, logits),

    GM_VALUE(GM_INTERFACE),
    GM_VALUE(GM_PAGE),
    GM_VALUE(GM_F32),
    GM_VALUE(GM_BF16),
    GM_VALUE(GM_INT4),
    GM_VALUE(GM_INT6),
    GM_VALUE(GM_INT8),
    GM_VALUE(GM_CACHE_F16),
    GM_VALUE(GM_CACHE_INT8),
    GM_VALUE(GM_CACHE_F32),
};

}  // namespace

extern "C" __attribute__((visibility("default"))) int64_t gm_abi(const char* name) {
  for (const Entry& entry : kEntries)
    if (!std::strcmp(entry.name, name)) return entry.value;
  return -1;
}
